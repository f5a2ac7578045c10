"""Moving average of the training loss, on any device."""

from __future__ import annotations

import torch
from torch import Tensor


class MovingAverage:
    """Bias-corrected exponential moving average of batch means of the finite losses.

    Args:
        decay: Decay a batch, in [0, 1).
        device: Where to work.
    """

    def __init__(self, decay: float, *, device: torch.device) -> None:
        self._decay = decay
        self._sums = torch.zeros(2, device=device)

    def before(self, losses: Tensor, *, finite: Tensor) -> Tensor:
        """Take in a batch [B]; the average *before* it, a scalar (the first batch's own mean)."""
        count = finite.sum()
        mean = torch.where(finite, losses, 0.0).sum() / count.clamp_min(1)
        before = torch.where(self._sums[1] > 0, self._sums[0] / self._sums[1], mean)
        batch = torch.stack([mean, torch.ones_like(mean)])
        after = self._decay * self._sums + (1 - self._decay) * batch
        self._sums = torch.where(count > 0, after, self._sums)
        return before

    def state(self) -> Tensor:
        """Weighted sum and sum of weights, float32 [2]."""
        return self._sums.clone()

    def load_state(self, state: Tensor) -> None:
        """Continue where `state` was taken."""
        self._sums = state.to(self._sums.device).clone()
