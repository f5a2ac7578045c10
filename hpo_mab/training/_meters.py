"""What a training measures as it runs: its loss, and the time its sampler takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

from hpo_mab._errors import HpoMabError
from hpo_mab.samplers._base import BatchSampler, Draw

_T = TypeVar("_T")


class TrainingDiverged(HpoMabError, ArithmeticError):  # noqa: N818 - an outcome, not a mistake
    """The training or validation loss is no longer finite.

    Args:
        step: Optimiser steps done when it was noticed.
        what: Which loss, and its value.
    """

    def __init__(self, step: int, what: str) -> None:
        super().__init__(f"Training diverged by step {step}: {what}.")
        self.step = step


class LossMeter:
    """Mean training loss since the last reading, without waiting for the device.

    Args:
        device: Where losses are computed.
    """

    def __init__(self, device: torch.device) -> None:
        self._total = torch.zeros((), device=device)
        # Elsewhere, looking at every step would wait for the device.
        self._watch = device.type == "cpu"
        self._count = 0

    def add(self, losses: Tensor, *, step: int) -> None:
        """Count a batch's detached per-example losses, float [B].

        Raises:
            TrainingDiverged: On the CPU, where looking is free: the loss is not finite.
        """
        self.accumulate(losses)
        self.count(step=step)

    def accumulate(self, losses: Tensor) -> None:
        """Add a batch's losses up on the device; each must be counted."""
        self._total += losses.mean()

    def count(self, *, step: int) -> None:
        """Count a batch whose losses were accumulated; raises as `add` does."""
        self._count += 1
        if self._watch:
            _require_finite(float(self._total), step)

    def read(self, *, step: int) -> float:
        """Mean over the batches since the last reading, in nats; waits for the device.

        Raises:
            TrainingDiverged: The mean is not finite.
        """
        mean = float(self._total) / self._count
        self._total.zero_()
        self._count = 0
        _require_finite(mean, step)
        return mean


def _require_finite(loss: float, step: int) -> None:
    if not math.isfinite(loss):
        raise TrainingDiverged(step, f"the training loss is {loss}")


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
