"""Intervals for a mean: coverage by simulation, and what they refuse to promise."""

import math

import numpy as np
import pytest
from scipy import stats

from hpo_mab._errors import ArgumentError
from hpo_mab.advantage import mean_estimate
from hpo_mab.advantage._interval import mean_limits

#: 1,000 repetitions of a 95% interval: standard error 0.7 points; 3 of them either way.
REPETITIONS = 1_000


@pytest.mark.parametrize("n", [3, 5, 8, 20])
def test_normal_mean_is_covered_as_promised(n):
    # Independent columns: one call simulates all repetitions.
    values = np.random.default_rng(n).standard_normal((n, REPETITIONS)) + 0.3
    low, high = mean_limits(values, seed=1)
    covered = np.mean((low <= 0.3) & (high >= 0.3))
    assert 0.929 <= covered <= 0.985


def test_skewed_mean_is_covered_better_than_by_students_t():
    values = np.random.default_rng(0).exponential(size=(8, 2 * REPETITIONS))
    low, high = mean_limits(values, seed=1)
    half = stats.t.ppf(0.975, 7) * values.std(axis=0, ddof=1) / math.sqrt(8)
    by_t = np.mean(np.abs(values.mean(axis=0) - 1) <= half)
    covered = np.mean((low <= 1) & (high >= 1))
    assert covered >= 0.92
    assert covered > by_t + 0.01


def test_few_observations_give_students_interval():
    values = np.array([1.0, 2.0, 4.0, 5.0])
    found = mean_estimate(values, confidence=0.9)
    low, high = stats.t.interval(0.9, 3, loc=3.0, scale=stats.sem(values))
    assert found.value == 3.0
    assert (found.low, found.high) == pytest.approx((low, high))


@pytest.mark.parametrize("values", [[], [0.4], [0.2, 0.2, 0.2], [0.1] * 30])
def test_no_variation_gives_no_interval(values):
    found = mean_estimate(np.asarray(values, dtype=float))
    assert (found.low, found.high, found.n) == (-math.inf, math.inf, len(values))
    assert not found.bounded


def test_one_distinct_value_among_many_is_not_taken_for_certainty():
    found = mean_estimate(np.array([0.0] * 11 + [1.0]))
    assert found.low < 0 < found.high


def test_missing_values_are_left_out():
    found = mean_estimate(np.array([1.0, math.nan, 3.0]))
    assert (found.value, found.n) == (2.0, 2)


def test_seed_decides():
    values = np.random.default_rng(0).standard_normal(12)
    assert mean_estimate(values, seed=3) == mean_estimate(values, seed=3)
    assert mean_estimate(values, seed=3).low != mean_estimate(values, seed=4).low


@pytest.mark.parametrize(
    ("option", "value"), [("confidence", 1.0), ("confidence", 0.0), ("resamples", 99)]
)
def test_options_outside_their_bounds_are_refused(option, value):
    with pytest.raises(ArgumentError, match=f"{option} must be .*got {value}"):
        mean_estimate(np.arange(5.0), **{option: value})
