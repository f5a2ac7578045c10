"""The arms of a comparison: one study definition each, alike but for sampler and pruner."""

from __future__ import annotations

from hpo_mab._errors import SpecError
from hpo_mab.search import SamplerSection, StudySpec


def arms_of(spec: StudySpec) -> dict[str, StudySpec]:
    """The definition of each arm by name, the reference included.

    Without ``[compare.arms]`` the arms are the study as it is and the same under uniform sampling.

    Raises:
        SpecError: The reference is not among the arms, or there is nothing to compare.
    """
    uniform = SamplerSection(kind="uniform")
    if not spec.compare.arms:
        if spec.compare.reference != "uniform":
            raise SpecError(
                f"compare.reference '{spec.compare.reference}' is not an arm: without "
                "[compare.arms] the study is compared with uniform sampling."
            )
        own = spec if spec.sampler.kind != "uniform" else _with(spec, SamplerSection())
        return {own.sampler.kind: own, "uniform": _with(spec, uniform)}
    arms = {
        name: spec.model_copy(
            update={"sampler": arm.sampler or spec.sampler, "pruner": arm.pruner or spec.pruner}
        )
        for name, arm in spec.compare.arms.items()
    }
    reference = spec.compare.reference
    if reference not in arms:
        raise SpecError(f"compare.reference '{reference}' is not an arm: {', '.join(arms)}.")
    if len(arms) < 2:
        raise SpecError("compare.arms must name at least two arms.")
    return arms


def _with(spec: StudySpec, sampler: SamplerSection) -> StudySpec:
    return spec.model_copy(update={"sampler": sampler})
