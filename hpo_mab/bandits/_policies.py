"""Selection policies on arms grouped by state: which state wins, and each arm's propensity.

Thompson sampling draws from tables of the upper tails of Beta distributions.
"""

from __future__ import annotations

import abc
import functools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hpo_mab.bandits._settings import BanditSettings, Counts, Floats, Ints
from hpo_mab.bandits._states import PullWindow

#: Values of two states that differ by less are equal: prior plus counts is rounded.
TIE = 1e-9


class Singles(NamedTuple):
    """Arms that are each a group: with many pulls, hardly two arms share a state.

    Attributes:
        bandits: Bandit of each arm, ascending, [V].
        pairs: Successes and failures of each arm, [V, 2].
        rng: Source of their draws.
    """

    bandits: Ints
    pairs: Counts
    rng: np.random.Generator


class Groups(NamedTuple):
    """Arms of one bandit that are in one state: a group for each pair in use.

    Attributes:
        cells: Places in the flattened counts of arms by bandit and state, ascending, [G].
        columns: States, [G].
        capacity: Number of states there is room for.
        window: The pulls that count.
        singles: Further groups of one arm each, after these; None where there are none.
    """

    cells: Ints
    columns: Ints
    capacity: int
    window: PullWindow
    singles: Singles | None = None

    @property
    def bandits(self) -> Ints:
        """Bandit of each group, [G + V]."""
        bandits = self.cells // self.capacity
        return bandits if self.singles is None else np.append(bandits, self.singles.bandits)


class GroupedPolicy(abc.ABC):
    """A rule that selects arms by their successes and failures alone.

    Every group of ``n`` arms of one state gets ``race = log(E / n)``, ``E ~ Exp(1)``, which has two
    exact uses:

    - A categorical choice with weights ``w``: ``E / (n w)`` is exponential with rate ``n w``. The
      least of independent ones is a group's with probability proportional to its rate.
    - Thompson sampling: the best of ``n`` draws from a distribution ``F`` is below ``x`` with
      probability ``F(x)^n``. The best draw solves ``F(x)^n = exp(-E)``, where the right side is
      uniform. So its upper-tail probability is ``1 - exp(-E / n)``.

    Args:
        prior: Beta parameters of an arm without pulls, both positive.
    """

    def __init__(self, prior: tuple[float, float]) -> None:
        self.prior = prior
        self.mean = np.zeros(0)
        self.pulls = np.zeros(0)

    def resize(self, capacity: int) -> None:
        """Make room for ``capacity`` states."""
        self.mean = np.resize(self.mean, capacity)
        self.pulls = np.resize(self.pulls, capacity)

    def define(self, column: int, successes: int, failures: int) -> None:
        """Fill in the state of a column."""
        alpha, beta = self.prior
        self.pulls[column] = alpha + beta + successes + failures
        self.mean[column] = (alpha + successes) / self.pulls[column]

    def moments(self, columns: Ints, pairs: Counts | None) -> tuple[Floats, Floats]:
        """Posterior mean and pulls, including the prior's, of columns and of further states.

        Args:
            columns: States, [n].
            pairs: Successes and failures of states without a column, [m, 2]; None for none.

        Returns:
            Means and pulls, [n + m] each.
        """
        means, pulls = self.mean[columns], self.pulls[columns]
        if pairs is None:
            return means, pulls
        alphas, more = self.prior[0] + pairs[:, 0], sum(self.prior) + pairs.sum(axis=1)
        return np.append(means, alphas / more), np.append(pulls, more)

    @abc.abstractmethod
    def costs(self, race: Floats, groups: Groups) -> Floats:
        """Cost of each group; a bandit selects its group of the least cost.

        Args:
            race: ``log(E / n)`` of each group, [G + V]; may be overwritten.
            groups: The groups, V of them single arms.

        Returns:
            Costs, [G + V].
        """

    @abc.abstractmethod
    def propensities(self, counts: Counts, totals: Ints, more: Counts | None = None) -> Floats:
        """Probability that one given arm of a state is selected.

        Args:
            counts: Arms of each bandit in each state, [B, S], the last M without a column.
            totals: Pulls that count, of each bandit, [B].
            more: Successes and failures of these M states, [M, 2]; None for none.

        Returns:
            Probabilities, [B, S]; their sum weighted by ``counts`` is 1 for each bandit.
        """


class SoftmaxPolicy(GroupedPolicy):
    """Boltzmann selection: ``p`` proportional to ``exp(mean / temperature)``."""

    def __init__(self, prior: tuple[float, float], temperature: float) -> None:
        super().__init__(prior)
        self.temperature = temperature

    def costs(self, race: Floats, groups: Groups) -> Floats:
        """Log of ``E / (n w)`` with ``w = exp(mean / temperature)``, [G]."""
        means, _ = self.moments(groups.columns, _single_counts(groups))
        return race - means / self.temperature

    def propensities(self, counts: Counts, totals: Ints, more: Counts | None = None) -> Floats:
        """Softmax over the arms of a bandit, by state, [B, S]."""
        means, _ = self.moments(_columns_of(counts, more), more)
        logits = np.where(counts > 0, means / self.temperature, -np.inf)
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        found: Floats = weights / (counts * weights).sum(axis=1, keepdims=True)
        return found


