"""Thompson sampling by state: distributed as a draw for every arm, with exact propensities."""

from __future__ import annotations

import gc
import pickle
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from scipy import special, stats

from hpo_mab.bandits._host import HostEngine
from hpo_mab.bandits._settings import BanditSettings
from hpo_mab.bandits._thompson import (
    LOG_HAZARD_HIGH,
    LOG_HAZARD_LOW,
    QUANTILE_POINTS,
    LogitGrid,
    ThompsonPolicy,
    log_upper_quantiles,
)

#: Successes and failures of the arms of one bandit, reached by pulls alone.
HISTORIES = {
    "start": np.zeros((12, 2), dtype=int),
    "few pulls": np.array([[0, 0]] * 9 + [[1, 0]] * 3 + [[0, 1]] * 2 + [[2, 1], [5, 0], [5, 0]]),
    "no arm unpulled": np.array([[3, 9], [3, 9], [0, 6], [1, 4], [8, 8], [2, 12], [0, 20]]),
    "one strong arm": np.array([[0, 0]] * 80 + [[60, 1], [9, 1], [9, 1], [0, 3]]),
}


def bandits_of(
    history: np.ndarray, *, prior: tuple[float, float], copies: int, seed: int, **knobs: Any
) -> HostEngine:
    """``copies`` equal bandits, each with the given successes and failures of its arms."""
    shares = np.arange(copies * len(history), dtype=np.int32).reshape(copies, -1)
    settings = BanditSettings(
        prior=prior,
        memory=None,
        replacement=True,
        reward=lambda losses, average: losses > 0,
        **knobs,
    )
    engine = HostEngine(shares, settings, np.random.default_rng(seed))
    for arm, counts in enumerate(history):
        for reward, times in ((1.0, counts[0]), (0.0, counts[1])):
            for _ in range(times):
                engine.learn(np.full(copies, arm), torch.full((copies,), reward))
    return engine


CASES = [
    ("start", (1.0, 1.0)),
    ("few pulls", (1.0, 1.0)),
    ("no arm unpulled", (1.0, 1.0)),
    ("no arm unpulled", (2.0, 0.5)),
    ("no arm unpulled", (60.0, 40.0)),
    ("one strong arm", (1.0, 1.0)),
    ("few pulls", (0.5, 4.0)),
]


def dense_wins(history: np.ndarray, prior: tuple[float, float], draws: int) -> np.ndarray:
    """How often each arm's Beta draw is the greatest."""
    rng = np.random.default_rng(2)
    alpha, beta = (prior + history).T
    wins = np.zeros(len(history), dtype=int)
    for size in np.diff(np.linspace(0, draws, 21).astype(int)):
        greatest = rng.beta(alpha, beta, (size, len(history))).argmax(axis=1)
        wins += np.bincount(greatest, minlength=len(history))
    return wins


