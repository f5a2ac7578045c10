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
        #: Pulls of each bandit while all have equally many; None once they have not.
        self._common: int | None = 0

    @property
    def pushed(self) -> Ints:
        """Pulls so far, of each bandit, [B]."""
        if self._common is not None:
            self._pushed[:] = self._common
        return self._pushed

    @property
    def totals(self) -> Ints:
        """Pulls that count, of each bandit, [B]."""
        return self.pushed if self.memory is None else np.minimum(self.pushed, self.memory)

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
        if self._common is not None and len(bandits) == len(self._pushed):
            self._common += 1
            return self._push_all(bandits, arms, rewards, self._common - 1)
        counts, self._common = self.pushed, None
        pushed = counts[bandits]
        counts[bandits] = pushed + 1
        if self.memory is None:
            return bandits[:0], arms[:0], rewards[:0]
        slots = pushed % self.memory
        old_arms, old_rewards = self._arms[slots, bandits], self._rewards[slots, bandits]
        self._arms[slots, bandits] = arms
        self._rewards[slots, bandits] = rewards
        full = pushed >= self.memory
        return bandits[full], old_arms[full].astype(np.int64), old_rewards[full]

    def _push_all(
        self, bandits: Ints, arms: Ints, rewards: Rewards, pushed: int
    ) -> tuple[Ints, Ints, Rewards]:
        """Add one pull of each bandit, each of which had ``pushed`` before."""
        if self.memory is None:
            return bandits[:0], arms[:0], rewards[:0]
        slot = pushed % self.memory
        old_arms, old_rewards = self._arms[slot].astype(np.int64), self._rewards[slot].copy()
        self._arms[slot] = arms
        self._rewards[slot] = rewards
        if pushed < self.memory:
            return bandits[:0], old_arms[:0], old_rewards[:0]
        return bandits, old_arms, old_rewards

    def state(self) -> dict[str, Any]:
        """State as plain arrays."""
        return {
            "pushed": self.pushed,
            "window_arms": self._arms,
            "window_rewards": self._rewards,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take a state made by `state`."""
        self._pushed[:] = state["pushed"]
        self._arms[:] = state["window_arms"]
        self._rewards[:] = state["window_rewards"]
        first = int(self._pushed[0])
        self._common = first if (self._pushed == first).all() else None
