"""The sliding window: each bandit's last pulls, in order."""

from __future__ import annotations

from typing import Any

import numpy as np

from hpo_mab.bandits._arrays import Ints, Rewards


class PullWindow:
    """A ring of the last ``memory`` pulls of each bandit.

    Bandits push on their own: after a pull that did not count (a non-finite loss) a bandit's ring
    is one behind the others'.

    Args:
        bandits: Number of bandits, ``B``.
        memory: Pulls kept, at least 1; None keeps count of them but forgets none.
        arms: Arms of the largest bandit; sets the width of what is kept.
    """

    def __init__(self, bandits: int, memory: int | None, *, arms: int) -> None:
        self.memory = memory
        self._pushed = np.zeros(bandits, dtype=np.int64)
        self._arms = np.zeros((bandits, memory or 0), dtype=np.min_scalar_type(arms))
        self._rewards = np.zeros((bandits, memory or 0), dtype=np.int8)

    @property
    def totals(self) -> Ints:
        """Pulls that count, of each bandit, [B]."""
        if self.memory is None:
            return self._pushed
        return np.minimum(self._pushed, self.memory)

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return self._pushed.nbytes + self._arms.nbytes + self._rewards.nbytes

    def push(self, bandits: Ints, arms: Ints, rewards: Rewards) -> tuple[Ints, Ints, Rewards]:
        """Add one pull of each of some bandits.

        Args:
            bandits: Distinct bandits, [n].
            arms: Their arms pulled, [n].
            rewards: Their rewards, [n].

        Returns:
            The bandits that forget a pull by this, that pull's arm and its reward, [m] each.
        """
        pushed = self._pushed[bandits]
        self._pushed[bandits] = pushed + 1
        if self.memory is None:
            return bandits[:0], arms[:0], rewards[:0]
        slots = bandits * self.memory + pushed % self.memory
        ring_arms, ring_rewards = self._arms.ravel(), self._rewards.ravel()
        old_arms, old_rewards = ring_arms[slots], ring_rewards[slots]
        ring_arms[slots] = arms
        ring_rewards[slots] = rewards
        full = pushed >= self.memory
        if full.all():
            return bandits, old_arms.astype(np.int64), old_rewards
        return bandits[full], old_arms[full].astype(np.int64), old_rewards[full]

    def state(self) -> dict[str, Any]:
        """State as plain arrays."""
        return {
            "pushed": self._pushed,
            "window_arms": self._arms,
            "window_rewards": self._rewards,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take a state made by `state`."""
        self._pushed[:] = state["pushed"]
        self._arms[:] = state["window_arms"]
        self._rewards[:] = state["window_rewards"]
