"""Samplers that use the difficulty of each example: easy ones first, the hardest left out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor

from hpo_mab._errors import ArgumentError, require
from hpo_mab.samplers._base import CommonArguments
from hpo_mab.samplers._uniform import UniformSampler


def checked_difficulty(difficulty: Tensor | Sequence[float], count: int) -> Tensor:
    """A difficulty for each example, float64 [N] on the CPU; NaN becomes the mean.

    Args:
        difficulty: A higher number is harder, [N]; NaN where not known.
        count: Number of examples, ``N``.

    Raises:
        ArgumentError: Another shape, or infinite values.
    """
    values = torch.as_tensor(difficulty, dtype=torch.float64).cpu()
    if values.shape != (count,):
        raise ArgumentError(
            f"difficulty must be one number an example, [{count}], got {list(values.shape)}."
        )
    if bool(values.isinf().any()):
        raise ArgumentError("difficulty must be finite, or NaN where it is not known.")
    return values.nan_to_num(nan=float(values.nanmean().nan_to_num(0.0)))


def easiest(difficulty: Tensor, labels: Tensor, *, share: float) -> Tensor:
    """The easiest examples of each class, at least one of each.

    Args:
        difficulty: Float [N].
        labels: Class of each example, int64 [N].
        share: Share of each class, in [0, 1].

    Returns:
        Their positions, int64, ascending.
    """
    order = torch.argsort(difficulty, stable=True)
    order = order[torch.argsort(labels[order], stable=True)]
    _, of_class, counts = torch.unique(labels[order], return_inverse=True, return_counts=True)
    starts = counts.cumsum(0) - counts
    ranks = torch.arange(len(order)) - starts[of_class]
    wanted = (share * counts.double()).round().clamp_min(1)
    return order[ranks < wanted[of_class]].sort().values


class CurriculumSampler(UniformSampler):
    """Shuffled passes over the easiest examples first, over all of them later.

    Until a share ``end`` of the budget is spent, passes hold the easiest share ``start`` of each
    class. After that they hold all examples. The hardest share ``trim`` of each class is always
    left out. This is curriculum learning with single-step pacing (Bengio et al. 2009; Hacohen &
    Weinshall 2019), with a difficulty that earlier trainings have measured. With ``start = 1`` it
    is training on a trimmed loss (Shen & Sanghavi 2019) with a constant trim.

    Where a part would be smaller than a batch, it is all examples instead.

    Without a ``difficulty`` it draws exactly as `UniformSampler`. In a study, the first trials
    measure the difficulty, see `hpo_mab.search.TrainingObjective`.

    It is biased on purpose: examples that are left out are never drawn. Whether that helps depends
    on data and budget, see ``studies/examples``.

    Args:
        labels: Class of each training example, integers [N].
        start: Share of each class that is drawn at first, in (0, 1].
        end: Share of the budget after which all are drawn, in [0, 1].
        trim: Share of the hardest of each class that is never drawn, in [0, 1).
        difficulty: A higher number is harder, float [N]; NaN where not known. None: not known for
            any example.
        **common: Arguments of every sampler, see `BatchSampler`.

    Raises:
        ArgumentError: An argument outside its bound.
    """

    record_column: ClassVar[str | None] = "loss"

    def __init__(
        self,
        labels: Tensor | Sequence[int],
        *,
        start: float = 0.6,
        end: float = 0.5,
        trim: float = 0.0,
        difficulty: Tensor | Sequence[float] | None = None,
        **common: Unpack[CommonArguments],
    ) -> None:
        require(0 < start <= 1, "start", "in (0, 1]", start)
        require(0 <= end <= 1, "end", "in [0, 1]", end)
        require(0 <= trim < 1, "trim", "in [0, 1)", trim)
        super().__init__(labels, **common)
        self.start = start
        self.end = end
        self.trim = trim
        self._at_start = end > 0
        own = self.examples
        self._easy = self._examples
        if difficulty is not None:
            known = checked_difficulty(difficulty, len(self.labels))[own]
            parts = []
            for share in (min(start, 1 - trim), 1 - trim):
                part = own[easiest(known, self.labels[own], share=share)]
                # A batch must hold no example twice, so a part needs at least a batch of them.
                parts.append(part if len(part) >= self.batch_size else own)
            self._easy, self._examples = (part.to(self.device) for part in parts)

    def set_progress(self, share: float) -> None:
        """Set the share of the budget spent; from ``end`` on, all examples are drawn."""
        at_start = share < self.end
        if self._at_start and not at_start and len(self._easy) < len(self._examples):
            self._stream.restart()
        self._at_start = at_start

    def _plan(self) -> Tensor:
        examples = self._easy if self._at_start else self._examples
        order = torch.randperm(len(examples), generator=self._generator, device=self.device)
        return examples[order]

    def _state(self) -> dict[str, Any]:
        return {**super()._state(), "at_start": self._at_start}

    def _load_state(self, state: dict[str, Any]) -> None:
        super()._load_state(state)
        self._at_start = bool(state["at_start"])
