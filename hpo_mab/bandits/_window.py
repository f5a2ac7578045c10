"""The sliding window: each bandit's last pulls, in order."""

from __future__ import annotations

from typing import Any

import numpy as np

from hpo_mab.bandits._arrays import Ints, Rewards


class PullWindow:
    """A ring of the last ``memory`` pulls of each bandit.

    Bandits push on their own: after a pull that did not count (a non-finite loss) a bandit's ring
    is one behind the others'. Until then all are at the same slot, which is far faster.

    Args:
        bandits: Number of bandits, ``B``.
        memory: Pulls kept, at least 1; None keeps count of them but forgets none.
        arms: Arms of the largest bandit; sets the width of what is kept.
    """

    def __init__(self, bandits: int, memory: int | None, *, arms: int) -> None:
        self.memory = memory
        self._pushed = np.zeros(bandits, dtype=np.int64)
        self._arms = np.zeros((memory or 0, bandits), dtype=np.min_scalar_type(arms))
        self._rewards = np.zeros((memory or 0, bandits), dtype=np.int8)
        self._in_step = True

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
        self._in_step = self._in_step and len(bandits) == len(self._pushed)
        if self.memory is None:
            self._pushed[bandits] += 1
            return bandits[:0], arms[:0], rewards[:0]
        if self._in_step:
            return self._push_all(bandits, arms, rewards, memory=self.memory)
        pushed = self._pushed[bandits]
        self._pushed[bandits] = pushed + 1
        slots = pushed % self.memory
        old_arms, old_rewards = self._arms[slots, bandits], self._rewards[slots, bandits]
        self._arms[slots, bandits] = arms
        self._rewards[slots, bandits] = rewards
        full = pushed >= self.memory
        return bandits[full], old_arms[full].astype(np.int64), old_rewards[full]

    def _push_all(
        self, bandits: Ints, arms: Ints, rewards: Rewards, *, memory: int
    ) -> tuple[Ints, Ints, Rewards]:
        pushed = int(self._pushed[0])
        self._pushed += 1
        slot = pushed % memory
        old_arms, old_rewards = self._arms[slot].astype(np.int64), self._rewards[slot].copy()
        self._arms[slot] = arms
        self._rewards[slot] = rewards
        if pushed < memory:
            return bandits[:0], old_arms[:0], old_rewards[:0]
        return bandits, old_arms, old_rewards

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
        self._in_step = bool((self._pushed == self._pushed[0]).all())