class GreedyPolicy(GroupedPolicy):
    """The arm of the best posterior mean; ties are broken uniformly."""

    def values(self, means: Floats, pulls: Floats, totals: Ints) -> Floats:
        """Value of each group; the greatest is selected, [G].

        Args:
            means: Posterior means, [G].
            pulls: Pulls, including the prior's, [G].
            totals: Pulls that count of the group's bandit, [G].
        """
        return means

    def costs(self, race: Floats, groups: Groups) -> Floats:
        """The race among the groups of the best value, infinite elsewhere, [G + V]."""
        bandits = groups.bandits
        totals = groups.window.totals
        values = self.values(*self.moments(groups.columns, _single_counts(groups)), totals[bandits])
        best = np.full(len(totals), -np.inf)
        np.maximum.at(best, bandits, values)
        return np.where(values >= best[bandits] - TIE, race, np.inf)

    def propensities(self, counts: Counts, totals: Ints, more: Counts | None = None) -> Floats:
        """One over the number of best arms, for these; 0 elsewhere, [B, S]."""
        means, pulls = self.moments(_columns_of(counts, more), more)
        bandits, columns = np.nonzero(counts)
        values = np.full(counts.shape, -np.inf)
        values[bandits, columns] = self.values(means[columns], pulls[columns], totals[bandits])
        best = values >= values.max(axis=1, keepdims=True) - TIE
        found: Floats = best / (counts * best).sum(axis=1, keepdims=True)
        return found


class UCBPolicy(GreedyPolicy):
    """UCB1 (Auer et al. 2002): ``mean + exploration sqrt(2 ln t / n)``.

    Mean and ``n`` are the posterior's: the prior's parameters count as pulls, so arms without pulls
    have a finite bonus. The literal "every arm once first" is the limit of a vanishing prior.
    """

    def __init__(self, prior: tuple[float, float], exploration: float) -> None:
        super().__init__(prior)
        self.exploration = exploration

    def values(self, means: Floats, pulls: Floats, totals: Ints) -> Floats:
        """Upper confidence bound of groups, [G]."""
        bonus = np.sqrt(2 * np.log(np.maximum(totals, 1)) / pulls)
        return means + self.exploration * bonus


def _single_counts(groups: Groups) -> Counts | None:
    """Successes and failures of the single arms, [V, 2]; None without any."""
    return None if groups.singles is None else groups.singles.pairs


def _columns_of(counts: Counts, more: Counts | None) -> Ints:
    """States of a table of counts, [B, S], that have a column."""
    return np.arange(counts.shape[1] - (0 if more is None else len(more)))


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


class ThompsonPolicy(GroupedPolicy):
    """Thompson sampling: the arm of the greatest draw from the posteriors, exact by groups.

    The best of a group's ``n`` draws is one look-up in a table of the upper tail
    (`log_upper_quantiles`). Single arms are drawn by Gamma variates.

    Args:
        prior: Beta parameters of an arm without pulls.
        arms: Arms of the largest bandit; sets the grid on which propensities are integrated.
    """

    def __init__(self, prior: tuple[float, float], arms: int) -> None:
        super().__init__(prior)
        self._parameters: dict[int, tuple[float, float]] = {}
        self._quantiles = np.zeros((0, QUANTILE_POINTS), dtype=np.float32)
        self._grid = LogitGrid(prior, arms)
        self._scale = (QUANTILE_POINTS - 1) / (LOG_HAZARD_HIGH - LOG_HAZARD_LOW)

    def resize(self, capacity: int) -> None:
        """Make room for ``capacity`` states."""
        super().resize(capacity)
        self._quantiles = np.resize(self._quantiles, (capacity, QUANTILE_POINTS))

    def define(self, column: int, successes: int, failures: int) -> None:
        """Fill in the quantile table of a column."""
        super().define(column, successes, failures)
        self._parameters[column] = self._posterior(successes, failures)
        self._quantiles[column] = log_upper_quantiles(*self._parameters[column])

    def costs(self, race: Floats, groups: Groups) -> Floats:
        """Log of one minus the best draw of each group, [G + V]."""
        if groups.singles is None:
            return self._best_of(race, groups)
        return np.append(
            self._best_of(race[: len(groups.columns)], groups), self._draws(groups.singles)
        )

    def propensities(self, counts: Counts, totals: Ints, more: Counts | None = None) -> Floats:
        """Probability that an arm's draw beats all others of its bandit, [B, S].

        ``p_g = integral of (f_g / F_g)(x) prod_h F_h(x)^(n_h) dx``, over a grid: the arm's draw is
        ``x``, and those of all other arms are below. The logarithm of the product is a sum weighted
        by counts, so the integral is two matrix products.
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

    def _draws(self, singles: Singles) -> Floats:
        """Log of one minus a draw of each arm's posterior, [V]."""
        first, second = (
            singles.rng.standard_gamma(self.prior[side] + singles.pairs[:, side]) for side in (0, 1)
        )
        # second / (first + second) is one minus the draw; the subtraction loses digits near 1.
        return np.log(second / (first + second))

    def _best_of(self, race: Floats, groups: Groups) -> Floats:
        """Log of one minus the best draw of each group that has a column, [G]."""
        place = race
        place -= LOG_HAZARD_LOW
        place *= self._scale
        left = place.astype(np.int64)
        # Below the grid the line of its first interval is extended, where the table is linear. An
        # exponential variate made of 64 bits is at most 44.4, below the other end, exp(4).
        np.maximum(left, 0, out=left)
        place -= left
        left += groups.columns * QUANTILE_POINTS
        table = self._quantiles.ravel()
        low = table[left]
        left += 1
        place *= table[left] - low
        place += low
        return place


def grouped_policy(settings: BanditSettings, arms: int) -> GroupedPolicy:
    """The policy of some settings, for bandits of at most ``arms`` arms."""
    match settings.policy:
        case "thompson":
            return ThompsonPolicy(settings.prior, arms)
        case "softmax":
            return SoftmaxPolicy(settings.prior, settings.temperature)
        case "ucb1":
            return UCBPolicy(settings.prior, settings.exploration)
        case _:
            return GreedyPolicy(settings.prior)
