"""The engine of the CPU: Thompson sampling in NumPy, with arms counted by state.

Only its interface uses tensors. The cost of a draw hardly depends on the number of examples.
"""

from __future__ import annotations

import json
from collections.abc import Callable
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
    Floats,
    Ints,
    LossBinarizer,
    Rewards,
    coprime_strides,
    draw_statistics,
)
from hpo_mab.bandits._thompson import (
    MOST_PULLS,
    PRIOR,
    StateMembers,
    ThompsonPolicy,
    columns_after,
    columns_of,
    states_within,
)


class PullWindow:
    """A ring of the last ``memory`` pulls of each bandit; all bandits are pulled at once.

    Args:
        bandits: Number of bandits, ``B``.
        memory: Pulls kept, at least 1.
        arms: Arms of the largest bandit; sets the integer type of the ring.
    """

    def __init__(self, bandits: int, memory: int, *, arms: int) -> None:
        self._memory = memory
        self._pushed = np.zeros((), dtype=np.int64)
        self._arms = np.zeros((memory, bandits), dtype=np.min_scalar_type(arms))
        self._rewards = np.zeros((memory, bandits), dtype=np.int8)

    def push(self, arms: Ints, rewards: Rewards) -> tuple[Ints, Rewards] | None:
        """Add one pull of each bandit.

        Args:
            arms: Arms pulled, [B].
            rewards: Their rewards, [B].

        Returns:
            Arm and reward of the pull that leaves each bandit's window, [B] each; None while the
            windows are not full.
        """
        pushed = int(self._pushed)
        slot, full = pushed % self._memory, pushed >= self._memory
        leaving = (self._arms[slot].astype(np.int64), self._rewards[slot].copy()) if full else None
        self._arms[slot] = arms
        self._rewards[slot] = rewards
        self._pushed += 1
        return leaving

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All arrays that make the state."""
        return {
            "pushed": self._pushed,
            "window_arms": self._arms,
            "window_rewards": self._rewards,
        }


class UniformPasses:
    """Passes over each bandit's arms without replacement, independent of rewards.

    In each pass a bandit visits its arms in the order ``(offset + stride * i) mod A``. The offset
    and the stride are random. A stride coprime to ``A`` takes each arm once. Each arm is equally
    likely at each place. A stored permutation would need memory for every arm.

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

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All arrays that make the state."""
        return {"left": self._left, "place": self._place, "stride": self._stride}


class HostEngine(BanditEngine):
    """Beta-Bernoulli bandits under Thompson sampling on the CPU, exact in distribution.

    Arms with the same (successes, failures) are exchangeable. The policy chooses a state, then one
    of its arms is picked uniformly. The cost depends on the number of states in use, not on the
    number of arms. Arms with over 12 pulls (`MOST_PULLS`) are drawn one by one.

    Without replacement, arms in the prior's state are picked in the order of a shuffled pass. Arms
    without counted pulls are then visited as by shuffling: none is visited twice before all others
    were.

    Args:
        shares: Examples of each bandit, [B, A]; shorter shares end in -1.
        settings: Knobs; the policy must be Thompson sampling, and ``discount`` None.
        rng: Source of every draw.
    """

    def __init__(
        self, shares: NDArray[np.int32], settings: BanditSettings, rng: np.random.Generator
    ) -> None:
        bandits, arms = shares.shape
        self._shares = shares
        self._settings = settings
        self._rng = rng
        self._starts = np.arange(bandits) * arms
        self._sizes = (shares >= 0).sum(axis=1)
        self._mean_size = float(self._sizes.mean())
        memory = settings.window(self._mean_size)
        self._window = None if memory is None else PullWindow(bandits, memory, arms=arms)
        # An arm has at most as many pulls as the window; the smallest signed type that holds them.
        counter = np.dtype(np.int32) if memory is None else np.min_scalar_type(-memory - 1)
        #: Successes and failures of the arms that are drawn one by one, [B * A, 2].
        self._pairs = np.zeros((shares.size, 2), dtype=counter)
        # No arm has more pulls than the window; each column costs time at every draw.
        pulls = MOST_PULLS if memory is None else min(MOST_PULLS, memory)
        self._known = states_within(pulls)
        self._after = columns_after(self._known)
        #: Column of the arms that are drawn one by one.
        self._single_column = len(self._known) - 1
        self._members = StateMembers(self._sizes, len(self._known))
        self._policy = ThompsonPolicy(settings.prior, arms, pulls=pulls)
        self._uniform_passes = UniformPasses(self._sizes, rng)
        self._unpulled_passes = UniformPasses(self._sizes, rng) if settings.shuffles else None
        self._binarizer = LossBinarizer(settings.loss_decay, settings.rule)
        #: For each bandit and column: the column, and the cost of its best arm, [B * S].
        self._column_of = np.tile(np.arange(len(self._known), dtype=np.int32), bandits)
        self._costs = np.empty(self._members.counts.size)
        #: Draws of each arm, [B * A].
        self._draws = np.zeros(shares.size, dtype=np.uint16)
        self._rewarded = 0
        self._judged = 0

    def draw(self, *, uniform: bool) -> tuple[Tensor, Tensor | None, Any]:
        """Draw one arm of each bandit."""
        arms = self._uniform_passes.select() if uniform else self._select()
        positions = self._starts + arms
        # A larger count would wrap around to 0.
        self._draws[positions] += self._draws.take(positions) < 65535
        indices = torch.from_numpy(self._shares.take(positions).astype(np.int64))
        if uniform or not self._settings.correction:
            return indices, None, arms
        return indices, torch.from_numpy(self._weights(arms)), arms

    def learn(self, arms: Any, losses: Tensor) -> None:
        """Reward the arms by their losses; nothing changes if one is not finite."""
        rewards = self._binarizer.rewards(losses.cpu().numpy())
        if rewards is None:
            return
        self._rewarded += int(np.count_nonzero(rewards))
        self._judged += len(rewards)
        leaving = None if self._window is None else self._window.push(arms, rewards)
        if leaving is not None:
            self._move(*leaving, added=False)
        self._move(arms, rewards, added=True)

    def counts(self) -> Tensor:
        """Successes and failures of each arm that count, float64 [B, A, 2]."""
        return torch.from_numpy(
            self._all_pairs().reshape(*self._shares.shape, 2).astype(np.float64)
        )

    def propensities(self) -> Tensor:
        """Probability of each arm in the next draw by the policy, float64 [B, A]."""
        table, states = self._propensity_table()
        found = np.take_along_axis(table, np.maximum(states, 0), axis=1)
        held = self._shares >= 0
        mixed = self._mixed(np.where(held, found, 0.0), held / self._sizes[:, None])
        return torch.from_numpy(mixed)

    def statistics(self) -> dict[str, float]:
        """``reward_rate`` since the last call, and ``concentration``."""
        draws = torch.from_numpy(self._draws.astype(np.int32))
        rewards = torch.tensor([[self._rewarded, self._judged]], device="cpu")
        (statistics,) = draw_statistics(draws[None], rewards, examples=int(self._sizes.sum()))
        self._rewarded = self._judged = 0
        return statistics

    def state(self) -> dict[str, Any]:
        """State as tensors and plain values."""
        arrays = {**self._arrays(), "pairs": self._all_pairs()}
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
        for name, array in {**self._arrays(), "pairs": self._pairs}.items():
            array[...] = state[name].cpu().numpy()
        self._binarizer.total = state["loss_total"]
        self._binarizer.weight = state["loss_weight"]
        self._rewarded = state["rewarded"]
        self._judged = state["judged"]
        self._rng.bit_generator.state = json.loads(state["rng"])
        columns = columns_of(self._pairs, self._single_column)
        self._members.restore(np.where(self._shares < 0, -1, columns.reshape(self._shares.shape)))

    def _arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays that make the state, except the counts of the arms."""
        order = {} if self._unpulled_passes is None else self._unpulled_passes.arrays()
        return {
            "draws": self._draws,
            **self._uniform_passes.arrays(),
            **{f"order_{name}": array for name, array in order.items()},
            **({} if self._window is None else self._window.arrays()),
        }

    def _move(self, arms: Ints, rewards: Rewards, *, added: bool) -> None:
        """Add or remove one pull of each bandit, [B] each."""
        old = self._members.columns_of(self._members.rows, arms)
        # From a small table: reading each arm's counts would miss the CPU cache after a step.
        new = self._after[int(added), old, rewards]
        # Bandits whose arm is drawn one by one; `entering`: since this pull.
        single = np.flatnonzero(new == self._single_column)
        if len(single):
            positions = self._starts[single] + arms[single]
            entering = old[single] != self._single_column
            self._pairs[positions[entering]] = self._known[old[single[entering]]]
            self._pairs[positions, 1 - rewards[single]] += 1 if added else -1
            new[single] = columns_of(self._pairs[positions], self._single_column)
        self._members.move(arms, old, new)

    def _all_pairs(self) -> NDArray[Any]:
        """Successes and failures of each arm, [B * A, 2]."""
        states = self._members.states.ravel()
        pairs = self._known[np.maximum(states, 0)].astype(self._pairs.dtype)
        shared = states == self._single_column
        pairs[shared] = self._pairs[shared]
        return pairs

    def _select(self) -> Ints:
        """One arm of each bandit, by the policy or uniformly, [B]."""
        arms = self._policy_arms()
        if self._settings.uniform:
            chosen = np.flatnonzero(self._rng.random(len(arms)) < self._settings.uniform)
            if self._settings.shuffles:
                arms[chosen] = self._uniform_passes.advance(chosen)
            else:
                arms[chosen] = self._rng.integers(self._sizes[chosen])
        return arms

    def _policy_arms(self) -> Ints:
        """One arm of each bandit by the policy, [B]."""
        counts = self._members.counts.ravel()
        # As booleans, because numpy's `nonzero` is faster on them than on integers.
        cells = counts.astype(np.bool_).nonzero()[0]
        # `take` is up to several times faster than an index.
        columns = self._column_of.take(cells)
        shared = self._single_arms()
        if len(shared):
            own = columns != self._single_column
            cells, columns = cells[own], columns[own]
        # The least of n Exp(1) variates is distributed as E / n, so one variate E stands for the n
        # arms of a state. The policy turns log(E / n) into the cost of the state's best arm; the
        # least cost wins. Arms of a state are exchangeable, so a uniform one is an exact draw.
        race = self._rng.standard_exponential(len(cells))
        race /= counts.take(cells)
        np.log(race, out=race)
        self._costs.fill(np.inf)
        self._costs[cells] = self._policy.best_draws(race, columns)
        table = self._costs.reshape(self._members.counts.shape)
        winners = table.argmin(axis=1)
        if not len(shared):
            return self._pick(self._members.rows, winners)
        singles = self._policy.draws(self._pairs[shared], self._rng)
        return self._pick_with(shared, singles, winners, table[self._members.rows, winners])

    def _single_arms(self) -> Ints:
        """Positions ``bandit * A + arm`` of the arms drawn one by one, ascending, [V]."""
        if not self._members.counts[:, self._single_column].any():
            return self._members.rows[:0]
        positions: Ints = (self._members.states == self._single_column).ravel().nonzero()[0]
        return positions

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

    def _propensity_table(self) -> tuple[Floats, Ints | Columns]:
        """Probabilities by bandit and state, [B, S], and the state of each arm, [B, A]."""
        counts, states = self._members.counts, self._members.states
        shared = self._single_arms()
        if not len(shared):
            return self._policy.propensities(counts, self._known), states
        # Arms drawn one by one get a temporary state for each distinct pair, after the states with
        # a column. The integral then treats all arms in the same way.
        pairs, kinds = np.unique(self._pairs[shared], axis=0, return_inverse=True)
        kinds = kinds.reshape(-1)  # In NumPy 2.0.0 it has two dimensions.
        more = np.zeros((len(counts), len(pairs)), dtype=counts.dtype)
        np.add.at(more, (shared // self._members.arms, kinds), 1)
        own = counts.copy()
        own[:, self._single_column] = 0
        known = np.concatenate([self._known, pairs])
        table = self._policy.propensities(np.hstack([own, more]), known)
        states = states.astype(np.int64)
        states.ravel()[shared] = counts.shape[1] + kinds
        return table, states

    def _weights(self, arms: Ints) -> NDArray[np.float32]:
        """``(1 / (A p))^correction`` with the mean number of arms ``A = N / B``, [B]."""
        table, states = self._propensity_table()
        rows = self._members.rows
        propensity = self._mixed(table[rows, states[rows, arms]], 1 / self._sizes)
        weights = (self._mean_size * propensity) ** -self._settings.correction
        return weights.astype(np.float32)

    def _mixed(self, policy: Floats, uniform: Floats) -> Floats:
        """Probabilities of the mixture of policy and uniform picks."""
        share = self._settings.uniform
        return share * uniform + (1 - share) * policy
