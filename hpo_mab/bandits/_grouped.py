"""Bandits on the CPU whose arms are counted by state, so that a draw costs next to nothing."""

from __future__ import annotations

from typing import Any

import numpy as np

from hpo_mab.bandits._arrays import Bools, Counts, Floats, Ints, Rewards
from hpo_mab.bandits._columns import PRIOR, StateColumns
from hpo_mab.bandits._members import StateMembers
from hpo_mab.bandits._passes import UniformPasses
from hpo_mab.bandits._policies import GroupedPolicy, Groups
from hpo_mab.bandits._window import PullWindow


class GroupedBandits:
    """``B`` independent Beta-Bernoulli bandits, in numpy.

    Arms with the same (successes, failures) are exchangeable: the policy chooses a state, then
    one of its arms is picked uniformly. That is exact in distribution, at a cost that depends on
    the number of states in use, not on the number of arms.

    With ``passes``, an arm in the prior's state is picked as the next of a shuffled pass that is in
    that state: arms of which nothing is known are visited as by shuffling, none twice before the
    others had their turn.

    Args:
        sizes: Ints of each bandit, [B].
        policy: Selection policy.
        memory: How many of a bandit's last pulls count; None forgets nothing.
        rng: Source of every draw.
        passes: Order of the arms in the prior's state; None picks them with replacement.
    """

    def __init__(
        self,
        sizes: Ints,
        *,
        policy: GroupedPolicy,
        memory: int | None,
        rng: np.random.Generator,
        passes: UniformPasses | None = None,
    ) -> None:
        self._policy = policy
        self._rng = rng
        self._passes = passes
        self._members = StateMembers(sizes)
        self._window = PullWindow(len(sizes), memory, arms=int(sizes.max()))
        self._columns = StateColumns(self)
        self._members.fill()

    def columns_in_use(self) -> Bools:
        """Which states hold at least one arm of any bandit, [S]."""
        in_use: Bools = np.any(self._members.counts, axis=0)
        return in_use

    def resize_columns(self, capacity: int) -> None:
        """Make room for ``capacity`` states."""
        self._members.resize(capacity)
        self._policy.resize(capacity)
        self._column_of = np.tile(np.arange(capacity), len(self._members.sizes))
        self._costs = np.empty(self._column_of.shape)

    def define_column(self, column: int, successes: int, failures: int) -> None:
        """Tell the policy of a new state."""
        self._policy.define(column, successes, failures)

    def select(self) -> Ints:
        """One arm of each bandit by the policy, [B]."""
        shape = self._members.counts.shape
        counts = self._members.counts.ravel()
        # Truth values first: numpy finds those faster than numbers.
        cells = counts.astype(np.bool_).nonzero()[0]
        race = self._rng.standard_exponential(len(cells))
        race /= counts[cells]
        np.log(race, out=race)
        groups = Groups(cells, self._column_of[cells], shape[1], self._window)
        self._costs.fill(np.inf)
        self._costs[cells] = self._policy.costs(race, groups)
        winners = self._costs.reshape(shape).argmin(axis=1)
        return self._pick(winners)

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

    def _pick(self, columns: Ints) -> Ints:
        """An arm of each bandit in the given state, [B]."""
        members, rows = self._members, self._members.rows
        uniforms = self._rng.random(len(rows))
        if self._passes is None:
            return members.pick(rows, columns, uniforms)
        arms = np.empty_like(rows)
        known, fresh = columns.nonzero()[0], (columns == PRIOR).nonzero()[0]
        arms[known] = members.pick(known, columns[known], uniforms[known])
        arms[fresh] = self._passes.advance_to(
            fresh, lambda bandits, arms: members.columns_of(bandits, arms) == PRIOR
        )
        return arms

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
            **self._order_state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take a state made by `state` of bandits made alike."""
        self._columns.restore(state["pairs"])
        self._members.restore(state["states"])
        self._window.load_state(state)
        if self._passes is not None:
            names = self._passes.state()
            self._passes.load_state({name: state[f"order_{name}"] for name in names})

    def _order_state(self) -> dict[str, Any]:
        if self._passes is None:
            return {}
        return {f"order_{name}": array for name, array in self._passes.state().items()}
