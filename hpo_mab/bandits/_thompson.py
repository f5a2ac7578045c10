"""Thompson sampling of arms grouped by state: which state wins, and each arm's propensity.

A state is a pair (successes, failures) of the pulls that count. Draws come from tables of the upper
tails of Beta distributions.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpo_mab.bandits._settings import Columns, Counts, Floats, Ints

#: Most pulls of an arm that is counted by state. Each state costs time at every draw, and without
#: forgetting, arms of more pulls rarely share a state. ``benchmarks/draw_cost.py`` measures
#: a step's cost by epoch.
MOST_PULLS = 12

#: Column of the arms without pulls.
PRIOR = 0


def states_within(pulls: int) -> Counts:
    """Successes and failures of each column, by pulls, then successes, [S, 2].

    Args:
        pulls: Most pulls of an arm with a column of its own. The last row stands for all others.
    """
    states = [(s, total - s) for total in range(pulls + 1) for s in range(total + 1)]
    return np.array([*states, (-1, -1)], dtype=np.int32)


def columns_of(pairs: NDArray[Any], shared: int) -> Columns:
    """Column of each pair of successes and failures, [n, 2] to [n]; at most ``shared``."""
    successes, failures = pairs.astype(np.int64).T
    pulls = successes + failures
    # p (p + 1) / 2 states have fewer than p pulls.
    columns = np.minimum((pulls * (pulls + 1) >> 1) + successes, shared)
    found: Columns = columns.astype(np.int16)
    return found


#: Least arms of a block: scanning so few costs less than searching among several blocks.
MIN_BLOCK = 512


class StateMembers:
    """The state of every arm, and the number of arms in each state by bandit and by block.

    A uniform member of a state is the k-th one for a uniform k. Arms are divided into blocks of
    about the square root of their number, at least 512. The counts of the blocks give the k-th
    member's block, and a scan of it finds the member. The cost grows with the square root of the
    arms. At first every arm is in the prior's state.

    Args:
        sizes: Arms of each bandit, [B].
        columns: Number of states, ``S``.
    """

    def __init__(self, sizes: Ints, columns: int) -> None:
        arms = int(sizes.max())
        self.arms = arms
        self.rows = np.arange(len(sizes))
        self._blocks = -(-arms // max(MIN_BLOCK, int(arms**0.5)))
        self._length = -(-arms // self._blocks)
        self._width = self._blocks * self._length
        #: Where each bandit begins in the flat arrays.
        self._starts = self.rows * self._width
        self._cells = self.rows * columns
        self._states = np.full((len(sizes), self._width), -1, dtype=np.int16)
        self.counts = np.zeros((len(sizes), columns), dtype=np.min_scalar_type(-arms - 1))
        counter = np.min_scalar_type(self._length)
        # A single block needs no counts: they would be those of `counts`.
        kept = self._blocks if self._blocks > 1 else 0
        self._block_counts = np.zeros((len(sizes), columns, kept), dtype=counter)
        self.restore(np.where(np.arange(arms) < sizes[:, None], PRIOR, -1))

    @property
    def states(self) -> Columns:
        """Column of each arm's state, [B, A]; -1 for padding."""
        return self._states[:, : self.arms]

    def restore(self, states: NDArray[Any]) -> None:
        """Put every arm in the given state, [B, A]; -1 for padding."""
        self._states[:, : self.arms] = states
        bandits, arms = np.nonzero(self._states >= 0)
        columns = self._cells[bandits] + self._states[bandits, arms]
        # Not `np.add.at`, which is ten times slower.
        self._count(self.counts, columns)
        if self._blocks > 1:
            self._count(self._block_counts, columns * self._blocks + arms // self._length)

    @staticmethod
    def _count(counts: NDArray[Any], places: Ints) -> None:
        """Set ``counts`` to how often each of its places, flattened, occurs."""
        counts[:] = np.bincount(places, minlength=counts.size).reshape(counts.shape)

    def columns_of(self, bandits: Ints, arms: Ints) -> Columns:
        """State of one arm of each of some bandits, [n]."""
        columns: Columns = self._states.take(self._starts.take(bandits) + arms)
        return columns

    def move(self, arms: Ints, old: Columns, new: Columns) -> None:
        """Move one arm of each bandit from its state to another, [B] each."""
        counts = self.counts.ravel()
        left, entered = self._cells + old, self._cells + new
        self._states.ravel()[self._starts + arms] = new
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
        members = self.counts.take(self._cells.take(bandits) + columns).astype(np.int64)
        rank = (uniforms * members).astype(np.int64)
        if self._blocks == 1:
            return self._find(self._states.take(bandits, axis=0), columns, members, rank)
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


def columns_after(known: Counts) -> NDArray[np.int16]:
    """Column of an arm after a pull is removed or added, by its column and the reward, [2, S, 2].

    The first table is for removed pulls, the second for added ones. An arm with too many pulls has
    the shared column before and after.

    Args:
        known: From `states_within`.
    """
    shared = len(known) - 1
    after = np.full((2, len(known), 2), shared, dtype=np.int16)
    for added, change in ((0, -1), (1, 1)):
        for reward, step in ((0, (0, change)), (1, (change, 0))):
            pairs = np.maximum(known[:-1] + np.array(step), 0)
            after[added, :-1, reward] = columns_of(pairs, shared)
    return after


#: Grid of the quantile tables: log of the hazard -log(1 - q) of the upper-tail probability q.
LOG_HAZARD_LOW = -34.0
LOG_HAZARD_HIGH = 4.0
QUANTILE_POINTS = 1024


#: SciPy's inverse is computed for one point in four; cubic interpolation gives the others.
COARSE = 4

Column = NDArray[np.float32]


@functools.lru_cache(maxsize=16)
def quantile_tables(a: float, b: float, pulls: int) -> NDArray[np.float32]:
    """`log_upper_quantiles` of each column but the shared one, [S - 1, Q], for Beta(a, b)."""
    states = states_within(pulls)[:-1].tolist()
    tables = np.stack([log_upper_quantiles(a + s, b + f) for s, f in states])
    tables.flags.writeable = False
    return tables


def log_upper_quantiles(a: float, b: float) -> NDArray[np.float32]:
    """Log of one minus the upper quantile of Beta(a, b), over a grid of tail probabilities.

    The best of ``n`` independent draws from Beta(a, b) exceeds ``x`` with probability
    ``1 - F(x)^n``; it is the value whose upper tail is ``q = 1 - exp(-E / n)``, ``E ~ Exp(1)``.
    As a function of ``t = log(E / n)`` the logarithm of ``1 - x`` is smooth. As ``t -> -inf``, the
    range of the best of many arms, it becomes linear: ``1 - F(x)`` is proportional to
    ``(1 - x)^b`` near 1. So linear interpolation is accurate exactly where it is needed; a normal
    approximation is not.

    Returns:
        ``log(1 - x)`` at `QUANTILE_POINTS` equidistant ``t`` from `LOG_HAZARD_LOW` to
        `LOG_HAZARD_HIGH`.
    """
    # Imported here, because SciPy takes a third of a second and no other sampler needs it.
    from scipy import special

    # One point in four is computed, plus one to the left and two to the right for the cubics.
    step = (LOG_HAZARD_HIGH - LOG_HAZARD_LOW) / (QUANTILE_POINTS - 1)
    positions = np.arange(-1, QUANTILE_POINTS // COARSE + 2) * COARSE
    hazard = np.exp(LOG_HAZARD_LOW + step * positions)
    upper = hazard < 1
    # 1 - X is Beta(b, a). Always the smaller tail probability is inverted. The larger one rounds to
    # 1 in double precision, and its quantile would be lost.
    negative = np.empty(len(positions))
    negative[upper] = -np.log(special.betaincinv(b, a, -np.expm1(-hazard[upper])))
    negative[~upper] = -np.log1p(-special.betaincinv(a, b, np.exp(-hazard[~upper])))
    # Interpolated in logarithms: at the upper end the values fall by dozens of orders of magnitude,
    # which no cubic follows.
    windows = np.lib.stride_tricks.sliding_window_view(np.log(negative), 4)
    table: NDArray[np.float32] = -np.exp(windows @ _cubic_weights()).ravel().astype(np.float32)
    return table


def _cubic_weights() -> Floats:
    """Weights of four points at -1, 0, 1, 2 for the cubic through them at 0, 1/4, 1/2, 3/4."""
    x = np.arange(COARSE) / COARSE
    return np.stack(
        [
            -x * (x - 1) * (x - 2) / 6,
            (x + 1) * (x - 1) * (x - 2) / 2,
            -(x + 1) * x * (x - 2) / 2,
            (x + 1) * x * (x - 1) / 6,
        ]
    )


class LogitGrid:
    """A grid of ``z = logit x`` on which distribution functions of Beta draws are tabulated.

    In ``z`` both tails of every density fall off exponentially. A density of ``a + b`` pulls is at
    least ``2 / sqrt(a + b)`` wide. So the trapezoidal rule is more accurate than needed.

    Args:
        prior: Beta parameters of an arm without pulls.
        arms: Arms of the largest bandit: the more arms, the further the best lies up the tail.
    """

    #: Minus the logarithm of the tail mass left out at either end, and the spacing of the points.
    TAIL = 14.0
    STEP = 0.06

    def __init__(self, prior: tuple[float, float], arms: int) -> None:
        # The mass of Beta(a, b) below z falls as exp(a z), that above as exp(-b z); the best of n
        # arms has n times the latter. Pulls only make a and b larger than the prior's.
        low = -self.TAIL / min(1.0, prior[0])
        high = (self.TAIL + float(np.log(arms))) / min(1.0, prior[1])
        self.points = np.linspace(low, high, 1 + int((high - low) / self.STEP))
        # They take some kilobytes each. The function does not refer to the grid, so the grid is
        # freed without Python's collector.
        self.columns = functools.lru_cache(maxsize=4096)(functools.partial(_columns, self.points))


def _columns(points: NDArray[np.float64], a: float, b: float) -> tuple[Column, Column]:
    """Log of the distribution function of Beta(a, b), and its derivative in ``z``, [Q]."""
    from scipy import special

    # expit(-z) is 1 - x; the subtraction would lose all digits for x near 1.
    x, rest = special.expit(points), special.expit(-points)
    upper = special.betainc(b, a, rest)
    with np.errstate(divide="ignore"):
        log_cdf = np.where(upper < 0.5, np.log1p(-upper), np.log(special.betainc(a, b, x)))
    # Limited, because minus infinity times a count of 0 would be NaN; exp(-80) is negligible.
    log_cdf = np.maximum(log_cdf, -80.0)
    log_x, log_rest = special.log_expit(points), special.log_expit(-points)
    # The density in z is that in x times dx/dz = x (1 - x), so the exponents are a and b.
    log_density = a * log_x + b * log_rest - special.betaln(a, b)
    return log_cdf.astype(np.float32), np.exp(log_density - log_cdf).astype(np.float32)


class ThompsonPolicy:
    """Thompson sampling: the arm of the greatest draw from the posteriors, exact by groups.

    The best of ``n`` draws from a distribution ``F`` is below ``x`` with probability ``F(x)^n``. It
    solves ``F(x)^n = exp(-E)``, ``E ~ Exp(1)``, where the right side is uniform. So its upper-tail
    probability is ``1 - exp(-E / n)``, and the best draw of a group is one look-up in a table of
    the upper tail (`log_upper_quantiles`). Single arms are drawn by Gamma variates.

    Args:
        prior: Beta parameters of an arm without pulls, both positive.
        arms: Arms of the largest bandit; sets the grid on which propensities are integrated.
        pulls: Most pulls of an arm with a column of its own, see `states_within`.
    """

    def __init__(self, prior: tuple[float, float], arms: int, *, pulls: int = MOST_PULLS) -> None:
        # As floats: the counts that are added to it may be of one byte.
        self.prior = (float(prior[0]), float(prior[1]))
        self._arms = arms
        self._pulls = pulls
        self._grid = LogitGrid(self.prior, arms)
        self._quantiles = quantile_tables(*self.prior, pulls)
        self._scale = (QUANTILE_POINTS - 1) / (LOG_HAZARD_HIGH - LOG_HAZARD_LOW)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles hold no tables, which follow from the prior."""
        return functools.partial(type(self), pulls=self._pulls), (self.prior, self._arms)

    def best_draws(self, race: Floats, columns: NDArray[np.int32]) -> Floats:
        """Log of one minus the best draw of each group: the least is a bandit's choice, [G].

        Args:
            race: ``log(E / n)`` of each group of ``n`` arms in one state, [G]; is overwritten.
            columns: States of the groups, [G].
        """
        place = race
        place -= LOG_HAZARD_LOW
        place *= self._scale
        left = place.astype(np.int64)
        # Below the grid the line of its first interval is extended, where the table is linear. An
        # exponential variate made of 64 bits is at most 44.4, below the other end, exp(4).
        np.maximum(left, 0, out=left)
        place -= left
        left += columns * QUANTILE_POINTS
        table = self._quantiles.ravel()
        low = table.take(left)
        left += 1
        place *= table.take(left) - low
        place += low
        return place

    def draws(self, pairs: Counts, rng: np.random.Generator) -> Floats:
        """Log of one minus a draw of each arm's posterior, [V].

        Args:
            pairs: Successes and failures of the arms, [V, 2].
            rng: Source of the draws.
        """
        first, second = (rng.standard_gamma(self.prior[side] + pairs[:, side]) for side in (0, 1))
        # second / (first + second) is one minus the draw; the subtraction loses digits near 1.
        return np.log(second / (first + second))

    def propensities(self, counts: Counts, pairs: Counts) -> Floats:
        """Probability that an arm's draw beats all others of its bandit, [B, S].

        ``p_g = integral of (f_g / F_g)(x) prod_h F_h(x)^(n_h) dx``, over a grid: the arm's draw is
        ``x``, and those of all other arms are below. The logarithm of the product is a sum weighted
        by counts, so the integral is two matrix products.

        Args:
            counts: Arms of each bandit in each state, [B, S].
            pairs: Successes and failures of each state, [S, 2]; not read where no arm is.

        Returns:
            Probabilities; their sum weighted by ``counts`` is 1 for each bandit.
        """
        used = np.flatnonzero(counts.any(axis=0))
        columns = [self._grid.columns(*self._posterior(*pair)) for pair in pairs[used].tolist()]
        log_cdf = np.stack([column[0] for column in columns])
        reversed_hazard = np.stack([column[1] for column in columns])
        held = counts[:, used]
        best = np.exp(held.astype(np.float32) @ log_cdf)
        # The spacing of the grid cancels in the division, which makes each bandit's sum 1.
        found = (best @ reversed_hazard.T).astype(np.float64)
        table = np.zeros(counts.shape)
        table[:, used] = found / (held * found).sum(axis=1, keepdims=True)
        return table

    def _posterior(self, successes: int, failures: int) -> tuple[float, float]:
        return self.prior[0] + successes, self.prior[1] + failures
