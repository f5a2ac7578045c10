"""Samplers by name, imported on use."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_type_hints

from hpo_mab._errors import UnknownNameError

if TYPE_CHECKING:
    import torch

    from hpo_mab.samplers._base import BatchSampler

#: Kind -> (module, class).
KINDS: Mapping[str, tuple[str, str]] = {
    "adambs": ("hpo_mab.samplers._importance", "AdamBSSampler"),
    "contextual": ("hpo_mab.samplers._linear", "ContextualSampler"),
    "csgd": ("hpo_mab.samplers._pass", "CSGDSampler"),
    "curriculum": ("hpo_mab.samplers._curriculum", "CurriculumSampler"),
    "gradnorm": ("hpo_mab.samplers._importance", "GradNormSampler"),
    "impon": ("hpo_mab.samplers._linear", "ImponSampler"),
    "infobatch": ("hpo_mab.samplers._selective", "InfoBatchSampler"),
    "mab": ("hpo_mab.samplers._mab", "MABSampler"),
    "psgd": ("hpo_mab.samplers._pass", "PSGDSampler"),
    "pvar": ("hpo_mab.samplers._pass", "PredictionVarianceSampler"),
    "selective_backprop": ("hpo_mab.samplers._selective", "SelectiveBackpropSampler"),
    "uniform": ("hpo_mab.samplers._uniform", "UniformSampler"),
}

# Not knobs: what every sampler has, and what a study measures.
_BASE_ARGUMENTS = (
    "self",
    "labels",
    "batch_size",
    "seed",
    "device",
    "rank",
    "world_size",
    "difficulty",
)


def available() -> tuple[str, ...]:
    """The kinds `create` knows, sorted."""
    return tuple(sorted(KINDS))


def knobs(kind: str) -> Mapping[str, Any]:
    """A sampler's own options and their defaults, read from its constructor.

    Args:
        kind: One of `available`.

    Returns:
        Name -> default, without the arguments that every sampler has.

    Raises:
        UnknownNameError: No such kind.
    """
    parameters = inspect.signature(sampler_class(kind)).parameters
    return {
        name: parameter.default
        for name, parameter in parameters.items()
        if name not in _BASE_ARGUMENTS
    }


def knob_types(kind: str) -> Mapping[str, Any]:
    """Annotated types of a sampler's own options.

    Args:
        kind: One of `available`.

    Raises:
        UnknownNameError: No such kind.
    """
    hints = get_type_hints(sampler_class(kind).__init__)
    return {name: hints[name] for name in knobs(kind)}


def create(
    kind: str,
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
        kind: One of `available`.
        labels: Class of each training example, integers [N].
        batch_size: Examples a batch, ``B``.
        seed: Seed of every random choice.
        device: Where indices are drawn and losses are expected.
        rank: This process's share among ``world_size``.
        world_size: Number of processes that split the examples.
        difficulty: Difficulty of each example in earlier trainings, float [N], for samplers with a
            `BatchSampler.record_column`; others ignore it.
        **knobs: The sampler's own options.

    Raises:
        UnknownNameError: No such kind, or the kind has no such knob.
        ArgumentError: An argument outside its bound.
    """
    made = sampler_class(kind)
    valid = _knob_names(kind) or ("(it has none)",)
    for name in knobs:
        if name not in valid:
            raise UnknownNameError(f"knob of sampler '{kind}'", name, valid)
    if difficulty is not None and made.record_column is not None:
        knobs["difficulty"] = difficulty
    return made(
        labels,
        batch_size=batch_size,
        seed=seed,
        device=device,
        rank=rank,
        world_size=world_size,
        **knobs,
    )


def _knob_names(kind: str) -> tuple[str, ...]:
    return tuple(knobs(kind))


def sampler_class(kind: str) -> type[BatchSampler]:
    """The class of a kind.

    Raises:
        UnknownNameError: No such kind.
    """
    if kind not in KINDS:
        raise UnknownNameError("sampler", kind, KINDS)
    module, name = KINDS[kind]
    found: type[BatchSampler] = getattr(importlib.import_module(module), name)
    return found
