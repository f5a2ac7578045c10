"""The loss binarizer in tensors, with no wait for the host."""

from __future__ import annotations

import torch
from torch import Tensor


class TensorLossBinarizer:
    """`LossBinarizer` for losses on a device; see there.

    Args:
        decay: Decay of the moving average a batch, in [0, 1).
        device: Where the losses are.
    """

    def __init__(self, decay: float, device: torch.device) -> None:
        self._decay = decay
        self._total = torch.zeros((), dtype=torch.float64, device=device)
        self._weight = torch.zeros((), dtype=torch.float64, device=device)

    def rewards(self, losses: Tensor) -> tuple[Tensor, Tensor]:
        """Judge a batch, float32 [B], and take its mean into the average.

        Returns:
            Whether each loss is rewarded, and whether it is finite, bool [B] each.
        """
        valid = losses.isfinite()
        held = valid.sum()
        mean = torch.where(valid, losses, 0.0).sum(dtype=torch.float64) / held.clamp(min=1)
        threshold = torch.where(self._weight > 0, self._total / self._weight, mean)
        some = held > 0
        for average, value in ((self._total, mean), (self._weight, 1.0)):
            moved = self._decay * average + (1 - self._decay) * value
            average.copy_(torch.where(some, moved, average))
        return (losses >= threshold) & valid, valid

    def tensors(self) -> dict[str, Tensor]:
        """All tensors that make the state."""
        return {"loss_total": self._total, "loss_weight": self._weight}
