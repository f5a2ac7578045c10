"""Samplers that learn nothing from losses: uniform shuffling, easiest first, and PyTorch's own."""

from __future__ import annotations

import contextlib
import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar, Unpack

import numpy as np
import torch
from torch import Tensor

from hpo_mab._errors import ArgumentError, require
from hpo_mab._registry import bound_to
from hpo_mab.samplers._base import BatchSampler, CommonArguments
from hpo_mab.samplers._feedback import Draw
from hpo_mab.samplers._streams import StreamSampler


class UniformSampler(StreamSampler):
    """Shuffling without replacement, as a continuous stream.

    The first ``N`` indices drawn, the next ``N`` and so on hold each of the ``N`` examples of this
    rank exactly once. Every batch has exactly ``B`` indices. Where ``B`` does not divide ``N``, a
    batch takes its rest from the next epoch instead of being short. That rest has no example of the
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
    # By class, and by difficulty within each class. An example's rank within its class is then its
    # position minus that of the first of its class.
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


def foreign_sampler(
    make: Callable[..., Any],
    name: str,
    labels: Tensor | Sequence[int],
    /,
    **arguments: Any,
) -> BatchSampler:
    """Make a sampler of a class or function from elsewhere.

    Args:
        make: Its class, or a function that returns one. It gets its options. It also gets what it
            takes of ``labels``, ``data_source`` (the labels, as a container of N) and every
            sampler's arguments.
        name: Its name, for messages and checkpoints.
        labels: Class of each training example, integers [N].
        **arguments: Arguments of every sampler, see `BatchSampler`, and options of this one.

    Returns:
        The sampler itself if it is a `BatchSampler` of this package, else a `ForeignSampler`.

    Raises:
        ArgumentError: What was made cannot be iterated over, or draws batches of another size.
    """
    given = {one: arguments.pop(one) for one in CommonArguments.__annotations__ if one in arguments}
    bound = inspect.signature(BatchSampler).bind(labels, **given)
    bound.apply_defaults()
    common = bound.kwargs
    random = _RandomState(common["seed"])
    with random:
        made = bound_to(make, {"labels": labels, "data_source": labels, **common})(**arguments)
    if isinstance(made, BatchSampler):
        return made
    return ForeignSampler(made, labels, name=name, random=random, **common)


class _RandomState(contextlib.AbstractContextManager[None]):
    """A state of PyTorch's global generator that only one sampler uses, within the context.

    Without it a network's dropout would change what a sampler draws. A training that continues from
    a checkpoint would then draw other batches than one without a stop.
    """

    def __init__(self, seed: int) -> None:
        self._own = torch.Generator().manual_seed(seed).get_state()

    def __enter__(self) -> None:
        self._others = torch.get_rng_state()
        torch.set_rng_state(self._own)

    def __exit__(self, *_: object) -> None:
        self._own = torch.get_rng_state()
        torch.set_rng_state(self._others)


class ForeignSampler(BatchSampler):
    """Batches of a sampler of PyTorch's interface, pass after pass; it learns nothing from losses.

    Indices that come one by one are cut into batches, across the ends of passes. Batches must have
    the size asked; a shorter one at the end of a pass is left out. ``set_epoch`` is called before
    each pass where the sampler has it, as PyTorch's `DistributedSampler` needs.

    A state is the number of batches drawn: a sampler that loads it draws as many again.

    Args:
        sampler: Iterable of indices, or of batches of indices, which can be iterated over more than
            once. Its random choices follow from its own seed or from PyTorch's global state.
        labels: Class of each training example, integers [N].
        name: The sampler's name.
        random: Random state in which the sampler was made.
        **common: Arguments of every sampler, see `BatchSampler`; the sampler itself must split
            the examples among ranks.

    Raises:
        ArgumentError: What cannot be iterated over; at a draw, batches of another size, or what is
            no index of an example.
    """

    def __init__(
        self,
        sampler: Iterable[Any],
        labels: Tensor | Sequence[int],
        *,
        name: str,
        random: _RandomState,
        **common: Unpack[CommonArguments],
    ) -> None:
        if not isinstance(sampler, Iterable):
            raise ArgumentError(
                f"sampler '{name}' must be an iterable of indices or of batches of them, "
                f"got {type(sampler).__name__}."
            )
        super().__init__(labels, **common)
        self._name = name
        self._sampler = sampler
        self._random = random
        self._drawn = 0
        #: Indices that do not fill a batch yet.
        self._indices: list[Any] = []
        batches = self._stream()
        with random:
            # Raises for batches of another size here, before anything is trained.
            self._batches = itertools.chain([next(batches)], batches)

    def _draw(self) -> Draw:
        self._drawn += 1
        with self._random:
            batch = next(self._batches)
        return Draw(batch.to(self.device))

    def _state(self) -> dict[str, Any]:
        return {"drawn": self._drawn}

    def _load_state(self, state: dict[str, Any]) -> None:
        if self._drawn:
            raise ArgumentError(f"sampler '{self._name}' must load a state before its first draw.")
        for _ in range(int(state["drawn"])):
            self._draw()

    def _stream(self) -> Iterator[Tensor]:
        """Endless batches, int64 [B] each."""
        for number in itertools.count():
            if hasattr(self._sampler, "set_epoch"):
                self._sampler.set_epoch(number)
            seen = last = size = 0
            for seen, item in enumerate(self._sampler, start=1):  # noqa: B007
                batch = self._collected(item) if _is_index(item) else item
                # A shorter batch is allowed at the end only, so it is an error once another
                # follows.
                if 0 < last < self.batch_size:
                    raise self._wrong_size(last)
                last = len(batch) or last
                size = max(size, last)
                if len(batch) == self.batch_size:
                    yield self._checked(batch)
            if not seen or (size != self.batch_size and not self._indices):
                raise self._wrong_size(size)

    def _collected(self, index: Any) -> Sequence[Any]:
        """The batch that an index completes; empty where it completes none."""
        self._indices.append(index)
        if len(self._indices) < self.batch_size:
            return ()
        batch, self._indices = self._indices, []
        return batch

    def _wrong_size(self, found: int) -> ArgumentError:
        return ArgumentError(
            f"sampler '{self._name}' must draw batches of {self.batch_size} indices, got {found}; "
            "only the last batch of a pass may be shorter, and is left out."
        )

    def _checked(self, batch: Any) -> Tensor:
        """A batch as int64 [B] on the CPU; another index would stop a CUDA device."""
        indices = torch.as_tensor(batch)
        last = len(self.labels) - 1
        if indices.dtype == torch.bool or indices.is_floating_point():
            raise ArgumentError(f"sampler '{self._name}' must draw integers, got {indices.dtype}.")
        if not 0 <= int(indices.min()) <= int(indices.max()) <= last:
            raise ArgumentError(
                f"sampler '{self._name}' must draw indices in [0, {last}], "
                f"got {int(indices.min())} to {int(indices.max())}."
            )
        return indices.to("cpu", torch.int64)


def _is_index(item: Any) -> bool:
    return isinstance(item, int) or np.ndim(item) == 0
