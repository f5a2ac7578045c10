"""The loss binarizer: a reward for a loss that is at least the moving average of the loss."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from hpo_mab.bandits._arrays import Bools, Rewards


class LossBinarizer:
    """Rewards losses that reach the moving average ``m`` of the training loss.

    ``m`` is the bias-corrected exponential moving average of the mean loss of the batches *before*
    the one that is judged; the first batch is judged by its own mean. Non-finite losses are
    invalid and leave ``m`` alone.

    Args:
        decay: Decay of the moving average a batch, in [0, 1).
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.total = 0.0
        self.weight = 0.0

    def rewards(self, losses: NDArray[np.float32]) -> tuple[Rewards, Bools | None]:
        """Judge a batch and take its mean into the average.

        Args:
            losses: Loss of each example, [B].

        Returns:
            Rewards 0 or 1, [B], and which are valid, [B]; None where all are.
        """
        valid = None
        # One number tells of all: a loss that is not finite makes the mean so. Python's sum of so
        # few is faster than numpy's mean, and silent of infinities.
        mean = sum(losses.tolist()) / len(losses)
        if not math.isfinite(mean):
            valid = np.isfinite(losses)
            if not valid.any():
                return np.zeros(len(losses), dtype=np.int8), valid
            mean = float(losses[valid].mean(dtype=np.float64))
        threshold = self.total / self.weight if self.weight else mean
        self.total = self.decay * self.total + (1 - self.decay) * mean
        self.weight = self.decay * self.weight + (1 - self.decay)
        rewards = losses >= threshold
        return rewards.view(np.int8), valid
