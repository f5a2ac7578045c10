"""Which arms are in which state, kept so that a uniform member of a state is found quickly."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpo_mab.bandits._arrays import Columns, Floats, Ints

#: Least arms of a block: scanning them costs less than finding the block among several.
MIN_BLOCK = 512


class StateMembers:
    """The state of every arm, and the number of arms in each state by bandit and by block.

    A uniform member of a state is the k-th for a uniform k. Many arms are cut into blocks: the
    blocks' counts say in which block it is, a scan of that block where.

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
        # A block that holds all arms is counted by `counts`.
        kept = self._blocks if self._blocks > 1 else 0
        self._block_counts = np.zeros((len(sizes), 0, kept), dtype=counter)

    @property
    def states(self) -> Columns:
        """Column of each arm's state, [B, A]; -1 for padding."""
        return self._states[:, : self.arms]

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return self._states.nbytes + self.counts.nbytes + self._block_counts.nbytes

    def fill(self) -> None:
        """Put every arm in state 0."""
        self.restore(np.where(np.arange(self.arms) < self.sizes[:, None], 0, -1))

    def restore(self, states: NDArray[Any]) -> None:
        """Put every arm in the given state, [B, A]; -1 for padding."""
        self._states[:, : self.arms] = states
        self.counts[:] = 0
        self._block_counts[:] = 0
        bandits, arms = np.nonzero(self._states >= 0)
        columns = self._states[bandits, arms]
        np.add.at(self.counts, (bandits, columns), 1)
        if self._blocks > 1:
            np.add.at(self._block_counts, (bandits, columns, arms // self._length), 1)

    def resize(self, capacity: int) -> None:
        """Make room for ``capacity`` states; fewer than before drops all that is known."""
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

    def move(
        self,
        bandits: Ints,
        arms: Ints,
        old: Columns,
        new: Columns,
    ) -> None:
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
        places = (states == columns.astype(np.int16)[:, None]).ravel().nonzero()[0]
        rank += members.cumsum() - members
        found: Ints = places[rank] % states.shape[1]
        return found
