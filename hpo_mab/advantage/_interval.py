"""Intervals for a mean that keep their promise with few observations."""

from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import NDArray

from hpo_mab._errors import ArgumentError
from hpo_mab.advantage._estimate import Estimate

Floats = NDArray[np.float64]

#: Below this many observations resamples are too few and too often constant: Student's t is used.
BOOTSTRAP_FROM = 8
#: Spread below this share of the largest value is rounding, not variation.
_ROUNDING = 1e-12


def mean_estimate(
    values: Floats, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Estimate:
    """Mean of independent observations, with the interval of `mean_limits`.

    Args:
        values: Observations [n]; NaN entries are left out.
        confidence: Coverage aimed at, in (0, 1).
        resamples: Bootstrap resamples, at least 100.
        seed: Seed of the resampling.

    Returns:
        The mean; its interval is unbounded where ``n < 2`` or where nothing varies.

    Raises:
        ArgumentError: ``confidence`` or ``resamples`` outside its bound.
    """
    observed = np.asarray(values, dtype=np.float64)
    observed = observed[~np.isnan(observed)]
    low, high = mean_limits(
        observed[:, None], confidence=confidence, resamples=resamples, seed=seed
    )
    mean = float(observed.mean()) if len(observed) else math.nan
    return Estimate(
        value=mean, low=float(low[0]), high=float(high[0]), n=len(observed), confidence=confidence
    )


def mean_limits(
    values: Floats, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[Floats, Floats]:
    """Ends of an interval for the mean of each column.

    From 8 observations on: the symmetric studentised bootstrap (Hall 1988), i.e.
    ``mean -+ q * se`` with ``q`` the quantile of ``|mean* - mean| / se*`` over resamples of rows,
    the same resamples for every column. With fewer: ``q`` of Student's t.

    Chosen by simulation (1,500 repetitions a cell, 95% asked for). Coverage with
    n = 5 / 8 / 12 / 20 / 30 normal observations: this rule 95.3 / 96.5 / 95.9 / 95.0 / 95.0%,
    percentile bootstrap 83.7 / 89.7 / 90.1 / 92.5 / 92.9%, BCa 83.8 / 89.7 / 90.2 / 92.7 / 92.9%.
    With exponential ones: 87.9 / 93.9 / 92.4 / 94.4 / 94.4% against BCa's 79.4 / 86.5 / 88.3 /
    91.3 / 92.7%; with Student's t of 3 degrees: 95.4 / 97.3 / 97.0 / 96.5 / 96.1%.

    Args:
        values: Observations [n, G], without NaN.
        confidence: Coverage aimed at, in (0, 1).
        resamples: Bootstrap resamples, at least 100.
        seed: Seed of the resampling.

    Returns:
        Lower and upper ends, each [G]; ``-inf`` and ``inf`` where ``n < 2`` and in columns
        without variation, for such data do not tell how far the mean may lie.

    Raises:
        ArgumentError: ``confidence`` or ``resamples`` outside its bound.
    """
    check_resampling(confidence=confidence, resamples=resamples)
    n, columns = values.shape
    unbounded = np.full(columns, np.inf)
    if n < 2:
        return -unbounded, unbounded
    mean = values.mean(axis=0)
    centred = values - mean
    error = np.sqrt((centred**2).sum(axis=0) / (n - 1) / n)
    varies = error > _ROUNDING * np.abs(values).max(axis=0)
    half = unbounded.copy()
    if varies.any():
        scaled = centred[:, varies] / error[varies]
        half[varies] = error[varies] * _quantile(scaled, confidence, resamples, seed)
    return mean - half, mean + half


def check_resampling(*, confidence: float, resamples: int) -> None:
    """Refuse a confidence outside (0, 1) and fewer than 100 resamples."""
    if not 0.0 < confidence < 1.0:
        raise ArgumentError(f"confidence must be in (0, 1), got {confidence}.")
    if resamples < 100:
        raise ArgumentError(f"resamples must be at least 100, got {resamples}.")


@functools.lru_cache(maxsize=16)
def resample_counts(n: int, resamples: int, seed: int) -> Floats:
    """How often each of ``n`` observations occurs in each bootstrap resample, [resamples, n]."""
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(n, np.full(n, 1.0 / n), size=resamples).astype(np.float64)
    counts.setflags(write=False)
    return counts


def _quantile(scaled: Floats, confidence: float, resamples: int, seed: int) -> Floats:
    """Quantile of the studentised mean of columns [n, G] whose standard error is one."""
    n = len(scaled)
    if n < BOOTSTRAP_FROM:
        from scipy import stats

        return np.full(scaled.shape[1], stats.t.ppf((1.0 + confidence) / 2.0, n - 1))
    counts = resample_counts(n, resamples, seed) / n
    mean = counts @ scaled
    variance = (counts @ scaled**2 - mean**2) / (n - 1)
    # A resample of equal values says nothing of its own error: as extreme as can be.
    spread = np.sqrt(np.maximum(variance, 0.0))
    extreme = np.where(mean == 0.0, 0.0, np.inf)
    studentised = np.divide(np.abs(mean), spread, out=extreme, where=spread > _ROUNDING)
    return np.quantile(studentised, confidence, axis=0, method="inverted_cdf")
