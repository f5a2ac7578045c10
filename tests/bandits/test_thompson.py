"""Grouped Thompson sampling against the plain definition: a Beta draw for every arm."""

import numpy as np
import pytest
from scipy import stats

from hpo_mab.bandits._grouped import GroupedBandits
from hpo_mab.bandits._tails import (
    LOG_HAZARD_HIGH,
    LOG_HAZARD_LOW,
    QUANTILE_POINTS,
    log_upper_quantiles,
)
from hpo_mab.bandits._thompson import ThompsonPolicy

#: Successes and failures of the arms of one bandit, reached by pulls alone.
HISTORIES = {
    "start": np.zeros((12, 2), dtype=int),
    "few pulls": np.array([[0, 0]] * 30 + [[1, 0]] * 4 + [[0, 1]] * 3 + [[2, 1], [5, 0], [5, 0]]),
    "no arm unpulled": np.array([[3, 9], [3, 9], [0, 6], [1, 4], [8, 8], [2, 12], [0, 20]]),
    "one strong arm": np.array([[0, 0]] * 200 + [[60, 1], [9, 1], [9, 1], [0, 3]]),
}


def bandits_of(
    history: np.ndarray, *, prior: tuple[float, float], copies: int, seed: int
) -> GroupedBandits:
    """``copies`` bandits alike, each with the given successes and failures of its arms."""
    policy = ThompsonPolicy(prior, len(history))
    rng = np.random.default_rng(seed)
    bandits = GroupedBandits(np.full(copies, len(history)), policy=policy, memory=None, rng=rng)
    for arm, counts in enumerate(history):
        for reward, times in ((1, counts[0]), (0, counts[1])):
            for _ in range(times):
                bandits.learn(np.full(copies, arm), np.full(copies, reward, dtype=np.int8))
    return bandits


@pytest.mark.parametrize("prior", [(1.0, 1.0), (2.0, 0.5), (0.5, 4.0)])
@pytest.mark.parametrize("history", HISTORIES.values(), ids=HISTORIES)
def test_grouped_draws_are_distributed_as_dense_draws(
    history: np.ndarray, prior: tuple[float, float]
) -> None:
    draws = 200_000
    grouped = bandits_of(history, prior=prior, copies=500, seed=1)
    ours = np.bincount(
        np.concatenate([grouped.select() for _ in range(draws // 500)]), minlength=len(history)
    )
    rng = np.random.default_rng(2)
    alpha, beta = (prior + history).T
    dense = [rng.beta(alpha, beta, (2000, len(history))).argmax(axis=1) for _ in range(100)]
    theirs = np.bincount(np.concatenate(dense), minlength=len(history))
    kept = ours + theirs >= 20
    table = np.stack([ours, theirs])
    table = np.column_stack([table[:, kept], table[:, ~kept].sum(axis=1) + 1])
    # Homogeneity of the two samples, at a level of 0.001 each; the seeds are fixed.
    assert stats.chi2_contingency(table).pvalue > 1e-3


@pytest.mark.parametrize("prior", [(1.0, 1.0), (2.0, 0.5), (0.5, 4.0), (0.1, 0.1), (60.0, 40.0)])
@pytest.mark.parametrize("history", HISTORIES.values(), ids=HISTORIES)
def test_propensities_match_a_million_dense_draws(
    history: np.ndarray, prior: tuple[float, float]
) -> None:
    draws = 1_000_000
    states, inverse = np.unique(history, axis=0, return_inverse=True)
    counts = np.bincount(inverse)
    rng = np.random.default_rng(3)
    # The best of n draws is the greater of what n draws would be: no shortcut is taken here but to
    # count wins by state, since arms of one state are alike.
    wins = np.zeros(len(states))
    alpha, beta = (prior + history).T
    step = 2_000_000 // len(history)
    for start in range(0, draws, step):
        size = min(step, draws - start)
        logit = np.log(rng.standard_gamma(alpha, (size, len(history))))
        logit -= np.log(rng.standard_gamma(beta, (size, len(history))))
        wins += np.bincount(inverse[logit.argmax(axis=1)], minlength=len(states))
    bandits = bandits_of(history, prior=prior, copies=1, seed=0)
    exact = bandits.propensities()[0]
    assert exact.sum() == pytest.approx(1)
    by_state = np.bincount(inverse, weights=exact)
    error = np.sqrt(by_state * (1 - by_state) / draws)
    # Four and a half standard errors, over about 70 comparisons; and 1e-4 for rare states.
    assert np.all(np.abs(wins / draws - by_state) < 4.5 * error + 1e-4 * counts.clip(max=1))
