"""Fidelity: examples by hand, agreement with SciPy, coverage, and perfect orders."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from hpo_mab._errors import ArgumentError
from hpo_mab.advantage import compare_fidelity, fidelity
from hpo_mab.advantage._fidelity import choice_regret, kendall_tau, top_recall


def test_tau_by_hand():
    # Pairs: (1,2) tied early; (1,3) and (2,3) agree; with 4: all three disagree.
    early = np.array([[1.0, 1.0, 2.0, 3.0]])
    final = np.array([[2.0, 3.0, 4.0, 1.0]])
    # 2 concordant, 3 discordant, 5 untied early, 6 untied final.
    assert kendall_tau(early, final)[0] == pytest.approx((2 - 3) / math.sqrt(5 * 6))


@given(scores=hnp.arrays(np.int64, (2, 9), elements=st.integers(0, 4)))
def test_tau_is_scipys(scores):
    early, final = scores.astype(float)
    mine = kendall_tau(early[None], final[None])[0]
    theirs = stats.kendalltau(early, final).statistic
    assert mine == pytest.approx(theirs, abs=1e-12, nan_ok=True)


def test_recall_and_regret_by_hand():
    early = np.array([[0.9, 0.8, 0.7, 0.1], [0.5, 0.5, 0.1, 0.2]])
    final = np.array([[0.6, 0.9, 0.5, 0.8], [0.3, 0.5, 0.9, 0.1]])
    # Early top two {0, 1} and {0, 1}; final top two {1, 3} and {2, 1}.
    assert top_recall(early, final, k=2).tolist() == [0.5, 0.5]
    # Chosen 0 (0.6 of 0.9); in the second row 0 and 1 tie (mean 0.4 of 0.9).
    assert choice_regret(early, final) == pytest.approx([0.3, 0.5])


@pytest.mark.parametrize("size", [6, 15])
def test_tau_is_covered_as_promised(size):
    rng = np.random.default_rng(size)

    def sample(rows):
        quality = rng.beta(5, 1.5, (rows, size))
        return (quality + s * rng.standard_normal((rows, size)) for s in (0.05, 0.02))

    early, final = sample(20_000)
    truth = kendall_tau(early, final).mean()
    early, final = sample(200)
    found = [fidelity(e, f, resamples=300) for e, f in zip(early, final, strict=True)]
    covered = np.mean([e.low <= truth <= e.high for e in found])
    # 200 repetitions of 95%: 3.5 standard errors of 1.5 points below.
    assert covered >= 0.897
    assert np.mean([e.value for e in found]) == pytest.approx(truth, abs=0.03)


def test_difference_between_equal_arms_is_covered_as_promised():
    rng = np.random.default_rng(5)
    covered = 0
    for _ in range(200):
        quality = rng.beta(5, 1.5, 20)
        one, other, final = (quality + s * rng.standard_normal(20) for s in (0.08, 0.08, 0.02))
        found = compare_fidelity(one, other, final, resamples=300).difference
        covered += found.low <= 0 <= found.high
    assert 0.897 <= covered / 200 <= 0.995


def test_difference_sees_the_worse_arm():
    rng = np.random.default_rng(0)
    quality = rng.uniform(size=40)
    worse, better = quality + rng.normal(0, 0.5, 40), quality + rng.normal(0, 0.01, 40)
    found = compare_fidelity(worse, better, quality).difference
    taus = [stats.kendalltau(early, quality).statistic for early in (worse, better)]
    assert found.value == pytest.approx(taus[0] - taus[1])
    assert found.below(0.0)


def test_perfect_order_is_not_certainty():
    early = np.arange(8.0)
    found = fidelity(early, early**2)
    assert found.value == 1.0
    # Four disjoint pairs all agree: discordance below 1 - 0.025 ** (1 / 4).
    assert found.low == pytest.approx(1 - 2 * (1 - 0.025**0.25))
    assert found.high == 1.0


def test_a_perfect_order_of_more_configurations_has_a_narrower_interval():
    widths = [1 - fidelity(np.arange(n), np.arange(n) ** 2).low for n in (4, 10, 40)]
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < 0.4


def test_no_early_mistake_does_not_prove_there_is_no_regret():
    early, final = np.arange(6.0), np.arange(6.0) / 10
    found = fidelity(early, final, statistic="regret")
    assert found.value == 0.0
    assert 0.0 < found.high <= 0.5


def test_final_against_itself_is_one_by_definition():
    final = np.array([0.1, 0.5, 0.3, 0.9])
    found = fidelity(final, final)
    assert (found.value, found.low, found.high, found.n) == (1.0, 1.0, 1.0, 4)


def test_own_finals_share_noise_on_both_sides():
    rng = np.random.default_rng(2)
    quality = rng.uniform(size=60)
    one, other = quality + rng.normal(0, 0.2, 60), quality + rng.normal(0, 0.2, 60)
    # Each arm's final is its own early accuracy: equally good forecasts of themselves.
    biased = compare_fidelity(one, other, other + 1e-6 * quality).difference
    fair = compare_fidelity(
        one, other, one + 1e-6 * quality, other_final=other + 1e-6 * quality
    ).difference
    assert biased.below(0.0)
    assert fair.low <= 0.0 <= fair.high


def test_ties_for_the_last_places_of_the_top_are_shared():
    level, rising = np.zeros((1, 8)), np.arange(8.0)[None]
    # Three of eight at random; at the end, all that are equal to the third are among the best.
    assert top_recall(level, rising, k=3) == pytest.approx(3 / 8)
    assert top_recall(rising, level, k=3) == 1.0
    tied = np.array([[0.9, 0.8, 0.8, 0.8, 0.7]])
    assert top_recall(tied, tied, k=3) == pytest.approx(1.0)
    early, final = np.array([[3.0, 2, 2, 1, 0]]), np.array([[9.0, 8, 7, 6, 5]])
    # The first for certain, and one of the two that follow it.
    assert top_recall(early, final, k=2) == pytest.approx((1 + 1 / 2) / 2)
    order = np.random.default_rng(0).permutation(5)
    assert top_recall(early[:, order], final[:, order], k=2) == pytest.approx(3 / 4)


@pytest.mark.parametrize("size", [0, 1, 3])
def test_too_few_configurations_leave_the_whole_range(size):
    found = fidelity(np.arange(size), np.arange(size)[::-1])
    assert (found.low, found.high, found.n) == (-1.0, 1.0, size)
    both = compare_fidelity(np.arange(size), np.arange(size), np.arange(size)).difference
    assert (both.low, both.high) == (-2.0, 2.0)


def test_stopped_configurations_are_left_out():
    found = fidelity([0.1, math.nan, 0.3, 0.4, 0.5], [0.2, 0.9, 0.3, 0.5, math.nan])
    assert (found.value, found.n) == (1.0, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"statistic": "pearson"}, "statistic must be one of .*'pearson'"),
        ({"k": 0}, "k must be at least 1, got 0"),
        ({"confidence": 2}, "confidence"),
    ],
)
def test_options_outside_their_bounds_are_refused(options, message):
    with pytest.raises(ArgumentError, match=message):
        fidelity(np.arange(5), np.arange(5), **options)


def test_lengths_must_agree():
    with pytest.raises(ArgumentError, match=r"\[\[5\], \[4\]\]"):
        fidelity(np.arange(5), np.arange(4))


def test_what_cannot_differ_has_no_interval():
    rng = np.random.default_rng(0)
    early, other, final, other_final = rng.normal(size=(4, 20))
    equal = compare_fidelity(early, early, final)
    assert (equal.difference.value, equal.difference.low, equal.difference.high) == (0, 0, 0)
    at_the_end = compare_fidelity(final, other_final, final, other_final=other_final)
    assert (at_the_end.difference.low, at_the_end.difference.high) == (0, 0)
    differ = compare_fidelity(early, other, final)
    assert differ.difference.low < differ.difference.high


def test_tau_of_many_is_that_of_few(monkeypatch):
    scores = np.random.default_rng(0).integers(0, 20, (2, 3, 60)).astype(float)
    few = kendall_tau(*scores)
    monkeypatch.setattr("hpo_mab.advantage._fidelity._MANY", 59)
    assert kendall_tau(*scores) == pytest.approx(few)
