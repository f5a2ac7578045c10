"""Thompson sampling on arms grouped by state."""

from __future__ import annotations

import numpy as np

from hpo_mab.bandits import _tails
from hpo_mab.bandits._arrays import Counts, Floats, Ints
from hpo_mab.bandits._policies import GroupedPolicy, Groups, Singles


class ThompsonPolicy(GroupedPolicy):
    """Thompson sampling: the arm of the greatest draw from the posteriors, exact by groups.

    One value is looked up for each group, the best of its ``n`` draws, in a table of the upper
    tail (`log_upper_quantiles`); single arms are drawn.

    Args:
        prior: Beta parameters of an arm without pulls.
        arms: Arms of the largest bandit; sets the grid on which propensities are integrated.
    """

    def __init__(self, prior: tuple[float, float], arms: int) -> None:
        super().__init__(prior)
        self._parameters: dict[int, tuple[float, float]] = {}
        self._quantiles = np.zeros((0, _tails.QUANTILE_POINTS), dtype=np.float32)
        self._grid = _tails.LogitGrid(prior, arms)
        self._scale = (_tails.QUANTILE_POINTS - 1) / (
            _tails.LOG_HAZARD_HIGH - _tails.LOG_HAZARD_LOW
        )

    def resize(self, capacity: int) -> None:
        """Make room for ``capacity`` states."""
        super().resize(capacity)
        grown = np.zeros((capacity, _tails.QUANTILE_POINTS), dtype=np.float32)
        kept = min(capacity, len(self._quantiles))
        grown[:kept] = self._quantiles[:kept]
        self._quantiles = grown

    def define(self, column: int, successes: int, failures: int) -> None:
        """Fill in the quantile table of a column."""
        super().define(column, successes, failures)
        self._parameters[column] = self._posterior(successes, failures)
        self._quantiles[column] = _tails.log_upper_quantiles(*self._parameters[column])

    def costs(self, race: Floats, groups: Groups) -> Floats:
        """Log of one minus the best draw of each group, [G + V]."""
        if groups.singles is None:
            return self._best_of(race, groups)
        return np.append(
            self._best_of(race[: len(groups.columns)], groups), self._draws(groups.singles)
        )

    def propensities(self, counts: Counts, totals: Ints, more: Counts | None = None) -> Floats:
        """Probability that an arm's draw beats all others of its bandit, [B, S].

        ``p_g = integral of (f_g / F_g)(x) prod_h F_h(x)^(n_h) dx``, over a grid.
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
        # Of the rest, not of one minus the draw: near 1 that would lose its digits.
        return np.log(second / (first + second))

    def _best_of(self, race: Floats, groups: Groups) -> Floats:
        """Log of one minus the best draw of each group that has a column, [G]."""
        place = race
        place -= _tails.LOG_HAZARD_LOW
        place *= self._scale
        left = place.astype(np.int64)
        # Below the grid the line of its first interval goes on. No exponential variate made of 64
        # bits reaches beyond its other end, exp(4).
        np.maximum(left, 0, out=left)
        place -= left
        left += groups.columns * _tails.QUANTILE_POINTS
        table = self._quantiles.ravel()
        low = table[left]
        left += 1
        place *= table[left] - low
        place += low
        return place
