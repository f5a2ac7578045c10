"""The states of arms on the CPU: pulls in a window, columns, members, uniform passes.

A state is a pair (successes, failures) within the sliding window. Each state in use has a column
in the tables of `StateMembers`, which finds a uniform member of a state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hpo_mab.bandits._settings import Bools, Columns, Floats, Ints, Rewards, coprime_strides

if TYPE_CHECKING:
    from hpo_mab.bandits._thompson import ThompsonPolicy


class PullWindow:
    """A ring of the last ``memory`` pulls of each bandit.

    Each bandit has a position in the ring. While all are at the same slot, one slice is written
    instead of scattered cells, which is much faster. A pull that does not count (a non-finite loss)
    leaves its bandit one slot behind the others.

    Args:
        bandits: Number of bandits, ``B``.
        memory: Pulls kept, at least 1; None only counts them and removes none.
        arms: Arms of the largest bandit; sets the integer type of the ring.
    """

    def __init__(self, bandits: int, memory: int | None, *, arms: int) -> None:
        self.memory = memory
        self._pushed = np.zeros(bandits, dtype=np.int64)
        self._arms = np.zeros((memory or 0, bandits), dtype=np.min_scalar_type(arms))
        self._rewards = np.zeros((memory or 0, bandits), dtype=np.int8)
        #: Pulls of each bandit while all have equally many; None after that.
        self._common: int | None = 0

    @property
    def pushed(self) -> Ints:
        """Pulls so far, of each bandit, [B]."""
        if self._common is not None:
            self._pushed[:] = self._common
        return self._pushed

    def push(self, bandits: Ints, arms: Ints, rewards: Rewards) -> tuple[Ints, Ints, Rewards]:
        """Add one pull of each of some bandits.

        Args:
            bandits: Distinct bandits, [n].
            arms: Their arms pulled, [n].
            rewards: Their rewards, [n].

        Returns:
            The bandits whose oldest pull leaves the window, its arm and its reward, [m] each.
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
        """Restore a state that `state` returned."""
        for name, array in self.state().items():
            array[:] = state[name]
        first = int(self._pushed[0])
        self._common = first if (self._pushed == first).all() else None


#: Columns made at first; half as many are added when the states in use need more.
INITIAL_CAPACITY = 24

#: Column of the state without pulls.
PRIOR = 0

#: Column of all arms with more pulls than the limit, where there is one.
SHARED = 1


