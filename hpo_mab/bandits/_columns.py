"""Columns for the arm states in use: the bookkeeping that lets arms be counted by state."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hpo_mab.bandits._arrays import Bools, Columns, Rewards

#: Columns made at first; half as many are added when the states in use need more.
INITIAL_CAPACITY = 24

#: Column of the state without pulls.
PRIOR = 0

#: Column of all arms with more pulls than have columns of their own, where there is such a limit.
SHARED = 1


class ColumnOwner(Protocol):
    """Who keeps arrays with one entry a column."""

    def columns_in_use(self) -> Bools:
        """Which columns hold at least one arm, [capacity]."""
        ...

    def resize_columns(self, capacity: int) -> None:
        """Make room for ``capacity`` columns, keeping those there are."""
        ...

    def define_column(self, column: int, successes: int, failures: int) -> None:
        """Fill a column's entries for the arms of a new state."""
        ...


class StateColumns:
    """A column for each state (successes, failures) that some arm is in.

    Transitions by one pull are kept in tables, so that moving an arm to another state is a
    look-up; a state never met before gets a column when the first arm moves to it. Columns
    without arms are used again before any are added. The prior state (0, 0) is column `PRIOR`.

    With a limit there are at most ``(limit + 1)(limit + 2) / 2 + 1`` columns: arms with more pulls
    are in column `SHARED`, whatever their state, and stay there until `find` gives them another.

    Args:
        owner: Keeper of the arrays with one entry a column.
        limit: Most pulls of a state with a column of its own; None for no limit.
    """

    def __init__(self, owner: ColumnOwner, *, limit: int | None = None) -> None:
        self._owner = owner
        self._limit = limit
        self._index: dict[tuple[int, int], int] = {}
        self._free: list[int] = []
        self.pairs = np.zeros((0, 2), dtype=np.int32)
        #: Column after one more pull / one pull less with reward 0 or 1; -1 where not known yet.
        self._after = np.full((2, 0, 2), -1, dtype=np.int16)
        self._resize(INITIAL_CAPACITY)
        self._fill(self._free.pop(), (0, 0))
        self._share()

    @property
    def capacity(self) -> int:
        """Number of columns there is room for."""
        return len(self.pairs)

    def added(self, columns: Columns, rewards: Rewards) -> Columns:
        """Columns of arms once a pull with these rewards is counted, [n]."""
        return self._step(0, columns, rewards)

    def removed(self, columns: Columns, rewards: Rewards) -> Columns:
        """Columns of arms once a pull with these rewards is forgotten, [n]."""
        return self._step(1, columns, rewards)

    def find(self, pairs: NDArray[np.int32], *, keep: Columns) -> Columns:
        """Columns of states of at most ``limit`` pulls, [n, 2], that arms are about to enter.

        Args:
            pairs: Successes and failures.
            keep: Columns that are entered at the same time: not to be taken for unused.
        """
        wanted = [(int(successes), int(failures)) for successes, failures in pairs]
        self._provide(wanted, keep=keep.tolist())
        return np.array([self._index[pair] for pair in wanted], dtype=np.int16)

    def restore(self, pairs: NDArray[np.int32]) -> None:
        """Take the columns of another object: its `pairs`, unused columns being (-1, -1)."""
        self._index.clear()
        self._free.clear()
        self.pairs = self.pairs[:0]
        self._after = np.full((2, 0, 2), -1, dtype=np.int16)
        self._resize(len(pairs))
        self._free = [column for column in self._free if pairs[column, 0] < 0]
        for column, (successes, failures) in enumerate(pairs.tolist()):
            if successes >= 0:
                self._fill(column, (successes, failures))
        self._share()

    def _step(self, table: int, columns: Columns, rewards: Rewards) -> Columns:
        after: Columns = self._after[table][columns, rewards]
        unknown = after < 0
        if unknown.any():
            moves = set(zip(columns[unknown].tolist(), rewards[unknown].tolist(), strict=True))
            self._learn_transitions(table, sorted(moves), keep=after[~unknown])
            after = self._after[table][columns, rewards]
        return after

    def _learn_transitions(
        self, table: int, moves: list[tuple[int, int]], *, keep: Columns
    ) -> None:
        """Fill in unknown transitions, with new columns where they lead to new states.

        Args:
            table: 0 for a pull added, 1 for one removed.
            moves: Columns and rewards.
            keep: Columns that are entered at the same time: not to be taken for unused.
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
        """Give each state a column, and take none that is among ``keep``."""
        wanted = len(set(pairs) - self._index.keys())
        if wanted > len(self._free):
            known = [self._index[pair] for pair in pairs if pair in self._index]
            self._make_room(wanted, keep=[*keep, *known])
        for pair in pairs:
            if pair not in self._index:
                self._fill(self._free.pop(), pair)

    def _share(self) -> None:
        """Set the shared column aside, which no pull leaves."""
        if self._limit is not None:
            self._free = [column for column in self._free if column != SHARED]
            self._after[:, SHARED] = SHARED

    def _make_room(self, wanted: int, *, keep: list[int]) -> None:
        self._recycle(keep=keep)
        # Growing early keeps recycling rare: each time it has a quarter of the columns to give.
        while len(self._free) < max(wanted, self.capacity // 4):
            self._resize(self.capacity * 3 // 2)

    def _recycle(self, *, keep: list[int]) -> None:
        in_use = self._owner.columns_in_use()
        in_use[[PRIOR, *keep, *self._free]] = True
        if self._limit is not None:
            in_use[SHARED] = True
        unused = np.flatnonzero(~in_use)
        for column in unused.tolist():
            del self._index[tuple(self.pairs[column].tolist())]
        self.pairs[unused] = -1
        # The lowest is taken first, so that the order depends on nothing but what is in use.
        self._free = sorted([*self._free, *unused.tolist()], reverse=True)
        self._after[:, unused] = -1
        self._after[np.isin(self._after, unused)] = -1

    def _fill(self, column: int, pair: tuple[int, int]) -> None:
        self._index[pair] = column
        self.pairs[column] = pair
        self._owner.define_column(column, *pair)

    def _resize(self, capacity: int) -> None:
        old = self.capacity
        self.pairs = np.pad(self.pairs, ((0, capacity - old), (0, 0)), constant_values=-1)
        self._after = np.pad(self._after, ((0, 0), (0, capacity - old), (0, 0)), constant_values=-1)
        self._free = [*range(capacity - 1, old - 1, -1), *self._free]
        self._owner.resize_columns(capacity)
