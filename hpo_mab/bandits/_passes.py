"""Uniform sampling within bandits: every arm once a pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from hpo_mab.bandits._arrays import Bools, Ints


def coprime_strides(size: int) -> Ints:
    """Strides in [1, size] that visit each of ``size`` places once before they return."""
    strides = np.arange(1, size + 1)
    coprime: Ints = strides[np.gcd(strides, size) == 1]
    return coprime


class UniformPasses:
    """Passes over each bandit's arms without replacement, whatever the rewards.

    Pass by pass, a bandit visits its arms in the order ``(offset + stride * i) mod A`` with a
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
        """The next arm of each of some distinct bandits that is allowed, [n]; others are passed by.

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
        """Take a state made by `state`."""
        self._left[:] = state["left"]
        self._place[:] = state["place"]
        self._stride[:] = state["stride"]