class StateColumns:
    """A column for each state (successes, failures) that some arm is in.

    Transitions by one pull are kept in tables, so moving an arm to another state is a look-up. A
    new state gets a column when the first arm enters it. Columns without arms are reused before
    any are added. The prior state (0, 0) is column `PRIOR`.

    With a limit there are at most ``(limit + 1)(limit + 2) / 2 + 1`` columns. Arms with more pulls
    are in column `SHARED`, whatever their state, until `find` gives them another.

    Args:
        members: The arms in each column.
        policy: Keeps numbers of its own for each column.
        limit: Most pulls of a state that has a separate column; None for no limit.
    """

    def __init__(
        self, members: StateMembers, policy: ThompsonPolicy, *, limit: int | None = None
    ) -> None:
        self._members = members
        self._policy = policy
        self._limit = limit
        self._index: dict[tuple[int, int], int] = {}
        self._free: list[int] = []
        self.pairs = np.zeros((0, 2), dtype=np.int32)
        #: Column after one pull is added / removed, by reward 0 or 1; -1 where not computed yet.
        self._after = np.full((2, 0, 2), -1, dtype=np.int16)
        self._resize(INITIAL_CAPACITY)
        self._fill(self._free.pop(), (0, 0))
        self._reserve_shared()

    @property
    def capacity(self) -> int:
        """Number of columns there is room for."""
        return len(self.pairs)

    def after(self, columns: Columns, rewards: Rewards, *, added: bool) -> Columns:
        """Columns of arms once a pull with these rewards is added, or removed, [n]."""
        table = 0 if added else 1
        after: Columns = self._after[table][columns, rewards]
        unknown = after < 0
        if unknown.any():
            moves = set(zip(columns[unknown].tolist(), rewards[unknown].tolist(), strict=True))
            self._learn_transitions(table, sorted(moves), keep=after[~unknown])
            after = self._after[table][columns, rewards]
        return after

    def find(self, pairs: NDArray[np.int32], *, keep: Columns) -> Columns:
        """Columns of states of at most ``limit`` pulls, [n, 2], that arms are about to enter.

        Args:
            pairs: Successes and failures.
            keep: Columns that other arms enter in the same step, so that they are not reused.
        """
        wanted = [(int(successes), int(failures)) for successes, failures in pairs]
        self._provide(wanted, keep=keep.tolist())
        return np.array([self._index[pair] for pair in wanted], dtype=np.int16)

    def restore(self, pairs: NDArray[np.int32]) -> None:
        """Copy the columns of another object from its `pairs`; unused columns are (-1, -1)."""
        self._index.clear()
        self._free.clear()
        self.pairs = self.pairs[:0]
        self._after = np.full((2, 0, 2), -1, dtype=np.int16)
        self._resize(len(pairs))
        self._free = [column for column in self._free if pairs[column, 0] < 0]
        for column, (successes, failures) in enumerate(pairs.tolist()):
            if successes >= 0:
                self._fill(column, (successes, failures))
        self._reserve_shared()

    def _learn_transitions(
        self, table: int, moves: list[tuple[int, int]], *, keep: Columns
    ) -> None:
        """Fill in unknown transitions, with new columns where they lead to new states.

        Args:
            table: 0 for a pull added, 1 for one removed.
            moves: Columns and rewards.
            keep: Columns that other arms enter in the same step, so that they are not reused.
        """
        sign = -1 if table else 1
        pairs = []
        for column, reward in moves:
            successes, failures = self.pairs[column].tolist()
            pairs.append((successes + sign * reward, failures + sign * (1 - reward)))
        own = [pair for pair in pairs if self._limit is None or sum(pair) <= self._limit]
        self._provide(own, keep=keep.tolist())
        for (column, reward), pair in zip(moves, pairs, strict=True):
            self._after[table, column, reward] = self._index.get(pair, SHARED)

    def _provide(self, pairs: list[tuple[int, int]], *, keep: list[int]) -> None:
        """Give each state a column, reusing none of ``keep``."""
        wanted = len(set(pairs) - self._index.keys())
        if wanted > len(self._free):
            known = [self._index[pair] for pair in pairs if pair in self._index]
            self._make_room(wanted, keep=[*keep, *known])
        for pair in pairs:
            if pair not in self._index:
                self._fill(self._free.pop(), pair)

    def _reserve_shared(self) -> None:
        """Reserve the shared column: pulls leave an arm in it, only `find` gives another."""
        if self._limit is not None:
            self._free = [column for column in self._free if column != SHARED]
            self._after[:, SHARED] = SHARED

    def _make_room(self, wanted: int, *, keep: list[int]) -> None:
        self._recycle(keep=keep)
        # Recycling scans all columns. It stays rare if a quarter of the columns is free after it.
        while len(self._free) < max(wanted, self.capacity // 4):
            self._resize(self.capacity * 3 // 2)

    def _recycle(self, *, keep: list[int]) -> None:
        in_use: Bools = np.any(self._members.counts, axis=0)
        in_use[[PRIOR, *keep, *self._free]] = True
        if self._limit is not None:
            in_use[SHARED] = True
        unused = np.flatnonzero(~in_use)
        for column in unused.tolist():
            del self._index[tuple(self.pairs[column].tolist())]
        self.pairs[unused] = -1
        # The lowest free column is taken first. The order then depends only on the columns in use,
        # so that a restored sampler continues with the same draws.
        self._free = sorted([*self._free, *unused.tolist()], reverse=True)
        self._after[:, unused] = -1
        self._after[np.isin(self._after, unused)] = -1

    def _fill(self, column: int, pair: tuple[int, int]) -> None:
        self._index[pair] = column
        self.pairs[column] = pair
        self._policy.define(column, *pair)

    def _resize(self, capacity: int) -> None:
        old = self.capacity
        self.pairs = np.pad(self.pairs, ((0, capacity - old), (0, 0)), constant_values=-1)
        self._after = np.pad(self._after, ((0, 0), (0, capacity - old), (0, 0)), constant_values=-1)
        self._free = [*range(capacity - 1, old - 1, -1), *self._free]
        self._members.resize(capacity)
        self._policy.resize(capacity)


#: Least arms of a block: scanning so few costs less than searching among several blocks.
MIN_BLOCK = 512


class StateMembers:
    """The state of every arm, and the number of arms in each state by bandit and by block.

    A uniform member of a state is the k-th one for a uniform k. Arms are divided into blocks of
    about the square root of their number, at least 512. The counts of the blocks give the k-th
    member's block, and a scan of it finds the member. The cost grows with the square root of the
    arms.

    Args:
        sizes: Arms of each bandit, [B].
    """

    def __init__(self, sizes: Ints) -> None:
        arms = int(sizes.max())
        self.arms = arms
        self.sizes = sizes
        self.rows = np.arange(len(sizes))
        self._blocks = -(-arms // max(MIN_BLOCK, int(arms**0.5)))
        self._length = -(-arms // self._blocks)
        self._width = self._blocks * self._length
        self._states = np.full((len(sizes), self._width), -1, dtype=np.int16)
        self.counts = np.zeros((len(sizes), 0), dtype=np.int32)
        counter = np.min_scalar_type(self._length)
        # A single block needs no counts: they would be those of `counts`.
        kept = self._blocks if self._blocks > 1 else 0
        self._block_counts = np.zeros((len(sizes), 0, kept), dtype=counter)

    @property
    def states(self) -> Columns:
        """Column of each arm's state, [B, A]; -1 for padding."""
        return self._states[:, : self.arms]

    def fill(self) -> None:
        """Put every arm in state 0."""
        self.restore(np.where(np.arange(self.arms) < self.sizes[:, None], 0, -1))

    def restore(self, states: NDArray[Any]) -> None:
        """Put every arm in the given state, [B, A]; -1 for padding."""
        self._states[:, : self.arms] = states
        bandits, arms = np.nonzero(self._states >= 0)
        columns = bandits * self.counts.shape[1] + self._states[bandits, arms]
        # Not `np.add.at`, which is ten times slower.
        self._count(self.counts, columns)
        if self._blocks > 1:
            self._count(self._block_counts, columns * self._blocks + arms // self._length)

    @staticmethod
    def _count(counts: NDArray[Any], places: Ints) -> None:
        """Set ``counts`` to how often each of its places, flattened, occurs."""
        counts[:] = np.bincount(places, minlength=counts.size).reshape(counts.shape)

    def resize(self, capacity: int) -> None:
        """Make room for ``capacity`` states; fewer than before sets all counts to 0."""
        more = capacity - self.counts.shape[1]
        if more < 0:
            self.counts, self._block_counts = self.counts[:, :0], self._block_counts[:, :0]
            more = capacity
        self.counts = np.pad(self.counts, ((0, 0), (0, more)))
        self._block_counts = np.pad(self._block_counts, ((0, 0), (0, more), (0, 0)))

    def columns_of(self, bandits: Ints, arms: Ints) -> Columns:
        """State of one arm of each of some bandits, [n]."""
        columns: Columns = self._states.ravel()[bandits * self._width + arms]
        return columns

    def move(self, bandits: Ints, arms: Ints, old: Columns, new: Columns) -> None:
        """Move one arm of each of some distinct bandits from its state to another, [n] each."""
        self._states.ravel()[bandits * self._width + arms] = new
        base = bandits * self.counts.shape[1]
        counts = self.counts.ravel()
        left, entered = base + old, base + new
        counts[left] -= 1
        counts[entered] += 1
        if self._blocks > 1:
            block, block_counts = arms // self._length, self._block_counts.ravel()
            block_counts[left * self._blocks + block] -= 1
            block_counts[entered * self._blocks + block] += 1

    def pick(self, bandits: Ints, columns: Ints, uniforms: Floats) -> Ints:
        """A uniform member of one state of each of some distinct bandits.

        Args:
            bandits: Bandits, [n].
            columns: States with at least one arm, [n].
            uniforms: Uniform on [0, 1), [n].

        Returns:
            Arms, [n].
        """
        members = self.counts.ravel()[bandits * self.counts.shape[1] + columns].astype(np.int64)
        rank = (uniforms * members).astype(np.int64)
        if self._blocks == 1:
            return self._find(self._states[bandits], columns, members, rank)
        inside = self._block_counts[bandits, columns]
        upto = inside.cumsum(axis=1, dtype=np.int64)
        block = (upto <= rank[:, None]).sum(axis=1)
        rows = np.arange(len(bandits))
        found = inside[rows, block].astype(np.int64)
        rank -= upto[rows, block] - found
        segments = self._states.reshape(-1, self._length)[bandits * self._blocks + block]
        chosen: Ints = self._find(segments, columns, found, rank) + block * self._length
        return chosen

    @staticmethod
    def _find(states: Columns, columns: Ints, members: Ints, rank: Ints) -> Ints:
        """Place of the member of the given rank in each row of ``states`` [n, L], [n]."""
        positions = (states == columns.astype(np.int16)[:, None]).ravel().nonzero()[0]
        rank += members.cumsum() - members
        found: Ints = positions[rank] % states.shape[1]
        return found


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

    def state(self) -> dict[str, Any]:
        """State as plain arrays."""
        return {"left": self._left, "place": self._place, "stride": self._stride}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore a state that `state` returned."""
        for name, array in self.state().items():
            array[:] = state[name]
