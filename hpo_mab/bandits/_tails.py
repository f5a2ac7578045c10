"""Tables of Beta distributions: upper-tail quantiles, and distribution functions over a grid."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from hpo_mab.bandits._arrays import Floats

#: Grid of the quantile tables: log of the hazard -log(1 - q) of the upper-tail probability q.
LOG_HAZARD_LOW = -34.0
LOG_HAZARD_HIGH = 4.0
QUANTILE_POINTS = 1024


#: Points of a table for each that is solved for; cubic polynomials give the others.
COARSE = 4

#: Distribution functions that a grid keeps, of some kilobytes each.
MOST_COLUMNS = 4096

Column = NDArray[np.float32]


@functools.lru_cache(maxsize=4096)
def log_upper_quantiles(a: float, b: float) -> NDArray[np.float32]:
    """Log of one minus the upper quantile of Beta(a, b), over a grid of tail probabilities.

    The best of ``n`` independent draws from Beta(a, b) exceeds ``x`` with probability
    ``1 - F(x)^n``; it is the value whose upper tail is ``q = 1 - exp(-E / n)``, ``E ~ Exp(1)``.
    Tabulated against ``t = log(E / n)`` the logarithm of ``1 - x`` is smooth, and linear as
    ``t -> -inf``, where the best of many arms lives: linear interpolation is accurate there.

    Args:
        a: First parameter, positive.
        b: Second parameter, positive.

    Returns:
        ``log(1 - x)`` at `QUANTILE_POINTS` equidistant ``t`` from `LOG_HAZARD_LOW` to
        `LOG_HAZARD_HIGH`.
    """
    # SciPy is imported late: a third of a second that no other sampler needs.
    from scipy import special

    # One point in four is solved for, with one more to the left and two to the right.
    step = (LOG_HAZARD_HIGH - LOG_HAZARD_LOW) / (QUANTILE_POINTS - 1)
    places = np.arange(-1, QUANTILE_POINTS // COARSE + 2) * COARSE
    hazard = np.exp(LOG_HAZARD_LOW + step * places)
    upper = hazard < 1
    # 1 - X is Beta(b, a). Either tail is solved for where it is the small one.
    negative = np.empty(len(places))
    negative[upper] = -np.log(special.betaincinv(b, a, -np.expm1(-hazard[upper])))
    negative[~upper] = -np.log1p(-special.betaincinv(a, b, np.exp(-hazard[~upper])))
    # In logarithms, because the values fall by dozens of orders of magnitude at the upper end.
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

    In ``z`` both tails of every density fall off exponentially and a density of ``a + b`` pulls is
    ``2 / sqrt(a + b)`` wide or more, so that the trapezoidal rule is accurate far beyond need.

    Args:
        prior: Beta parameters of an arm without pulls.
        arms: Arms of the largest bandit: their best is further up the tail than one of them.
    """

    #: Tail mass left out at either end, as a logarithm; and the distance of points.
    TAIL = 14.0
    STEP = 0.06

    def __init__(self, prior: tuple[float, float], arms: int) -> None:
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

        # expit(-z) is 1 - x without cancellation.
        x, rest = special.expit(self.points), special.expit(-self.points)
        upper = special.betainc(b, a, rest)
        with np.errstate(divide="ignore"):
            log_cdf = np.where(upper < 0.5, np.log1p(-upper), np.log(special.betainc(a, b, x)))
        log_cdf = np.maximum(log_cdf, -80.0)
        log_x, log_rest = special.log_expit(self.points), special.log_expit(-self.points)
        log_density = a * log_x + b * log_rest - special.betaln(a, b)
        return log_cdf.astype(np.float32), np.exp(log_density - log_cdf).astype(np.float32)