@pytest.mark.parametrize(("name", "prior"), CASES)
def test_grouped_draws_are_distributed_as_dense_draws(
    name: str, prior: tuple[float, float]
) -> None:
    history, draws = HISTORIES[name], 60_000
    grouped = bandits_of(history, prior=prior, copies=500, seed=1)
    chosen = np.concatenate([grouped.draw(uniform=False)[2] for _ in range(draws // 500)])
    ours = np.bincount(chosen, minlength=len(history))
    table = np.stack([ours, dense_wins(history, prior, draws)])
    rare = table.sum(axis=0) < 20
    table = np.column_stack([table[:, ~rare], table[:, rare].sum(axis=1) + 1])
    # Homogeneity of the two samples of wins by arm, at a level of 0.001 each; seeds are fixed.
    assert stats.chi2_contingency(table).pvalue > 1e-3


@pytest.mark.parametrize(("name", "prior"), CASES)
def test_propensities_do_not_depend_on_what_is_counted_by_state(
    name: str, prior: tuple[float, float]
) -> None:
    history = HISTORIES[name]
    engine = bandits_of(history, prior=prior, copies=1, seed=0, correction=1.0)
    # Each arm is a state of its own.
    each = np.ones((1, len(history)), dtype=np.int32)
    exact = ThompsonPolicy(prior, len(history)).propensities(each, history.astype(np.int32))
    np.testing.assert_allclose(engine.propensities(), exact, rtol=1e-4, atol=1e-9)
    _, weights, arms = engine.draw(uniform=False)
    assert weights is not None
    assert weights.numpy() == pytest.approx(1 / (len(history) * exact[0, arms]), rel=1e-4)


@pytest.mark.parametrize(("name", "prior"), CASES[:-2])
def test_propensities_match_dense_draws(name: str, prior: tuple[float, float]) -> None:
    history, draws = HISTORIES[name], 250_000
    exact = bandits_of(history, prior=prior, copies=1, seed=0).propensities()[0].numpy()
    assert exact.sum() == pytest.approx(1)
    frequency = dense_wins(history, prior, draws) / draws
    # At most 4.5 standard errors over about 80 arms: a false alarm in 2000 runs of fresh seeds.
    error = np.sqrt(exact * (1 - exact) / draws)
    assert np.all(np.abs(frequency - exact) <= 4.5 * error + 1e-6)


@pytest.mark.parametrize("prior", [(0.1, 0.1), (1.0, 1.0), (1000.0, 0.1), (30.0, 1000.0)])
def test_propensities_sum_to_one_before_they_are_normalised(prior: tuple[float, float]) -> None:
    history = np.concatenate([HISTORIES["few pulls"], HISTORIES["one strong arm"]])
    grid = LogitGrid(prior, len(history))
    columns = [grid.columns(prior[0] + s, prior[1] + f) for s, f in history.tolist()]
    log_cdf = np.sum([column[0] for column in columns], axis=0, dtype=np.float64)
    hazard = np.sum([column[1] for column in columns], axis=0, dtype=np.float64)
    assert np.trapezoid(np.exp(log_cdf) * hazard, grid.points) == pytest.approx(1, abs=1e-3)


def test_a_grid_is_freed_without_the_collector() -> None:
    grid = LogitGrid((1.0, 1.0), 10)
    grid.columns(1.0, 2.0)
    freed = weakref.ref(grid)
    gc.disable()
    try:
        del grid
        assert freed() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("a", "b"), [(1.0, 1.0), (1.0, 30.0), (30.0, 1.0), (2.5, 0.5), (9.0, 14.0), (200.0, 5.0)]
)
def test_quantile_table_is_accurate_between_its_points(a: float, b: float) -> None:
    grid = np.linspace(LOG_HAZARD_LOW, LOG_HAZARD_HIGH, QUANTILE_POINTS)
    table = log_upper_quantiles(a, b).astype(np.float64)
    between, found = (grid[1:] + grid[:-1]) / 2, (table[1:] + table[:-1]) / 2
    # What the table's value is the upper quantile of, as a log hazard: the error in the units in
    # which states compete. A hundredth is a relative error of 1 percent of a tail probability.
    upper = between < 0
    back = np.empty_like(between)
    back[upper] = np.log(-np.log1p(-special.betainc(b, a, np.exp(found[upper]))))
    below = -np.expm1(found[~upper])
    back[~upper] = np.log(-np.log(special.betainc(a, b, below)))
    assert np.abs(back - between).max() < 0.01


def test_copies_hold_no_quantile_tables() -> None:
    policy = ThompsonPolicy((2.0, 0.5), 30)
    held = pickle.dumps(policy)
    assert len(held) < 1000
    race, columns = np.linspace(-30, 3, 91), np.arange(91, dtype=np.int32)
    expected = policy.best_draws(race.copy(), columns)
    assert pickle.loads(held).best_draws(race.copy(), columns).tolist() == expected.tolist()
