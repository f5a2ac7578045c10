"""Thompson sampling of arms grouped by state: which state wins, and each arm's propensity.

Draws come from tables of the upper tails of Beta distributions.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from hpo_mab.bandits._settings import Counts, Floats, Ints

#: Grid of the quantile tables: log of the hazard -log(1 - q) of the upper-tail probability q.
LOG_HAZARD_LOW = -34.0
LOG_HAZARD_HIGH = 4.0
QUANTILE_POINTS = 1024


#: SciPy's inverse is computed for one point in four; cubic interpolation gives the others.
COARSE = 4

#: Most distribution functions that a grid keeps in memory, of some kilobytes each.
MOST_COLUMNS = 4096

Column = NDArray[np.float32]


@functools.lru_cache(maxsize=4096)
def log_upper_quantiles(a: float, b: float) -> NDArray[np.float32]:
    """Log of one minus the upper quantile of Beta(a, b), over a grid of tail probabilities.

    The best of ``n`` independent draws from Beta(a, b) exceeds ``x`` with probability
    ``1 - F(x)^n``; it is the value whose upper tail is ``q = 1 - exp(-E / n)``, ``E ~ Exp(1)``.
    As a function of ``t = log(E / n)`` the logarithm of ``1 - x`` is smooth. As ``t -> -inf``, the
    range of the best of many arms, it becomes linear: ``1 - F(x)`` is proportional to
    ``(1 - x)^b`` near 1. So linear interpolation is accurate exactly where it is needed; a normal
    approximation is not.

    Args:
        a: First parameter, positive.
        b: Second parameter, positive.

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
    table = -np.exp(windows @ _cubic_weights()).ravel().astype(np.float32)
    table.flags.writeable = False
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

    #: Tail mass left out at either end, as a logarithm; and the distance of points.
    TAIL = 14.0
    STEP = 0.06

    def __init__(self, prior: tuple[float, float], arms: int) -> None:
        # The mass of Beta(a, b) below z falls as exp(a z), that above as exp(-b z); the best of n
        # arms has n times the latter. Pulls only make a and b larger than the prior's.
        low = -self.TAIL / min(1.0, prior[0])
        high = (self.TAIL + float(np.log(arms))) / min(1.0, prior[1])
        self.points = np.linspace(low, high, 1 + int((high - low) / self.STEP))
        self._columns: dict[tuple[float, float], tuple[Column, Column]] = {}

    def columns(self, a: float, b: float) -> tuple[Column, Column]:
        """Log of the distribution function of Beta(a, b), and its derivative in ``z``, [Q]."""
        if (a, b) not in self._columns:
            if len(self._columns) >= MOST_COLUMNS:
                self._columns.clear()
            self._columns[a, b] = self._compute(a, b)
        return self._columns[a, b]

    def _compute(self, a: float, b: float) -> tuple[Column, Column]:
        from scipy import special

        # expit(-z) is 1 - x; the subtraction would lose all digits for x near 1.
        x, rest = special.expit(self.points), special.expit(-self.points)
        upper = special.betainc(b, a, rest)
        with np.errstate(divide="ignore"):
            log_cdf = np.where(upper < 0.5, np.log1p(-upper), np.log(special.betainc(a, b, x)))
        # Limited, because minus infinity times a count of 0 would be NaN; exp(-80) is negligible.
        log_cdf = np.maximum(log_cdf, -80.0)
        log_x, log_rest = special.log_expit(self.points), special.log_expit(-self.points)
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
    """

    def __init__(self, prior: tuple[float, float], arms: int) -> None:
        self.prior = prior
        self._parameters: dict[int, tuple[float, float]] = {}
        self._quantiles = np.zeros((0, QUANTILE_POINTS), dtype=np.float32)
        self._grid = LogitGrid(prior, arms)
        self._scale = (QUANTILE_POINTS - 1) / (LOG_HAZARD_HIGH - LOG_HAZARD_LOW)

    def resize(self, capacity: int) -> None:
        """Make room for ``capacity`` states."""
        self._quantiles = np.resize(self._quantiles, (capacity, QUANTILE_POINTS))

    def define(self, column: int, successes: int, failures: int) -> None:
        """Fill in the quantile table of a column."""
        self._parameters[column] = self._posterior(successes, failures)
        self._quantiles[column] = log_upper_quantiles(*self._parameters[column])

    def best_draws(self, race: Floats, columns: Ints) -> Floats:
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
        low = table[left]
        left += 1
        place *= table[left] - low
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

    def propensities(self, counts: Counts, more: Counts | None = None) -> Floats:
        """Probability that an arm's draw beats all others of its bandit, [B, S].

        ``p_g = integral of (f_g / F_g)(x) prod_h F_h(x)^(n_h) dx``, over a grid: the arm's draw is
        ``x``, and those of all other arms are below. The logarithm of the product is a sum weighted
        by counts, so the integral is two matrix products.

        Args:
            counts: Arms of each bandit in each state, [B, S], the last M without a column.
            more: Successes and failures of these M states, [M, 2]; None for none.

        Returns:
            Probabilities; their sum weighted by ``counts`` is 1 for each bandit.
        """
        used = np.flatnonzero(counts.any(axis=0))
        with_column = counts.shape[1] - (0 if more is None else len(more))
        columns = [
            self._grid.columns(
                *(
                    self._parameters[column]
                    if more is None or column < with_column
                    else self._posterior(*more[column - with_column].tolist())
                )
            )
            for column in used.tolist()
        ]
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
