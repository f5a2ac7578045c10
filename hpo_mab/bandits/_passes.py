"""Passes over the arms of each bandit without replacement, in numpy and in tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpo_mab.bandits._settings import Bools, Ints


def coprime_strides(size: int) -> Ints:
    """Strides in [1, size] that visit each of ``size`` places once before they return."""
    strides = np.arange(1, size + 1)
    coprime: Ints = strides[np.gcd(strides, size) == 1]
    return coprime


class UniformPasses:
    """Passes over each bandit's arms without replacement, independent of rewards.

    In each pass a bandit visits its arms in the order ``(offset + stride * i) mod A`` with a
    random offset and a random stride coprime to ``A``: each arm once, each arm equally likely at
    each place, in constant memory.

    Args:
        sizes: Arms of each bandit, [B].
        rng: Source of offsets and strides.
    """

    def __init__(self, sizes: Ints, rng: np.random.Generator) -> None:
        self._sizes = sizes
        self._rng = rng
        self._rows = np.arange(len(sizes))
        self._strides = {size: coprime_strides(size) for size in np.unique(sizes).tolist()}
        self._left = np.zeros_like(sizes)
        self._place = np.zeros_like(sizes)
        self._stride = np.zeros_like(sizes)

    def select(self) -> Ints:
        """The next arm of each bandit, [B]."""
        return self.advance(self._rows)

    def advance(self, bandits: Ints) -> Ints:
        """The next arm of each of some distinct bandits, [n]."""
        over = bandits[self._left[bandits] == 0]
        if len(over):
            self._begin(over)
        arms = self._place[bandits]
        self._place[bandits] = (arms + self._stride[bandits]) % self._sizes[bandits]
        self._left[bandits] -= 1
        return arms

    def advance_to(self, bandits: Ints, allowed: Callable[[Ints, Ints], Bools]) -> Ints:
        """The next allowed arm of each of some distinct bandits, [n]; others are skipped.

        Args:
            bandits: Bandits with at least one allowed arm, [n].
            allowed: Whether the arms [m] of bandits [m] may be drawn, [m].
        """
        arms = self.advance(bandits)
        waiting = (~allowed(bandits, arms)).nonzero()[0]
        while len(waiting):
            arms[waiting] = self.advance(bandits[waiting])
            waiting = waiting[~allowed(bandits[waiting], arms[waiting])]
        return arms

    def _begin(self, bandits: Ints) -> None:
        sizes = self._sizes[bandits]
        self._left[bandits] = sizes
        self._place[bandits] = self._rng.integers(sizes)
        for size, strides in self._strides.items():
            chosen = bandits[sizes == size]
            if len(chosen):
                self._stride[chosen] = strides[self._rng.integers(len(strides), size=len(chosen))]

    def state(self) -> dict[str, Any]:
        """State as plain arrays."""
        return {"left": self._left, "place": self._place, "stride": self._stride}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore a state that `state` returned."""
        self._left[:] = state["left"]
        self._place[:] = state["place"]
        self._stride[:] = state["stride"]


