"""Wilcoxon's signed-rank test: its p-value, the centre of differences and its interval."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from hpo_mab.advantage._signed_rank import (
    can_be_shown,
    fewest_pairs,
    signed_rank_estimate,
    signed_rank_p,
)


def test_signed_rank_needs_five_and_allows_ties() -> None:
    assert signed_rank_p([1, 2, 3, 4, math.nan]) is None
    assert signed_rank_p(np.zeros(7)) == 1.0
    assert 0.0 < signed_rank_p([0, 0, 0.1, 0.1, -0.1, 0.2]) <= 1.0


def test_equal_differences_are_ties_whatever_their_last_digit() -> None:
    differences = [0.1 + 0.2 - 0.3 + 1 / 180] + [1 / 180] * 4 + [-1 / 180]
    # Five of six equal ranks positive: 2 * (1 + 6) of 2 ** 6 sign patterns are as extreme.
    assert signed_rank_p(differences) == pytest.approx(14 / 64)


@pytest.mark.parametrize("seed", range(5))
def test_the_signed_rank_test_is_that_of_all_sign_patterns(seed: int) -> None:
    values = np.random.default_rng(seed).integers(-4, 6, 9) / 100
    signed = values[values != 0]
    ranks = stats.rankdata(np.abs(signed))
    patterns = np.array(list(itertools.product([0, 1], repeat=len(signed)))) @ ranks
    observed = ranks[signed > 0].sum()
    tail = min((patterns <= observed).mean(), (patterns >= observed).mean())
    assert signed_rank_p(values) == pytest.approx(min(1.0, 2 * tail))


@pytest.mark.parametrize("error", [0.05, 0.0125])
def test_the_interval_is_that_of_the_exact_signed_rank_test(error: float) -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        differences = rng.normal(0.5, 1.0, int(rng.integers(2, 24)))
        estimate = signed_rank_estimate(differences, error=error)
        expected = stats.wilcoxon(differences, alternative="greater", method="exact").pvalue
        assert estimate.above(0.0) == (expected <= error)
        assert estimate.low <= estimate.value <= estimate.high


def test_the_error_holds_for_heavy_tails_too() -> None:
    """Adopted by chance in at most the stated share, within 4 deviations."""
    rng = np.random.default_rng(1)
    draws = rng.standard_t(1.5, (2000, 9))
    wrong = sum(signed_rank_estimate(row, error=0.05).above(0.0) for row in draws)
    assert wrong / 2000 <= 0.05 + 4 * (0.05 * 0.95 / 2000) ** 0.5


def test_opposite_differences_have_a_mean_of_zero() -> None:
    # The two differences are not exactly opposite.
    gain, loss = 0.9 - 0.7, 0.5 - 0.7
    assert gain + loss != 0
    assert signed_rank_estimate([gain, loss], error=0.3).value == 0.0


def test_one_pair_less_than_the_fewest_shows_nothing() -> None:
    for error in (0.05, 0.025, 0.0125):
        fewest = fewest_pairs(error)
        assert signed_rank_estimate([1.0] * fewest, error=error).low == 1.0
        assert signed_rank_estimate([1.0] * (fewest - 1), error=error).low == -np.inf


def test_a_sampler_leaves_once_no_further_pair_could_help() -> None:
    rng = np.random.default_rng(3)
    for error, pairs in ((0.05, 9), (0.0125, 7), (0.0125, 13)):
        for _ in range(30):
            known = list(rng.normal(0.3, 1.0, int(rng.integers(1, pairs))))
            best = [*known, *[1e3 * (i + 1) for i in range(pairs - len(known))]]
            shown = signed_rank_estimate(best, error=error).above(0.0)
            assert can_be_shown(known, pairs=pairs, error=error) == shown
