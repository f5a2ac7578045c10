"""Samplers by name, imported on use."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hpo_mab._errors import name_of, plain_arguments
from hpo_mab._registry import Named, Registry

if TYPE_CHECKING:
    import torch

    from hpo_mab.samplers._base import BatchSampler

NAMES: Mapping[str, str] = {
    "adambs": "hpo_mab.samplers._importance:AdamBSSampler",
    "contextual": "hpo_mab.samplers._linear:ContextualSampler",
    "csgd": "hpo_mab.samplers._pass:CSGDSampler",
    "curriculum": "hpo_mab.samplers._selective:CurriculumSampler",
    "gradnorm": "hpo_mab.samplers._importance:GradNormSampler",
    "hard_mining": "hpo_mab.samplers._selective:HardMiningSampler",
    "impon": "hpo_mab.samplers._linear:ImponSampler",
    "infobatch": "hpo_mab.samplers._selective:InfoBatchSampler",
    "mab": "hpo_mab.samplers._mab:MABSampler",
    "psgd": "hpo_mab.samplers._pass:PSGDSampler",
    "pvar": "hpo_mab.samplers._pass:PredictionVarianceSampler",
    "uniform": "hpo_mab.samplers._streams:UniformSampler",
}

#: Batch samplers. A sampler from elsewhere gets those of the arguments in ``given`` that it takes;
#: ``difficulty``, which a study measures, only if it is a `BatchSampler` with a `record_column`.
SAMPLERS = Registry(
    "sampler",
    NAMES,
    given=(
        "labels",
        "data_source",
        "batch_size",
        "seed",
        "device",
        "rank",
        "world_size",
        "difficulty",
    ),
)


def available() -> tuple[str, ...]:
    """The kinds of this package that `create` takes, sorted."""
    return tuple(SAMPLERS)


@plain_arguments
def create(
    kind: Named,
    labels: torch.Tensor | Sequence[int],
    *,
    batch_size: int,
    seed: int = 0,
    device: torch.device | str = "cpu",
    rank: int = 0,
    world_size: int = 1,
    difficulty: torch.Tensor | None = None,
    **knobs: Any,
) -> BatchSampler:
    """Make a sampler by name.

    Args:
        kind: One of `available`, ``package.module:Name`` of another sampler, or its class, which
            gets those of these arguments that it takes.
        labels: Class of each training example, integers [N].
        batch_size: Examples a batch, ``B``.
        seed: Seed of every random choice.
        device: Where indices are drawn and losses are expected.
        rank: Number of this process, in [0, world_size).
        world_size: Number of processes that split the examples.
        difficulty: Difficulty of each example in earlier trainings, float [N], for samplers with a
            `BatchSampler.record_column`; others ignore it.
        **knobs: The sampler's own options.

    Raises:
        UnknownNameError: No such kind, or the kind has no such knob.
        ArgumentError: An argument outside its bound.
    """
    SAMPLERS.check(kind, {name: [value] for name, value in knobs.items()}, section="sampler")
    make = sampler_maker(kind)
    if difficulty is not None and record_column(make) is not None:
        knobs["difficulty"] = difficulty
    ranks = {"rank": rank, "world_size": world_size}
    return make(labels, batch_size=batch_size, seed=seed, device=device, **ranks, **knobs)


def sampler_maker(kind: Named) -> Callable[..., BatchSampler]:
    """A function that makes samplers of a kind, with the arguments of this package's classes.

    A class or function from elsewhere is called with those of these arguments that it takes, see
    `hpo_mab.samplers._foreign.foreign_sampler`.
    """
    found = SAMPLERS.load(kind)
    if SAMPLERS.name(kind) in SAMPLERS:
        return found
    from hpo_mab.samplers._foreign import foreign_sampler

    return functools.partial(foreign_sampler, found, name_of(kind))


def record_column(make: Callable[..., Any]) -> str | None:
    """Which mean of a study's record of examples the samplers of a maker take; None for none."""
    cls: Any = make.args[0] if isinstance(make, functools.partial) else make
    return getattr(cls, "record_column", None)
