"""A batch sampler on the clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

from torch import Tensor

from hpo_mab.samplers._base import BatchSampler, Draw

_T = TypeVar("_T")


class TimedSampler:
    """Passes draws and feedback to a sampler and adds up the host time they take.

    On a GPU the host time of an operation is that of its launch. Use it as ``batch_sampler`` of a
    ``DataLoader``, or call `draw`.

    Args:
        sampler: The sampler to time.
        clock: Returns seconds.

    Attributes:
        sampler: The sampler timed.
        seconds: Seconds spent in it so far.
    """

    def __init__(self, sampler: BatchSampler, *, clock: Callable[[], float]) -> None:
        self.sampler = sampler
        self.seconds = 0.0
        self._clock = clock
        self._ahead: Tensor | None = None

    def __len__(self) -> int:
        """Batches in one pass."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[list[int]]:
        """One pass of batches, each a list of indices."""
        batches = iter(self.sampler)
        while (batch := self._timed(lambda: next(batches, None))) is not None:
            yield batch

    def draw(self) -> Tensor:
        """The sampler's next batch of indices, int64 [B]; the one drawn ahead if there is one."""
        if self._ahead is None:
            return self._timed(self.sampler.draw)
        ahead, self._ahead = self._ahead, None
        return ahead

    def draw_ahead(self) -> None:
        """Draw what the next `draw` returns.

        Right after an `update` that is the same draw as later, and cheaper: what the bandits are
        made of is in the processor's caches until the backward pass sweeps them.
        """
        self._ahead = self._timed(self.sampler.draw)

    def next_draw(self) -> Draw:
        """The sampler's next batch with its weights."""
        return self._timed(self.sampler.next_draw)

    def update(self, losses: Tensor, *, logits: Tensor, targets: Tensor) -> Tensor:
        """Answer the oldest draw with losses [B]; returns the scalar to back-propagate."""
        return self._timed(lambda: self.sampler.update(losses, logits=logits, targets=targets))

    def _timed(self, call: Callable[[], _T]) -> _T:
        start = self._clock()
        result = call()
        self.seconds += self._clock() - start
        return result
