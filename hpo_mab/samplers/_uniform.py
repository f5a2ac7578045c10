"""Shuffled passes: over all examples, the control of every comparison, or the easiest first."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Unpack

import numpy as np
import torch
from torch import Tensor

from hpo_mab._errors import ArgumentError, require
from hpo_mab.samplers._base import BatchSampler, CommonArguments
from hpo_mab.samplers._feedback import Draw


def make_generator(
    seed: int, *, rank: int = 0, device: torch.device | str = "cpu"
) -> torch.Generator:
    """A generator on ``device`` whose stream differs by seed and by rank.

    The pair is hashed (NumPy's ``SeedSequence``): with ``seed + rank``, neighbouring seeds and
    ranks would share streams.
    """
    entropy = (seed % 2**64, rank)
    (state,) = np.random.SeedSequence(entropy).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(state) >> 1)


class PlanStream:
    """Cuts batches of one size from consecutive plans, each the order of one pass.

    A batch that a plan cannot fill takes its rest from the next plan. A batch must not hold an
    example twice. So the rest has none of the batch's first part if the new plan has enough others.
    Those examples are later in the new plan.

    Nothing here waits for the device: sizes are known on the host.

    Args:
        plan: Returns the next plan: indices int64 [n] in random order, on the stream's device. A
            plan may mark entries by adding multiples of ``num_labels`` to them.
        num_labels: Number of examples; indices are taken modulo it.
        generator: Source of randomness for the reshuffle of a plan with a straddling batch.
    """

    def __init__(
        self, plan: Callable[[], Tensor], *, num_labels: int, generator: torch.Generator
    ) -> None:
        self._plan = plan
        self._num_labels = num_labels
        self._generator = generator
        self._order = torch.empty(0, dtype=torch.int64, device=generator.device)
        self._position = 0

    def take(self, count: int) -> Tensor:
        """The next ``count`` indices, int64 [count]."""
        end = self._position + count
        if end <= len(self._order):
            taken = self._order[self._position : end]
            self._position = end
            return taken
        taken = self._order[self._position :]
        while len(taken) < count:
            self._order = self._plan()
            if len(taken):
                self._keep_out(taken, count - len(taken))
            self._position = min(count - len(taken), len(self._order))
            taken = torch.cat([taken, self._order[: self._position]])
        return taken

    def restart(self) -> None:
        """Drop what is left of the current plan."""
        self._order = self._order[:0]
        self._position = 0

    def state(self) -> dict[str, Any]:
        """The rest of the current plan; the owner saves the generator."""
        return {"order": self._order.clone(), "position": self._position}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken."""
        self._order = state["order"].to(self._generator.device).clone()
        self._position = int(state["position"])

    def _keep_out(self, taken: Tensor, count: int) -> None:
        """Reorder the plan so that its first ``count`` indices are not among ``taken``."""
        held = torch.zeros(self._num_labels, dtype=torch.bool, device=self._order.device)
        held.index_fill_(0, taken % self._num_labels, True)
        # At most len(taken) of the window are held, so at least count are not. Stable, so the head
        # stays a uniform choice among the others.
        window = self._order[: count + len(taken)]
        window = window[torch.argsort(held[window % self._num_labels].to(torch.uint8), stable=True)]
        # Shuffled again: otherwise the held examples would always come right after this batch.
        rest = torch.cat([window[count:], self._order[len(window) :]])
        shuffle = torch.randperm(len(rest), generator=self._generator, device=rest.device)
        self._order = torch.cat([window[:count], rest[shuffle]])


class StreamSampler(BatchSampler):
    """A sampler that draws its batches from consecutive plans, with a generator of its own."""

    def __init__(
        self,
        labels: Tensor | Sequence[int],
        **common: Unpack[CommonArguments],
    ) -> None:
        super().__init__(labels, **common)
        self._generator = make_generator(self.seed, rank=self.rank, device=self.device)
        self._examples = self.examples.to(self.device)
        self._stream = PlanStream(
            self._plan, num_labels=self._plan_labels, generator=self._generator
        )

    @property
    def _plan_labels(self) -> int:
        """Number of indices that plans are made of."""
        return len(self.labels)

    @abc.abstractmethod
    def _plan(self) -> Tensor:
        """The order of the next pass, see `PlanStream`."""

    def _state(self) -> dict[str, Any]:
        return {"generator": self._generator.get_state(), "stream": self._stream.state()}

    def _load_state(self, state: dict[str, Any]) -> None:
        self._generator.set_state(state["generator"].cpu())
        self._stream.load_state(state["stream"])


class UniformSampler(StreamSampler):
    """Shuffling without replacement, as a continuous stream.

    Every run of ``N`` draws from the start (``N`` examples of this rank) holds each example
    exactly once. Every batch has exactly ``B`` indices. Where ``B`` does not divide ``N``, a batch
    takes its rest from the next epoch instead of being short. That rest has no example of the
    batch's first part. So no batch holds an example twice, and none is short or dropped.

    An epoch's permutation is drawn at once on ``device``; a draw is a slice of it. It learns
    nothing from losses and has no reward rate.

    Args:
        labels: Class of each training example, integers [N].
        **common: Arguments of every sampler, see `BatchSampler`.

    Raises:
        ArgumentError: An argument outside its bound.

    Examples:
        >>> from hpo_mab.samplers import UniformSampler
        >>> sampler = UniformSampler([0, 1] * 4, batch_size=4)
        >>> sorted(index for batch in sampler for index in batch)
        [0, 1, 2, 3, 4, 5, 6, 7]
    """

    def _plan(self) -> Tensor:
        order = torch.randperm(len(self._examples), generator=self._generator, device=self.device)
        return self._examples[order]

    def _draw(self) -> Draw:
        return Draw(self._stream.take(self.batch_size))


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

    Examples:
        >>> from hpo_mab.samplers import CurriculumSampler
        >>> sampler = CurriculumSampler([0] * 8, batch_size=4, start=0.5, difficulty=range(8))
        >>> sorted(sampler.draw().tolist())  # the easiest half
        [0, 1, 2, 3]
        >>> sampler.set_progress(0.5)
        >>> sorted(index for batch in sampler for index in batch)
        [0, 1, 2, 3, 4, 5, 6, 7]
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
