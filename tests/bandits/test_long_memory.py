"""Bandits with a window of more pulls than arms: exact, and bounded in cost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from engines import make_engine, train
from scipy import stats

from hpo_mab.bandits._host import HostEngine
from hpo_mab.bandits._settings import BanditSettings, stratified_shares
from hpo_mab.bandits._thompson import MOST_PULLS


def _shared(engine: Any) -> int:
    return len(engine._single_arms())


@pytest.mark.parametrize("memory", [None, 150])
def test_draws_follow_the_propensities(memory: int | None) -> None:
    """One bandit whose arms are in part drawn one by one; the device engine has no such parts."""
    host, device = (
        make_engine(kind, examples=9, bandits=1, memory=memory) for kind in ("host", "device")
    )
    for engine in (host, device):
        train(engine, steps=200, arms=7, seed=1)
    assert torch.equal(host.counts(), device.counts())
    assert 0 < _shared(host) < 9
    expected = host.propensities()
    place = {int(index): arm for arm, index in enumerate(host._shares[0])}
    draws = 4000
    drawn = [place[int(host.draw(uniform=False)[0])] for _ in range(draws)]
    counts, chances = np.bincount(drawn, minlength=9), draws * expected[0].numpy()
    frequent = chances > 5
    assert counts[chances == 0].sum() == 0
    counts = np.append(counts[frequent], counts[~frequent].sum() + 1)
    chances = np.append(chances[frequent], chances[~frequent].sum() + 1)
    # At a level of 0.001 each; seeds are fixed.
    assert stats.chisquare(counts, chances, sum_check=False).pvalue > 1e-3


def test_an_integer_prior_is_a_number_like_any_other() -> None:
    # Counts of a short memory are of one byte, which 200 does not fit into.
    shares = stratified_shares(np.zeros(20, dtype=np.int64), 2, np.random.default_rng(0))
    settings = BanditSettings(prior=(200, 200), memory=100, replacement=True)
    engine = HostEngine(shares, settings, np.random.default_rng(0))
    for _ in range(200):
        _, _, arms = engine.draw(uniform=False)
        engine.learn(arms, torch.rand(2))
    assert engine.counts().sum(dim=-1).max() > MOST_PULLS


def test_propensities_hold_whatever_shape_numpy_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine("host", examples=9, bandits=1, memory=None)
    train(engine, steps=200, arms=7, seed=1)
    assert _shared(engine) > 1
    expected, unique = engine.propensities(), np.unique

    def columns(*given: Any, **options: Any) -> Any:
        values, inverse = unique(*given, **options)
        return values, inverse.reshape(-1, 1)

    # As in NumPy 2.0.0.
    monkeypatch.setattr(np, "unique", columns)
    assert torch.equal(engine.propensities(), expected)
