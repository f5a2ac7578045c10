"""Uniform sampling within bandits in tensors, with no wait for the host."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hpo_mab.bandits._passes import coprime_strides


class TensorPasses:
    """`UniformPasses` on a device; see there.

    Args:
        sizes: Arms of each bandit, int64 [B].
        generator: Source of offsets and strides, of the same device.
    """

    def __init__(self, sizes: Tensor, generator: torch.Generator) -> None:
        self._sizes = sizes
        self._generator = generator
        kinds, kind = np.unique(sizes.cpu().numpy(), return_inverse=True)
        strides = [coprime_strides(size) for size in kinds.tolist()]
        table = np.zeros((len(strides), max(map(len, strides))), dtype=np.int64)
        for place, row in enumerate(strides):
            table[place, : len(row)] = row
        choices = np.array([len(row) for row in strides])[kind]
        self._kind = torch.from_numpy(kind).to(sizes.device)
        self._strides = torch.from_numpy(table).to(sizes.device)
        self._choices = torch.from_numpy(choices).to(sizes.device)
        self._left = torch.zeros_like(sizes)
        self._place = torch.zeros_like(sizes)
        self._stride = torch.zeros_like(sizes)

    def select(self) -> Tensor:
        """The next arm of each bandit, int64 [B]."""
        over = self._left == 0
        fresh = self._strides[self._kind, self.below(self._choices)]
        self._stride.copy_(torch.where(over, fresh, self._stride))
        self._left.copy_(torch.where(over, self._sizes, self._left) - 1)
        arms = torch.where(over, self.below(self._sizes), self._place)
        self._place.copy_((arms + self._stride) % self._sizes)
        return arms

    def below(self, bounds: Tensor) -> Tensor:
        """Uniform integers in [0, bound) for each bound, int64."""
        uniforms = torch.rand(
            bounds.shape, dtype=torch.float64, device=bounds.device, generator=self._generator
        )
        return (uniforms * bounds).long()

    def tensors(self) -> dict[str, Tensor]:
        """All tensors that make the state."""
        return {"left": self._left, "place": self._place, "stride": self._stride}
