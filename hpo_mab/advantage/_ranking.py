"""Agreement of two rankings, for many resamples at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def kendall_tau(early: Floats, final: Floats) -> Floats:
    """Kendall's tau-b of each row (Kendall 1945), ties in either ranking corrected for.

    Args:
        early: First scores [R, K].
        final: Second scores [R, K].

    Returns:
        Coefficients in [-1, 1], [R]; NaN where one side is all ties.
    """
    agree = np.zeros(len(early))
    untied_early = np.zeros(len(early))
    untied_final = np.zeros(len(early))
    for lag in range(1, early.shape[1]):
        one = np.sign(early[:, lag:] - early[:, :-lag])
        other = np.sign(final[:, lag:] - final[:, :-lag])
        agree += (one * other).sum(axis=1)
        untied_early += np.abs(one).sum(axis=1)
        untied_final += np.abs(other).sum(axis=1)
    return _ratio(agree, np.sqrt(untied_early * untied_final))


def spearman_rho(early: Floats, final: Floats) -> Floats:
    """Spearman's rank correlation of each row: Pearson's of mid-ranks.

    Args:
        early: First scores [R, K].
        final: Second scores [R, K].

    Returns:
        Coefficients in [-1, 1], [R]; NaN where one side is all ties.
    """
    from scipy.stats import rankdata

    one = rankdata(early, axis=1) - (early.shape[1] + 1) / 2
    other = rankdata(final, axis=1) - (final.shape[1] + 1) / 2
    return _ratio((one * other).sum(1), np.sqrt((one**2).sum(1) * (other**2).sum(1)))


def top_recall(early: Floats, final: Floats, *, k: int) -> Floats:
    """Share of each row's ``k`` best final configurations that are among the ``k`` best early.

    Args:
        early: First scores [R, K].
        final: Second scores [R, K].
        k: How many, at least 1 and below K; of equals the first ones count.

    Returns:
        Shares in [0, 1], [R].
    """
    chosen = np.argsort(-early, axis=1, kind="stable")[:, :k]
    best = np.argsort(-final, axis=1, kind="stable")[:, :k]
    hits = (chosen[:, :, None] == best[:, None, :]).any(axis=2)
    return np.asarray(hits.mean(axis=1), dtype=np.float64)


def choice_regret(early: Floats, final: Floats) -> Floats:
    """Final accuracy lost by each row's early favourite against the best configuration.

    Args:
        early: First scores [R, K].
        final: Second scores [R, K].

    Returns:
        Regrets in the units of ``final``, at least 0, [R]; mean over tied favourites.
    """
    favourite = early == early.max(axis=1, keepdims=True)
    chosen = (final * favourite).sum(axis=1) / favourite.sum(axis=1)
    return np.asarray(final.max(axis=1) - chosen, dtype=np.float64)


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    ratio = np.full(len(numerator), np.nan)
    np.divide(numerator, denominator, out=ratio, where=denominator > 0)
    return ratio