class TensorPasses:
    """`UniformPasses` on a device; see there.

    Args:
        sizes: Arms of each bandit, int64 [B]; changed in place when bandits begin again.
        generator: Source of offsets and strides, of the same device.
    """

    def __init__(self, sizes: Tensor, generator: torch.Generator) -> None:
        self._sizes = sizes
        self._generator = generator
        kinds, kind = np.unique(sizes.cpu().numpy(), return_inverse=True)
        self._kinds = kinds
        self._counts = np.array([len(coprime_strides(size)) for size in kinds.tolist()])
        strides = [coprime_strides(size) for size in kinds.tolist()]
        table = np.zeros((2, len(strides), max(map(len, strides))), dtype=np.int64)
        for place, (size, row) in enumerate(zip(kinds.tolist(), strides, strict=True)):
            table[0, place, : len(row)] = row
            table[1, place, : len(row)] = [pow(stride, -1, size) for stride in row.tolist()]
        self._kind = torch.from_numpy(kind).to(sizes.device)
        self._strides, self._inverses = torch.from_numpy(table).to(sizes.device)
        self._choices = torch.from_numpy(self._counts[kind]).to(sizes.device)
        self._arms = torch.arange(int(kinds.max()), device=sizes.device)
        self._left = torch.zeros_like(sizes)
        self._place = torch.zeros_like(sizes)
        self._stride = torch.zeros_like(sizes)
        self._inverse = torch.zeros_like(sizes)

    def begin(self, rows: slice, sizes: NDArray[np.int64]) -> None:
        """Begin the passes of some bandits again, whose sizes are among those of the start."""
        kind = np.searchsorted(self._kinds, sizes)
        self._kind[rows] = torch.from_numpy(kind).to(self._kind.device)
        self._choices[rows] = torch.from_numpy(self._counts[kind]).to(self._kind.device)
        for tensor in self.tensors().values():
            tensor[rows] = 0

    def select(self) -> Tensor:
        """The next arm of each bandit, int64 [B]."""
        everyone = torch.ones_like(self._sizes, dtype=torch.bool)
        return self.advance(everyone)

    def advance(self, chosen: Tensor) -> Tensor:
        """The next arm of some bandits, int64 [B]; meaningless for those not chosen, bool [B]."""
        over = self._left == 0
        choice, begin = self.below(self._choices), self.below(self._sizes)
        arms = torch.where(over, begin, self._place)
        left = torch.where(over, self._sizes, self._left) - 1
        self._go_on(chosen, arms, left, self._fresh(over, choice))
        return arms

    def advance_to(self, chosen: Tensor, allowed: Tensor) -> Tensor:
        """The next allowed arm of some bandits; others are skipped.

        Each arm's place in the rest of the pass, or else in the next pass, is computed with the
        inverse of the stride. The first allowed place is the arm that `UniformPasses` finds by a
        loop; a loop would need the host.

        Args:
            chosen: The bandits that draw, each with at least one allowed arm, bool [B].
            allowed: Arms that may be drawn, and no padding, bool [B, A].

        Returns:
            int64 [B]; meaningless for bandits not chosen.
        """
        choice, begin = self.below(self._choices), self.below(self._sizes)
        size, left = self._sizes[:, None], self._left[:, None]
        here = (self._arms - self._place[:, None]) * self._inverse[:, None] % size
        inverse = self._inverses[self._kind, choice][:, None]
        later = (self._arms - begin[:, None]) * inverse % size + size
        order = torch.where(here < left, here, later)
        order = torch.where(allowed, order, 2 * size)
        first, arms = order.min(dim=1)
        over = first >= self._sizes
        passed = torch.where(over, first - self._sizes, first) + 1
        left = torch.where(over, self._sizes, self._left) - passed
        self._go_on(chosen, arms, left, self._fresh(over, choice))
        return arms

    def _fresh(self, over: Tensor, choice: Tensor) -> tuple[Tensor, Tensor]:
        """Stride and its inverse of each bandit, new where its pass is over, [B] each."""
        return (
            torch.where(over, self._strides[self._kind, choice], self._stride),
            torch.where(over, self._inverses[self._kind, choice], self._inverse),
        )

    def _go_on(
        self, chosen: Tensor, arms: Tensor, left: Tensor, order: tuple[Tensor, Tensor]
    ) -> None:
        stride, inverse = order
        place = (arms + stride) % self._sizes
        self._place.copy_(torch.where(chosen, place, self._place))
        self._left.copy_(torch.where(chosen, left, self._left))
        self._stride.copy_(torch.where(chosen, stride, self._stride))
        self._inverse.copy_(torch.where(chosen, inverse, self._inverse))

    def below(self, bounds: Tensor) -> Tensor:
        """Uniform integers in [0, bound) for each bound, int64."""
        uniforms = torch.rand(
            bounds.shape, dtype=torch.float64, device=bounds.device, generator=self._generator
        )
        return (uniforms * bounds).long()

    def tensors(self) -> dict[str, Tensor]:
        """All tensors that make the state."""
        return {
            "left": self._left,
            "place": self._place,
            "stride": self._stride,
            "inverse": self._inverse,
        }
