"""Advantage and acceleration: coverage, recovery of a known factor, censoring."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up import curve
from scipy import stats

from hpo_mab._errors import ArgumentError
from hpo_mab.advantage import Estimate, PairedCurves, acceleration, advantage, mean_estimate
from hpo_mab.advantage._advantage import equivalent_budget, mean_limits

BUDGETS = 1_000.0 * 2.0 ** np.arange(5)


def simulate(rng, *, pairs, factor=1.0, noise=0.01):
    """Pairs whose bandit is ahead by a factor of the budget."""
    ceiling = rng.uniform(0.6, 0.95, (pairs, 1))
    scale = np.exp(rng.normal(8.0, 0.5, (pairs, 1)))
    shape = (pairs, len(BUDGETS))
    return PairedCurves(
        budgets=BUDGETS,
        arm=curve(factor * BUDGETS, ceiling, scale) + noise * rng.standard_normal(shape),
        reference=curve(BUDGETS, ceiling, scale) + noise * rng.standard_normal(shape),
    )


@pytest.mark.parametrize("factor", [0.9, 1.0, 1.1])
def test_acceleration_is_above_one_exactly_where_the_advantage_is_above_zero(factor):
    rng = np.random.default_rng(7)
    found = []
    for _ in range(20):
        made = simulate(rng, pairs=9, factor=factor)
        for ahead, faster in list(zip(advantage(made), acceleration(made), strict=True))[:-1]:
            assert faster.above(1.0) == ahead.above(0.0)
            assert faster.below(1.0) == ahead.below(0.0)
            found.append(faster.above(1.0) or faster.below(1.0))
    assert any(found)
    assert not all(found)


def test_known_factor_is_recovered():
    rng = np.random.default_rng(0)
    found = [acceleration(simulate(rng, pairs=12, factor=2.0), resamples=300) for _ in range(60)]
    values = np.array([[k.value for k in ks[:4]] for ks in found])
    covered = np.array([[k.low <= 2.0 <= k.high for k in ks[:4]] for ks in found])
    assert np.median(values, axis=0) == pytest.approx(2.0, rel=0.03)
    # 60 repetitions of 95%: standard error 2.8 points; 3.5 of them below.
    assert np.all(covered.mean(axis=0) >= 0.85)
    assert all(k.above(1.0) for ks in found for k in ks[:3])


def test_without_noise_a_factor_of_one_interval_is_exact():
    made = simulate(np.random.default_rng(0), pairs=6, factor=2.0, noise=0.0)
    assert [e.value for e in acceleration(made)[:4]] == pytest.approx([2.0] * 4, rel=1e-6)
    halved = simulate(np.random.default_rng(0), pairs=6, factor=0.5, noise=0.0)
    assert [e.value for e in acceleration(halved)[1:]] == pytest.approx([0.5] * 4, rel=1e-6)


@pytest.mark.parametrize("budgets", [BUDGETS, BUDGETS[0] * np.arange(1, 9)])
def test_between_evaluations_the_bias_is_small(budgets):
    rng = np.random.default_rng(1)
    ceiling, scale = rng.uniform(0.6, 0.95, (8, 1)), np.exp(rng.normal(8.0, 0.5, (8, 1)))
    made = PairedCurves(
        budgets=budgets,
        arm=curve(1.5 * budgets, ceiling, scale),
        reference=curve(budgets, ceiling, scale),
    )
    seen = budgets * 1.5 <= budgets[-1]
    found = np.array([e.value for e in acceleration(made)])[seen]
    assert found == pytest.approx(1.5, rel=0.04)


def test_advantage_is_the_mean_difference():
    made = PairedCurves(
        budgets=[10, 20],
        arm=[[0.5, 0.6], [0.3, math.nan], [0.4, 0.8]],
        reference=[[0.4, 0.6], [0.4, 0.5], [0.1, 0.5]],
    )
    first, second = advantage(made)
    assert first == mean_estimate(made.difference[:, 0])
    assert first.value == pytest.approx(0.1)
    assert (first.n, second.n) == (3, 2)
    assert second.value == pytest.approx(0.15)


def test_an_accuracy_that_uniform_never_reaches_gives_at_least():
    uniform = np.tile([0.3, 0.4, 0.5], (6, 1)) + np.linspace(0, 0.01, 6)[:, None]
    made = PairedCurves(budgets=[100, 200, 400], arm=uniform + 0.3, reference=uniform)
    for found, bound in zip(acceleration(made), [4.0, 2.0, 1.0], strict=True):
        assert found.censored
        assert (found.value, found.high) == (bound, math.inf)
        assert found.low <= bound


def test_an_acceleration_beyond_the_budget_has_a_lower_end_at_the_bound():
    rng = np.random.default_rng(0)
    uniform = np.array([0.3, 0.4, 0.5]) + 0.001 * rng.standard_normal((8, 3))
    made = PairedCurves(budgets=[100, 200, 400], arm=uniform + 0.3, reference=uniform[::-1])
    found = acceleration(made)[0]
    assert found.low == found.value == 4.0


def test_a_dip_of_the_mean_curve_counts_as_noise():
    uniform = np.array([[0.30, 0.50, 0.46, 0.70]] * 3)
    made = PairedCurves(budgets=[1, 2, 3, 4], arm=np.full((3, 4), 0.47), reference=uniform)
    # Pooled, evaluations two and three are 0.48: 0.47 is reached just before the second.
    assert acceleration(made)[0].value == pytest.approx(2.0, rel=0.05)


@pytest.mark.parametrize("pairs", [0, 1])
def test_too_few_pairs_give_no_interval(pairs):
    made = simulate(np.random.default_rng(0), pairs=pairs, factor=2.0)
    for ahead, faster in zip(advantage(made), acceleration(made), strict=True):
        assert not ahead.bounded
        assert (faster.low, faster.high, faster.n) == (0.0, math.inf, pairs)


def test_identical_curves_never_count_as_faster():
    row = np.linspace(0.3, 0.7, 5) + np.random.default_rng(0).normal(0, 0.05, (9, 5))
    made = PairedCurves(budgets=BUDGETS, arm=row, reference=row)
    found = acceleration(made)
    assert not any(k.above(1.0) or k.below(1.0) for k in found)
    assert equivalent_budget(BUDGETS, found).tolist() == BUDGETS.tolist()


def test_only_configurations_with_a_whole_reference_curve_count():
    made = simulate(np.random.default_rng(3), pairs=10, factor=2.0)
    uniform = made.reference.copy()
    uniform[7:, 2:] = np.nan
    bandit = made.arm.copy()
    bandit[0, 3:] = np.nan
    found = acceleration(PairedCurves(budgets=BUDGETS, arm=bandit, reference=uniform))
    assert [k.n for k in found] == [7, 7, 7, 6, 6]


def test_equivalent_budget_moves_only_on_evidence():
    estimates = [
        Estimate(value=2.0, low=1.5, high=2.5, n=9),
        Estimate(value=3.0, low=0.9, high=5.0, n=9),
        Estimate(value=0.5, low=0.4, high=0.6, n=9),
        Estimate(value=4.0, low=1.2, high=math.inf, n=9, censored=True),
        Estimate(value=math.nan, low=0.0, high=math.inf, n=0),
    ]
    found = equivalent_budget([10, 20, 30, 40, 50], estimates)
    assert found.tolist() == [20, 20, 30, 160, 50]


def test_lengths_and_options_are_checked():
    with pytest.raises(ArgumentError, match="as many as budgets, 2, got 0"):
        equivalent_budget([1, 2], [])
    made = simulate(np.random.default_rng(0), pairs=3)
    with pytest.raises(ArgumentError, match="resamples"):
        advantage(made, resamples=1)


#: 1,000 repetitions of a 95% interval: standard error 0.7 points; 3 of them either way.
INTERVAL_REPETITIONS = 1_000


@pytest.mark.parametrize("n", [3, 5, 8, 20])
def test_normal_mean_is_covered_as_promised(n):
    # Independent columns: one call simulates all repetitions.
    values = np.random.default_rng(n).standard_normal((n, INTERVAL_REPETITIONS)) + 0.3
    low, high = mean_limits(values)
    covered = np.mean((low <= 0.3) & (high >= 0.3))
    assert 0.929 <= covered <= 0.985


def test_skewed_mean_is_covered_better_than_by_students_t():
    values = np.random.default_rng(0).exponential(size=(8, 2 * INTERVAL_REPETITIONS))
    low, high = mean_limits(values)
    half = stats.t.ppf(0.975, 7) * values.std(axis=0, ddof=1) / math.sqrt(8)
    by_t = np.mean(np.abs(values.mean(axis=0) - 1) <= half)
    covered = np.mean((low <= 1) & (high >= 1))
    assert covered >= 0.92
    assert covered > by_t + 0.01


def test_few_observations_give_students_interval():
    values = np.array([1.0, 2.0, 4.0, 5.0])
    found = mean_estimate(values)
    low, high = stats.t.interval(0.95, 3, loc=3.0, scale=stats.sem(values))
    assert found.value == 3.0
    assert (found.low, found.high) == pytest.approx((low, high))


@pytest.mark.parametrize("values", [[], [0.4], [0.2, 0.2, 0.2], [0.1] * 30])
def test_no_variation_gives_no_interval(values):
    found = mean_estimate(np.asarray(values, dtype=float))
    assert (found.low, found.high, found.n) == (-math.inf, math.inf, len(values))
    assert not found.bounded


def test_one_distinct_value_among_many_is_not_certainty():
    found = mean_estimate(np.array([0.0] * 11 + [1.0]))
    assert found.low < 0 < found.high


def test_missing_values_are_left_out():
    found = mean_estimate(np.array([1.0, math.nan, 3.0]))
    assert (found.value, found.n) == (2.0, 2)


def test_too_few_resamples_are_refused():
    with pytest.raises(ArgumentError, match=r"resamples must be .*got 99"):
        mean_estimate(np.arange(5.0), resamples=99)


_VALUES = st.floats(allow_nan=False)


@given(value=_VALUES, low=_VALUES, high=_VALUES, n=st.integers(0, 99), censored=st.booleans())
def test_json_round_trip(value, low, high, n, censored):
    # Only the ends of an interval may be infinite.
    value = value if math.isfinite(value) else 0.0
    low = low if low != math.inf else -math.inf
    high = high if high != -math.inf else math.inf
    estimate = Estimate(value=value, low=low, high=high, n=n, censored=censored)
    text = json.dumps(estimate.to_json(), allow_nan=False)
    assert Estimate.from_json(json.loads(text)) == estimate


def test_unknown_value_survives_json():
    estimate = Estimate(value=math.nan, low=-math.inf, high=math.inf, n=0)
    assert math.isnan(Estimate.from_json(estimate.to_json()).value)


def test_sides_are_strict():
    estimate = Estimate(value=0.5, low=0.0, high=1.0, n=3)
    assert estimate.above(-0.1)
    assert not estimate.above(0.0)
    assert estimate.below(1.1)
    assert not estimate.below(1.0)
