"""Statistics over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from hpo_mab.advantage import Estimate, mean_estimate

#: Fewer signed differences than this cannot reach any usual level.
FEWEST_FOR_TEST = 5


def geometric_mean(
    ratios: Sequence[float], *, censored: bool = False, confidence: float = 0.95, seed: int = 0
) -> Estimate:
    """Geometric mean of positive ratios, with the interval of `mean_estimate` on their logarithms.

    Args:
        ratios: One a seed.
        censored: Whether some ratios are lower bounds: then so is the mean, and its lower end
            holds, while there is no upper one.
        confidence: Coverage of the interval.
        seed: Seed of the resampling.
    """
    logs = mean_estimate(np.log(np.asarray(ratios, float)), confidence=confidence, seed=seed)
    return Estimate(
        value=math.exp(logs.value),
        low=math.exp(logs.low),
        high=math.inf if censored or math.isinf(logs.high) else math.exp(logs.high),
        n=logs.n,
        confidence=confidence,
        censored=censored,
    )


def signed_rank_p(differences: ArrayLike) -> float | None:
    """Two-sided p-value of Wilcoxon's signed-rank test; None below 5 differences.

    Five seeds cannot give less than 0.0625, six not less than 0.031.
    """
    from scipy import stats

    observed = np.asarray(differences, dtype=np.float64)
    observed = observed[np.isfinite(observed)]
    if len(observed) < FEWEST_FOR_TEST:
        return None
    if not observed.any():
        return 1.0
    return float(stats.wilcoxon(observed).pvalue)
