"""Every policy of either engine: its draws and propensities, equal in both engines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import special, stats

from hpo_mab.bandits._host import GroupedBandits
from hpo_mab.bandits._policies import (
    LOG_HAZARD_HIGH,
    LOG_HAZARD_LOW,
    QUANTILE_POINTS,
    LogitGrid,
    ThompsonPolicy,
    log_upper_quantiles,
)

POLICIES: dict[str, dict[str, Any]] = {
    "thompson": {"policy": "thompson", "floor": 0.1},
    "softmax": {"policy": "softmax", "temperature": 0.2},
    "epsilon_greedy": {"policy": "epsilon_greedy", "epsilon": 0.3},
    "epsilon_greedy with floor": {"policy": "epsilon_greedy", "epsilon": 0.3, "floor": 0.2},
    "ucb1": {"policy": "ucb1", "exploration": 0.5, "floor": 0.25},
}


@pytest.mark.parametrize("knobs", POLICIES.values(), ids=POLICIES)
def test_draws_follow_the_propensities(
    engine_kind: str,
    knobs: dict[str, Any],
    make_engine: Callable[..., Any],
    train: Callable[..., Any],
) -> None:
    # 3 bandits of 6, 6 and 5 arms: an arm that is padding would show.
    engine = make_engine(engine_kind, examples=17, bandits=3, memory=12, **knobs)
    train(engine, steps=30, arms=5, seed=1)
    expected = torch.zeros(17, dtype=torch.float64)
    propensities = engine.propensities()
    shares = engine.shares
    expected[shares[shares >= 0].long()] = propensities[shares >= 0]
    draws = 2500
    drawn = torch.cat([engine.draw(uniform=False)[0] for _ in range(draws)])
    counts = np.bincount(drawn.numpy(), minlength=17)
    assert torch.allclose(propensities.sum(dim=1), torch.ones(3, dtype=torch.float64))
    # Three multinomials at once, 14 degrees of freedom; a level of 0.001 each, fixed seeds.
    statistic = stats.chisquare(counts, draws * expected.numpy(), ddof=2, sum_check=False)
    assert statistic.pvalue > 1e-3


@pytest.mark.parametrize("knobs", POLICIES.values(), ids=POLICIES)
def test_engines_have_the_same_propensities(
    knobs: dict[str, Any], make_engine: Callable[..., Any], train: Callable[..., Any]
) -> None:
    engines = [
        make_engine(kind, examples=95, bandits=4, memory=20, **knobs) for kind in ("host", "device")
    ]
    for engine in engines:
        train(engine, steps=60, arms=9, seed=2)
    host, device = (engine.propensities() for engine in engines)
    assert torch.allclose(host, device, atol=1e-5)
    assert host.std() > 1e-3  # Not merely uniform, both.


def test_softmax_is_the_boltzmann_distribution_of_posterior_means(
    make_engine: Callable[..., Any], train: Callable[..., Any]
) -> None:
    engine = make_engine(
        "host", examples=4, bandits=1, memory=None, policy="softmax", temperature=0.5
    )
    train(engine, steps=9, arms=4, seed=0)
    successes, failures = engine.counts()[0].T
    weights = torch.exp((1 + successes) / (2 + successes + failures) / 0.5)
    assert torch.allclose(engine.propensities()[0], weights / weights.sum())


def test_greedy_shares_its_pick_among_equals(
    engine_kind: str, make_engine: Callable[..., Any], train: Callable[..., Any]
) -> None:
    engine = make_engine(engine_kind, examples=5, bandits=1, policy="epsilon_greedy", epsilon=0.0)
    # Nothing known: all five are best. Then arm 0 fails once against its own mean.
    assert engine.propensities().tolist() == [[pytest.approx(0.2)] * 5]
    train(engine, steps=1, arms=1, seed=0)
    successes, _ = engine.counts()[0].T
    assert successes.tolist() == [1, 0, 0, 0, 0]  # The first loss is its own mean: rewarded.
    assert engine.propensities().tolist() == [[1, 0, 0, 0, 0]]


@pytest.mark.parametrize(("exploration", "best"), [(0.0, 0), (0.5, 0), (0.6, 1)])
def test_ucb_weighs_a_better_mean_against_fewer_pulls(
    exploration: float,
    best: int,
    engine_kind: str,
    make_engine: Callable[..., Any],
    teach: Callable[..., Any],
) -> None:
    knobs = {"policy": "ucb1", "exploration": exploration, "memory": None}
    engine = make_engine(engine_kind, examples=2, bandits=1, **knobs)
    for loss in range(6):
        teach(engine, [0], [float(loss)])  # Above the mean of those before: rewarded.
    # 7/8 + e sqrt(2 ln 6 / 8) of arm 0 against 1/2 + e sqrt(2 ln 6 / 2): equal at e = 0.56.
    assert engine.counts()[0].tolist() == [[6, 0], [0, 0]]
    assert engine.propensities()[0].argmax() == best


def test_states_beyond_the_device_table_keep_their_rate(
    make_engine: Callable[..., Any], train: Callable[..., Any]
) -> None:
    # 400 pulls of 3 arms: many times the 48 of the table. Every rate is close to one half, so that
    # nearest states are near enough. An arm with pulls still differs from one without.
    host, device = (
        make_engine(kind, examples=4, bandits=1, memory=None) for kind in ("host", "device")
    )
    for engine in (host, device):
        train(engine, steps=400, arms=3, seed=8)
    exact, capped = host.propensities()[0], device.propensities()[0]
    assert abs(float(capped[3] - exact[3])) < 0.1
    assert capped[:3].argmax() == exact[:3].argmax()


#: Successes and failures of the arms of one bandit, reached by pulls alone.
HISTORIES = {
    "start": np.zeros((12, 2), dtype=int),
    "few pulls": np.array([[0, 0]] * 9 + [[1, 0]] * 3 + [[0, 1]] * 2 + [[2, 1], [5, 0], [5, 0]]),
    "no arm unpulled": np.array([[3, 9], [3, 9], [0, 6], [1, 4], [8, 8], [2, 12], [0, 20]]),
    "one strong arm": np.array([[0, 0]] * 80 + [[60, 1], [9, 1], [9, 1], [0, 3]]),
}


def bandits_of(
    history: np.ndarray,
    *,
    prior: tuple[float, float],
    copies: int,
    seed: int,
    limit: int | None = None,
) -> GroupedBandits:
    """``copies`` equal bandits, each with the given successes and failures of its arms."""
    policy = ThompsonPolicy(prior, len(history))
    rng = np.random.default_rng(seed)
    bandits = GroupedBandits(
        np.full(copies, len(history)), policy=policy, memory=None, rng=rng, limit=limit
    )
    for arm, counts in enumerate(history):
        for reward, times in ((1, counts[0]), (0, counts[1])):
            for _ in range(times):
                bandits.learn(np.full(copies, arm), np.full(copies, reward, dtype=np.int8))
    return bandits


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


@pytest.mark.parametrize("limit", [None, 4])
@pytest.mark.parametrize(("name", "prior"), CASES)
def test_grouped_draws_are_distributed_as_dense_draws(
    name: str, prior: tuple[float, float], limit: int | None
) -> None:
    history, draws = HISTORIES[name], 60_000
    grouped = bandits_of(history, prior=prior, copies=500, seed=1, limit=limit)
    chosen = np.concatenate([grouped.select() for _ in range(draws // 500)])
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
    bandits, plain = (
        bandits_of(HISTORIES[name], prior=prior, copies=1, seed=0, limit=limit)
        for limit in (4, None)
    )
    exact = plain.propensities()
    np.testing.assert_allclose(bandits.propensities(), exact, rtol=1e-4, atol=1e-9)
    for arm in (0, len(HISTORIES[name]) - 1):
        assert bandits.propensities_of(np.array([arm])) == pytest.approx(exact[:, arm], rel=1e-4)


@pytest.mark.parametrize(("name", "prior"), CASES[:-2])
def test_propensities_match_a_million_dense_draws(name: str, prior: tuple[float, float]) -> None:
    history, draws = HISTORIES[name], 1_000_000
    exact = bandits_of(history, prior=prior, copies=1, seed=0).propensities()[0]
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
