"""Wilcoxon's signed-rank test: the p-value of paired differences, their centre, its interval."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from hpo_mab.advantage._advantage import Estimate
from hpo_mab.advantage._pairs import Floats

#: With fewer differences the two-sided p-value is at least 0.125, above all usual levels.
FEWEST_FOR_TEST = 5
#: Most differences of an exact signed-rank test, as in SciPy.
_MOST_EXACT = 50


def signed_rank_p(differences: ArrayLike) -> float | None:
    """Two-sided p-value of Wilcoxon's signed-rank test; None below 5 differences.

    Exact for up to 50 differences, also with ties; zeros are left out. The smallest p-value of five
    seeds is 0.0625, of six 0.031.
    """
    from scipy import stats

    observed = np.asarray(differences, dtype=np.float64)
    # Pairs that one arm did not finish have no difference.
    observed = observed[np.isfinite(observed)]
    if len(observed) < FEWEST_FOR_TEST:
        return None
    # Equal differences of accuracies may differ in the last digit.
    signed = np.round(observed, 12)
    signed = signed[signed != 0]
    if len(signed) > _MOST_EXACT:
        return float(stats.wilcoxon(signed).pvalue)
    # Twice the ranks are integers. SciPy's exact test of ties takes seconds.
    ranks = np.rint(2 * stats.rankdata(np.abs(signed))).astype(int)
    chances = _positive_rank_sums(ranks)
    positive = int(ranks[signed > 0].sum())
    return min(1.0, 2 * float(min(chances[: positive + 1].sum(), chances[positive:].sum())))


def fewest_pairs(error: float) -> int:
    """Fewest pairs for the signed-rank test to reach ``error``: ``n`` pairs reach ``2 ** -n``."""
    return math.ceil(-math.log2(error))


def signed_rank_estimate(differences: Sequence[float], *, error: float) -> Estimate:
    """Centre of paired differences, with the interval of Wilcoxon's signed-rank test.

    The estimate is Hodges and Lehmann's: the median of the means of every two differences (each
    with itself included). A few large differences, such as those at a far too low learning rate,
    hardly move it. The interval is exact where the differences are symmetric about their centre,
    and needs no other assumption.

    Args:
        differences: One a pair, [n].
        error: Highest probability that the centre lies below the interval, and that it lies above.

    Returns:
        The estimate; its interval is unbounded where ``n`` is below `fewest_pairs`.
    """
    count = len(differences)
    means = np.sort(_walsh_means(differences))
    outside = _lower_end_rank(count, error)
    low, high = (means[outside - 1], means[-outside]) if outside else (-math.inf, math.inf)
    return Estimate(
        value=float(np.median(means)) if count else math.nan,
        low=float(low),
        high=float(high),
        n=count,
        confidence=1 - 2 * error,
    )


def can_be_shown(differences: Sequence[float], *, pairs: int, error: float) -> bool:
    """Whether the interval of `signed_rank_estimate` can lie above 0 after ``pairs`` pairs."""
    means = _walsh_means(differences)
    # The interval lies above 0 if the number of means <= 0 is below the rank of its lower end.
    # At best, further differences are so large that every mean with one of them is above 0.
    return int((means <= 0).sum()) < _lower_end_rank(pairs, error)


def _walsh_means(differences: Sequence[float]) -> Floats:
    """Means of every two values, each with itself included, [n (n + 1) / 2]."""
    # Differences of accuracies may differ in the last digit, and their mean is then not 0.
    values = np.round(np.asarray(differences, dtype=np.float64), 12)
    rows, columns = np.triu_indices(len(values))
    means: Floats = (values[rows] + values[columns]) / 2
    return means


def _lower_end_rank(count: int, error: float) -> int:
    """Place of the interval's lower end among the sorted means, from 1; 0 where there is none."""
    chances = _positive_rank_sums(range(1, count + 1))
    return int((chances.cumsum() <= error * (1 + 1e-9)).sum())


def _positive_rank_sums(ranks: Iterable[int]) -> Floats:
    """Probability of each sum of the positive ranks, from 0.

    Under symmetry about 0 each rank is positive with probability 1/2, independently.

    Args:
        ranks: Ranks of the differences, integers of at least 1, [n].

    Returns:
        Probabilities [sum of the ranks + 1].
    """
    chances = np.ones(1)
    for rank in ranks:
        chances = (np.pad(chances, (0, rank)) + np.pad(chances, (rank, 0))) / 2
    return chances
