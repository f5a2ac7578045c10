"""Bandits on the CPU whose arms are counted by state, so that a draw costs next to nothing."""

from __future__ import annotations

from typing import Any

import numpy as np

from hpo_mab.bandits._arrays import Bools, Counts, Floats, Ints, Rewards
from hpo_mab.bandits._columns import StateColumns
from hpo_mab.bandits._members import StateMembers
from hpo_mab.bandits._policies import GroupedPolicy
from hpo_mab.bandits._window import PullWindow


class GroupedBandits:
    """``B`` independent Beta-Bernoulli bandits, in numpy.

    Arms with the same (successes, failures) are exchangeable: the policy chooses a state, then
    one of its arms is picked uniformly. That is exact in distribution, at a cost that depends on
    the number of states in use, not on the number of arms.

    Args:
        sizes: Ints of each bandit, [B].
        policy: Selection policy.
        memory: How many of a bandit's last pulls count; None forgets nothing.
        rng: Source of every draw.
    """

    def __init__(
        self,
        sizes: Ints,
        *,
        policy: GroupedPolicy,
        memory: int | None,
        rng: np.random.Generator,
    ) -> None:
        self._policy = policy
        self._rng = rng
        self._members = StateMembers(sizes)
        self._window = PullWindow(len(sizes), memory, arms=int(sizes.max()))
        self._columns = StateColumns(self)
        self._log = np.log(np.maximum(np.arange(sizes.max() + 1), 0.5))
        self._members.fill()

    def columns_in_use(self) -> Bools:
        """Which states hold at least one arm of any bandit, [S]."""
        in_use: Bools = np.any(self._members.counts, axis=0)
        return in_use

    def resize_columns(self, capacity: int) -> None:
        """Make room for ``capacity`` states."""
        self._members.resize(capacity)
        self._policy.resize(capacity)

    def define_column(self, column: int, successes: int, failures: int) -> None:
        """Tell the policy of a new state."""
        self._policy.define(column, successes, failures)

    def select(self) -> Ints:
        """One arm of each bandit by the policy, [B]."""
        counts = self._members.counts
        bandits, capacity = counts.shape
        groups = np.flatnonzero(counts.ravel())
        owners = groups // capacity
        race = np.log(self._rng.standard_exponential(len(groups)))
        race -= self._log[counts.ravel()[groups]]
        costs = np.full(counts.size, np.inf)
        costs[groups] = self._policy.costs(
            race, owners, groups - owners * capacity, self._window.totals
        )
        winners = costs.reshape(bandits, capacity).argmin(axis=1)
        return self._members.pick(winners, self._rng.random(bandits))

    def learn(self, arms: Ints, rewards: Rewards, valid: Bools | None = None) -> None:
        """Count one pull of each bandit, and forget the one that leaves its window.

        Args:
            arms: Ints pulled, [B]; not necessarily the last selected.
            rewards: Rewards 0 or 1, [B].
            valid: Which bandits' pulls count, [B]; None for all.
        """
        bandits = self._members.rows if valid is None else np.flatnonzero(valid)
        if valid is not None:
            arms, rewards = arms[bandits], rewards[bandits]
        forgetful, old_arms, old_rewards = self._window.push(bandits, arms, rewards)
        if len(forgetful):
            self._move(forgetful, old_arms, old_rewards, added=False)
        self._move(bandits, arms, rewards, added=True)

    def propensities(self) -> Floats:
        """Probability of each arm in the next `select`, [B, A]; 0 for padding."""
        table = self._policy.propensities(self._members.counts, self._window.totals)
        states = self._members.states
        return np.where(states < 0, 0.0, np.take_along_axis(table, np.maximum(states, 0), axis=1))

    def propensities_of(self, arms: Ints) -> Floats:
        """Probability of one arm of each bandit in the next `select`, [B]."""
        table = self._policy.propensities(self._members.counts, self._window.totals)
        rows = self._members.rows
        return table[rows, self._members.columns_of(rows, arms)]

    def counts(self) -> Counts:
        """Successes and failures of each arm that count, [B, A, 2]; 0 for padding."""
        states = self._members.states
        return np.where(states[..., None] < 0, np.int32(0), self._columns.pairs[states])

    def _move(self, bandits: Ints, arms: Ints, rewards: Rewards, *, added: bool) -> None:
        old = self._members.columns_of(bandits, arms)
        step = self._columns.added if added else self._columns.removed
        self._members.move(bandits, arms, old, step(old, rewards))

    def state(self) -> dict[str, Any]:
        """State as plain arrays."""
        return {
            "pairs": self._columns.pairs,
            "states": self._members.states,
            **self._window.state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take a state made by `state` of bandits made alike."""
        self._columns.restore(state["pairs"])
        self._members.restore(state["states"])
        self._window.load_state(state)
