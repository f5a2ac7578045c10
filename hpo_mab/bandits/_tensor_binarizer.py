"""The loss binarizer in tensors, with no wait for the host."""

from __future__ import annotations

import torch
from torch import Tensor


class TensorLossBinarizer:
    """`LossBinarizer` for losses on a device, one for each network of a stack; see there.

    Args:
        decay: Decay of each network's moving average a batch, float64 [K], each in [0, 1).
    """

    def __init__(self, decay: Tensor) -> None:
        self._decay = decay
        self._total = torch.zeros_like(decay)
        self._weight = torch.zeros_like(decay)

    def rewards(self, losses: Tensor) -> tuple[Tensor, Tensor]:
        """Judge a batch of each network and take its mean into the network's average.

        Args:
            losses: Float32 [K * B], network by network.

        Returns:
            Whether each loss is rewarded, and whether it is finite, bool [K * B] each.
        """
        rows = losses.view(len(self._decay), -1)
        valid = rows.isfinite()
        held = valid.sum(dim=1)
        mean = torch.where(valid, rows, 0.0).sum(dim=1, dtype=torch.float64) / held.clamp(min=1)
        threshold = torch.where(self._weight > 0, self._total / self._weight, mean)
        some = held > 0
        for average, value in ((self._total, mean), (self._weight, 1.0)):
            moved = self._decay * average + (1 - self._decay) * value
            average.copy_(torch.where(some, moved, average))
        return ((rows >= threshold[:, None]) & valid).flatten(), valid.flatten()

    def tensors(self) -> dict[str, Tensor]:
        """All tensors that make the state, [K] each."""
        return {"loss_total": self._total, "loss_weight": self._weight}
