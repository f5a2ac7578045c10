"""The engine of the CPU: Thompson sampling in NumPy, with arms counted by state.

Only its interface uses tensors. The cost of a draw hardly depends on the number of examples.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpo_mab.bandits._settings import (
    BanditEngine,
    BanditSettings,
    Bools,
    Columns,
    Counts,
    Figures,
    Floats,
    Ints,
    LossBinarizer,
    Rewards,
    tenth_of,
)
from hpo_mab.bandits._states import (
    PRIOR,
    SHARED,
    PullWindow,
    StateColumns,
    StateMembers,
    UniformPasses,
)
from hpo_mab.bandits._thompson import ThompsonPolicy


class GroupedBandits:
    """``B`` independent Beta-Bernoulli bandits under Thompson sampling, in numpy.

    Arms with the same (successes, failures) are exchangeable. The policy chooses a state, then one
    of its arms is picked uniformly. That is exact in distribution. The cost depends on the number
    of states in use, not on the number of arms.

    With ``passes``, arms in the prior's state are picked in the order of a shuffled pass. Arms
    without counted pulls are then visited as by shuffling: none is visited twice before all others
    were.

    With a ``limit``, arms with more pulls are drawn one by one, also exactly. Without forgetting,
    hardly two of them are in one state, and the number of states would grow without bound.

    Args:
        sizes: Arms of each bandit, [B].
        policy: Thompson sampling by state.
        memory: How many of a bandit's last pulls count; None counts all.
        rng: Source of every draw.
        passes: Order of the arms in the prior's state; None picks them with replacement.
        limit: Most pulls of an arm that is counted by state; None counts every arm by state.
    """

    def __init__(
        self,
        sizes: Ints,
        *,
        policy: ThompsonPolicy,
        memory: int | None,
        rng: np.random.Generator,
        passes: UniformPasses | None = None,
        limit: int | None = None,
    ) -> None:
        self._policy = policy
        self._rng = rng
        self._unpulled_passes = passes
        self._members = StateMembers(sizes)
        self._window = PullWindow(len(sizes), memory, arms=int(sizes.max()))
        self._limit = limit
        #: Successes and failures of each arm, [B * A, 2]; empty without a limit.
        held = 0 if limit is None else len(sizes) * self._members.arms
        self._pairs = np.zeros((held, 2), dtype=np.int32)
        self._columns = StateColumns(self._members, policy, limit=limit)
        self._members.fill()
        #: For each bandit and column: the column, and the cost of its best arm.
        self._column_of = np.zeros(0, dtype=np.int64)
        self._costs = np.empty(0)

    def select(self) -> Ints:
        """One arm of each bandit by the policy, [B]."""
        shape = self._members.counts.shape
        counts = self._members.counts.ravel()
        if self._costs.size != counts.size:  # Columns were added.
            self._column_of = np.tile(np.arange(shape[1]), shape[0])
            self._costs = np.empty(counts.size)
        # As booleans, because numpy's `nonzero` is faster on them than on integers.
        cells = counts.astype(np.bool_).nonzero()[0]
        columns = self._column_of[cells]
        shared = self._shared_arms()
        if len(shared):
            own = columns != SHARED
            cells, columns = cells[own], columns[own]
        # One variate E ~ Exp(1) stands for the n arms of a state: E / n is the least of n of them.
        # The policy turns log(E / n) into a cost: the state of the best arm has the least.
        # Arms of a state are exchangeable, so a uniform one is an exact draw.
        race = self._rng.standard_exponential(len(cells))
        race /= counts[cells]
        np.log(race, out=race)
        self._costs.fill(np.inf)
        self._costs[cells] = self._policy.best_draws(race, columns)
        table = self._costs.reshape(shape)
        winners = table.argmin(axis=1)
        if not len(shared):
            return self._pick(self._members.rows, winners)
        singles = self._policy.draws(self._pairs[shared], self._rng)
        return self._pick_with(shared, singles, winners, table[self._members.rows, winners])

    def learn(self, arms: Ints, rewards: Rewards, valid: Bools | None = None) -> None:
        """Count one pull of each bandit, and remove the pull that leaves its window.

        Args:
            arms: Arms pulled, [B]; not necessarily the last selected.
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
        table, states = self._propensity_table()
        return np.where(states < 0, 0.0, np.take_along_axis(table, np.maximum(states, 0), axis=1))

    def propensities_of(self, arms: Ints) -> Floats:
        """Probability of one arm of each bandit in the next `select`, [B]."""
        table, states = self._propensity_table()
        rows = self._members.rows
        found: Floats = table[rows, states[rows, arms]]
        return found

    def counts(self) -> Counts:
        """Successes and failures of each arm that count, [B, A, 2]; 0 for padding."""
        states = self._members.states
        if self._limit is None:
            return np.where(states[..., None] < 0, np.int32(0), self._columns.pairs[states])
        counts: Counts = self._pairs.reshape(*states.shape, 2)
        return counts

    def _shared_arms(self) -> Ints:
        """Positions ``bandit * A + arm`` of the arms drawn one by one, ascending, [V]."""
        if self._limit is None or not self._members.counts[:, SHARED].any():
            return self._members.rows[:0]
        positions: Ints = (self._members.states == SHARED).ravel().nonzero()[0]
        return positions

    def _propensity_table(self) -> tuple[Floats, Ints | Columns]:
        """Probabilities by bandit and state, [B, S], and the state of each arm, [B, A]."""
        counts, states = self._members.counts, self._members.states
        shared = self._shared_arms()
        if not len(shared):
            return self._policy.propensities(counts), states
        # Arms drawn one by one get a temporary state for each distinct pair, after the states with
        # a column. The integral then treats all arms in the same way.
        pairs, kinds = np.unique(self._pairs[shared], axis=0, return_inverse=True)
        more = np.zeros((len(counts), len(pairs)), dtype=counts.dtype)
        np.add.at(more, (shared // self._members.arms, kinds), 1)
        own = counts.copy()
        own[:, SHARED] = 0
        table = self._policy.propensities(np.hstack([own, more]), pairs)
        states = states.astype(np.int64)
        states.ravel()[shared] = counts.shape[1] + kinds
        return table, states

    def _pick_with(self, shared: Ints, costs: Floats, winners: Ints, least: Floats) -> Ints:
        """An arm of each bandit: of the winning state, or a single one that costs less, [B].

        Args:
            shared: Positions of single arms, ascending, [V].
            costs: Their costs, [V].
            winners: State of the least cost of each bandit, [B].
            least: That cost, [B].
        """
        bandits = shared // self._members.arms
        np.minimum.at(least, bandits, costs)
        first = (costs == least[bandits]).nonzero()[0]
        arms = np.full_like(winners, -1)
        arms[bandits[first]] = shared[first] % self._members.arms
        others = (arms < 0).nonzero()[0]
        arms[others] = self._pick(others, winners[others])
        return arms

    def _pick(self, bandits: Ints, columns: Ints) -> Ints:
        """An arm of each of some distinct bandits in the given state, [n]."""
        members = self._members
        uniforms = self._rng.random(len(bandits))
        if self._unpulled_passes is None:
            return members.pick(bandits, columns, uniforms)
        arms = np.empty_like(bandits)
        known, fresh = columns.nonzero()[0], (columns == PRIOR).nonzero()[0]
        arms[known] = members.pick(bandits[known], columns[known], uniforms[known])
        arms[fresh] = self._unpulled_passes.advance_to(
            bandits[fresh], lambda bandits, arms: members.columns_of(bandits, arms) == PRIOR
        )
        return arms

    def _move(self, bandits: Ints, arms: Ints, rewards: Rewards, *, added: bool) -> None:
        """Move arms to the state after a pull is added or removed, one of each bandit, [n]."""
        old = self._members.columns_of(bandits, arms)
        new = self._columns.after(old, rewards, added=added)
        if self._limit is not None:
            positions = bandits * self._members.arms + arms
            self._pairs[positions, 1 - rewards] += 1 if added else -1
            if not added:
                self._leave_shared(positions, new)
        self._members.move(bandits, arms, old, new)

    def _leave_shared(self, positions: Ints, columns: Columns) -> None:
        """Set the column of arms that have at most ``limit`` pulls again, in place."""
        pairs = self._pairs[positions]
        leaving = (columns == SHARED) & (pairs.sum(axis=1) <= self._limit)
        if leaving.any():
            columns[leaving] = self._columns.find(pairs[leaving], keep=columns)

    def state(self) -> dict[str, Any]:
        """State as plain arrays."""
        passes = {} if self._unpulled_passes is None else self._unpulled_passes.state()
        return {
            "pairs": self._columns.pairs,
            "states": self._members.states,
            "pulls": self._pairs,
            **self._window.state(),
            **{f"order_{name}": array for name, array in passes.items()},
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore a state that `state` returned, of bandits made with the same arguments."""
        self._columns.restore(state["pairs"])
        self._members.restore(state["states"])
        self._pairs[:] = state["pulls"]
        self._window.load_state(state)
        if self._unpulled_passes is not None:
            names = self._unpulled_passes.state()
            self._unpulled_passes.load_state({name: state[f"order_{name}"] for name in names})


#: Most pulls of an arm counted by state, if more pulls of a bandit count than it has arms.
#: ``benchmarks/long_memory.py`` measures the cost of other limits.
MOST_PULLS = 12

#: Steps whose draws and rewards are counted at once.
_COUNTED_AT_ONCE = 32


class HostEngine(BanditEngine):
    """Bandits on the CPU, exact in distribution; the cost hardly depends on the number of arms.

    Args:
        shares: Examples of each bandit, [B, A]; shorter shares end in -1.
        settings: Knobs; the policy must be Thompson sampling, and ``discount`` None.
        rng: Source of every draw.

    Examples:
        >>> import numpy as np
        >>> from hpo_mab.bandits import BanditSettings, HostEngine, stratified_shares
        >>> rng = np.random.default_rng(0)
        >>> shares = stratified_shares(np.zeros(12, dtype=np.int64), 4, rng)
        >>> engine = HostEngine(shares, BanditSettings(), rng)
        >>> examples, weights, arms = engine.draw(uniform=False)
        >>> examples.shape
        torch.Size([4])
    """

    def __init__(
        self, shares: NDArray[np.int32], settings: BanditSettings, rng: np.random.Generator
    ) -> None:
        self._shares = shares
        self._settings = settings
        self._rng = rng
        self._starts = np.arange(len(shares)) * shares.shape[1]
        self._sizes = (shares >= 0).sum(axis=1)
        self._mean_size = float(self._sizes.mean())
        self._uniform_passes = UniformPasses(self._sizes, rng)
        memory = settings.window(self._mean_size)
        self._bandits = GroupedBandits(
            self._sizes,
            policy=ThompsonPolicy(settings.prior, shares.shape[1]),
            memory=memory,
            rng=rng,
            passes=UniformPasses(self._sizes, rng) if settings.shuffles else None,
            limit=MOST_PULLS if memory is None or memory > self._mean_size else None,
        )
        self._binarizer = LossBinarizer(settings.loss_decay, settings.rule)
        self._draws = np.zeros(shares.shape, dtype=np.uint16)
        self._uncounted_draws: list[Ints] = []
        self._uncounted_rewards: list[Rewards] = []
        self._rewarded = 0
        self._judged = 0

    @property
    def shares(self) -> Tensor:
        """Examples of each bandit, int32 [B, A]."""
        return torch.from_numpy(self._shares)

    def draw(self, *, uniform: bool) -> tuple[Tensor, Tensor | None, Any]:
        """Draw one arm of each bandit."""
        arms = self._uniform_passes.select() if uniform else self._select()
        positions = self._starts + arms
        self._uncounted_draws.append(positions)
        if len(self._uncounted_draws) == _COUNTED_AT_ONCE:
            self._count()
        indices = torch.from_numpy(self._shares.ravel()[positions].astype(np.int64))
        if uniform or not self._settings.correction:
            return indices, None, arms
        return indices, torch.from_numpy(self._weights(arms)), arms

    def learn(self, arms: Any, losses: Tensor) -> None:
        """Reward the arms by their losses."""
        rewards, valid = self._binarizer.rewards(losses.cpu().numpy())
        self._bandits.learn(arms, rewards, valid)
        self._uncounted_rewards.append(rewards)
        self._judged += len(rewards) if valid is None else int(np.count_nonzero(valid))

    def counts(self) -> Tensor:
        """Successes and failures of each arm that count, float64 [B, A, 2]."""
        return torch.from_numpy(self._bandits.counts().astype(np.float64))

    def propensities(self) -> Tensor:
        """Probability of each arm in the next draw by the policy, float64 [B, A]."""
        uniform = (self._shares >= 0) / self._sizes[:, None]
        mixed = self._mixed(self._bandits.propensities(), uniform)
        return torch.from_numpy(mixed)

    def figures(self) -> Figures:
        """Counts since the last call."""
        self._count()
        rewarded, judged = self._rewarded, self._judged
        self._rewarded = self._judged = 0
        draws = self._draws.ravel()
        top = tenth_of(int(self._sizes.sum()))
        # Padding is never drawn, so its zeros change neither sum.
        most = np.partition(draws, len(draws) - top)[-top:]
        return Figures(rewarded, judged, int(draws.sum()), int(most.sum()))

    def state(self) -> dict[str, Any]:
        """State as tensors and plain values."""
        self._count()
        arrays = {**self._bandits.state(), **self._uniform_passes.state(), "draws": self._draws}
        return {
            **{name: torch.from_numpy(array.copy()) for name, array in arrays.items()},
            "loss_total": self._binarizer.total,
            "loss_weight": self._binarizer.weight,
            "rewarded": self._rewarded,
            "judged": self._judged,
            # JSON, because its 128-bit integers cannot be loaded with ``weights_only=True``.
            "rng": json.dumps(self._rng.bit_generator.state),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore a state that `state` returned."""
        arrays = {key: value.numpy() for key, value in state.items() if torch.is_tensor(value)}
        self._bandits.load_state(arrays)
        self._uniform_passes.load_state(arrays)
        self._draws[:] = arrays["draws"]
        self._uncounted_draws.clear()
        self._uncounted_rewards.clear()
        self._binarizer.total = state["loss_total"]
        self._binarizer.weight = state["loss_weight"]
        self._rewarded = state["rewarded"]
        self._judged = state["judged"]
        self._rng.bit_generator.state = json.loads(state["rng"])

    def _count(self) -> None:
        """Add the uncounted draws and rewards to the counts."""
        self._rewarded += sum(int(np.count_nonzero(one)) for one in self._uncounted_rewards)
        self._uncounted_rewards.clear()
        if not self._uncounted_draws:
            return
        positions, times = np.unique(np.concatenate(self._uncounted_draws), return_counts=True)
        self._uncounted_draws.clear()
        draws = self._draws.ravel()
        # Limited to the largest uint16, because a larger count would wrap around to 0.
        draws[positions] = np.minimum(draws[positions] + times, np.iinfo(draws.dtype).max)

    def _select(self) -> Ints:
        arms = self._bandits.select()
        if self._settings.uniform:
            chosen = np.flatnonzero(self._rng.random(len(arms)) < self._settings.uniform)
            if self._settings.shuffles:
                arms[chosen] = self._uniform_passes.advance(chosen)
            else:
                arms[chosen] = self._rng.integers(self._sizes[chosen])
        return arms

    def _weights(self, arms: Ints) -> NDArray[np.float32]:
        """``(1 / (A p))^correction`` with the mean number of arms ``A = N / B``, [B]."""
        propensity = self._mixed(self._bandits.propensities_of(arms), 1 / self._sizes)
        weights = (self._mean_size * propensity) ** -self._settings.correction
        return weights.astype(np.float32)

    def _mixed(self, policy: Floats, uniform: Floats) -> Floats:
        """Probabilities of the mixture of policy and uniform picks."""
        share = self._settings.uniform
        return share * uniform + (1 - share) * policy
