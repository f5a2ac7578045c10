"""Every policy: its draws and propensities; Thompson sampling is equal in both engines."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from engines import make_engine, train
from scipy import stats

POLICIES: dict[str, dict[str, Any]] = {
    "thompson": {"policy": "thompson", "floor": 0.1},
    "thompson with replacement": {"policy": "thompson", "floor": 0.3, "replacement": True},
    "softmax": {"policy": "softmax", "temperature": 0.2},
    "epsilon_greedy": {"policy": "epsilon_greedy", "epsilon": 0.3},
    "epsilon_greedy with floor": {"policy": "epsilon_greedy", "epsilon": 0.3, "floor": 0.2},
}


#: Each policy in tensors, and Thompson sampling also by states.
ENGINES = [
    *(("host", name) for name in POLICIES if "thompson" in name),
    *(("device", name) for name in POLICIES),
]


@pytest.mark.parametrize(("engine_kind", "name"), ENGINES)
def test_draws_follow_the_propensities(engine_kind: str, name: str) -> None:
    # 3 bandits of 6, 6 and 5 arms: an arm that is padding would show.
    engine = make_engine(engine_kind, examples=17, bandits=3, memory=12, **POLICIES[name])
    train(engine, steps=30, arms=5, seed=1)
    expected = torch.zeros(17, dtype=torch.float64)
    propensities = engine.propensities()
    shares = torch.as_tensor(engine._shares)
    expected[shares[shares >= 0].long()] = propensities[shares >= 0]
    draws = 2500
    drawn = torch.cat([engine.draw(uniform=False)[0] for _ in range(draws)])
    counts = np.bincount(drawn.numpy(), minlength=17)
    assert torch.allclose(propensities.sum(dim=1), torch.ones(3, dtype=torch.float64))
    # Three multinomials at once, 14 degrees of freedom; a level of 0.001 each, fixed seeds.
    statistic = stats.chisquare(counts, draws * expected.numpy(), ddof=2, sum_check=False)
    assert statistic.pvalue > 1e-3


def test_engines_have_the_same_propensities() -> None:
    engines = [
        make_engine(kind, examples=203, bandits=10, memory=30, floor=0.1)
        for kind in ("host", "device")
    ]
    for engine in engines:
        train(engine, steps=400, arms=20, seed=5)
    counts, others = (engine.counts() for engine in engines)
    assert counts.tolist() == others.tolist()
    assert counts.sum().item() == 300
    host, device = (engine.propensities() for engine in engines)
    assert torch.allclose(host, device, atol=1e-6)
    assert host.std() > 1e-3  # Not merely uniform, both.


def test_softmax_is_the_boltzmann_distribution_of_posterior_means() -> None:
    engine = make_engine(
        "device", examples=4, bandits=1, memory=None, policy="softmax", temperature=0.5
    )
    train(engine, steps=9, arms=4, seed=0)
    successes, failures = engine.counts()[0].T
    weights = torch.exp((1 + successes) / (2 + successes + failures) / 0.5)
    assert torch.allclose(engine.propensities()[0], weights / weights.sum())


@pytest.mark.parametrize("temperature", [1e-8, 1e-40, 1e-50])
def test_a_cold_softmax_shares_its_pick_among_equals(temperature: float) -> None:
    knobs = {"policy": "softmax", "temperature": temperature, "replacement": True}
    engine = make_engine("device", examples=5, bandits=1, **knobs)
    assert engine.propensities().tolist() == [[pytest.approx(0.2)] * 5]
    drawn = torch.cat([engine.draw(uniform=False)[0] for _ in range(500)])
    counts = torch.bincount(drawn, minlength=5)
    # Binomial(500, 1/5) leaves [60, 140] with probability below 1e-5.
    assert ((counts >= 60) & (counts <= 140)).all()


def test_greedy_shares_its_pick_among_equals() -> None:
    engine = make_engine("device", examples=5, bandits=1, policy="epsilon_greedy", epsilon=0.0)
    # Nothing known: all five are best. Then arm 0 fails once against its own mean.
    assert engine.propensities().tolist() == [[pytest.approx(0.2)] * 5]
    train(engine, steps=1, arms=1, seed=0)
    successes, _ = engine.counts()[0].T
    assert successes.tolist() == [1, 0, 0, 0, 0]  # The first loss is its own mean: rewarded.
    assert engine.propensities().tolist() == [[1, 0, 0, 0, 0]]


def test_states_beyond_the_device_table_keep_their_rate() -> None:
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
