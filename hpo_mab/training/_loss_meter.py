"""Training loss, added up without waiting for the device."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hpo_mab._errors import HpoMabError


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
    """Mean training loss since the last reading.

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
