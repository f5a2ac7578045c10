"""Evidence from studies that were run earlier, for studies to come."""

from __future__ import annotations

from collections.abc import Sequence

from hpo_mab._errors import ArgumentError, UnknownNameError
from hpo_mab.advantage import DEFAULT_MARGIN, Evidence, measure_evidence, pair_curves
from hpo_mab.storage import StudyRun


def evidence_of(
    runs: Sequence[StudyRun],
    *,
    arm: str = "mab",
    reference: str = "uniform",
    margin: float = DEFAULT_MARGIN,
) -> Evidence:
    """What stored studies say of early pruning, to be saved for later studies of the same task.

    Pairs are the trials of both arms with equal seed and configuration that ran to their end.

    Args:
        runs: Studies of both arms, others are not looked at.
        arm: Whose trials were trained with the bandit.
        reference: Whose trials were trained under uniform sampling.
        margin: See `hpo_mab.advantage.measure_evidence`.

    Raises:
        ArgumentError: Fewer than 4 pairs, or studies of several networks.
        UnknownNameError: No study of an arm.
    """
    own, other = (_of_arm(runs, name) for name in (arm, reference))
    both = [*own, *other]
    seeds = f"{len(own)} seed{'' if len(own) == 1 else 's'}"
    source = f"{own[0].title}, {seeds}, {arm}/{reference}"
    return measure_evidence(
        pair_curves(own, other),
        margin=margin,
        source=source,
        data=_one(both, "data"),
        model=_one(both, "model"),
    )


def _of_arm(runs: Sequence[StudyRun], arm: str) -> list[StudyRun]:
    found = [run for run in runs if run.arm == arm]
    if not found:
        raise UnknownNameError("arm", arm, list(dict.fromkeys(run.arm for run in runs)))
    return found


def _one(runs: Sequence[StudyRun], part: str) -> str:
    sections = ((run.settings.data, run.settings.model) for run in runs)
    names = sorted({(data if part == "data" else model).kind for data, model in sections})
    if len(names) > 1:
        raise ArgumentError(
            f"Evidence is of one {part}, the studies are of {' and '.join(names)}. Name studies "
            "of one of them."
        )
    return names[0]
