"""Engines with the same arguments, and losses for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from hpo_mab.bandits import (
    BanditEngine,
    BanditSettings,
    DeviceEngine,
    HostEngine,
    stratified_shares,
)


def _make_engine(
    kind: str, *, examples: int, bandits: int, seed: int = 0, device: str = "cpu", **knobs: Any
) -> BanditEngine:
    """An engine over examples of one class."""
    rng = np.random.default_rng(seed)
    shares = stratified_shares(np.zeros(examples, dtype=np.int64), bandits, rng)
    settings = BanditSettings(**knobs)
    if kind == "host":
        return HostEngine(shares, settings, rng)
    return DeviceEngine(shares, settings, torch.Generator(device).manual_seed(seed))


def _teach(engine: BanditEngine, arms: Any, losses: list[float]) -> None:
    """Feed losses of arms to either engine."""
    given = np.array(arms) if isinstance(engine, HostEngine) else torch.tensor(arms)
    engine.learn(given, torch.tensor(losses, dtype=torch.float32))


def _train(engine: BanditEngine, *, steps: int, arms: int, seed: int) -> None:
    """Feed random losses of random arms, the same to every engine."""
    rng = np.random.default_rng(seed)
    bandits = len(engine.counts())
    for _ in range(steps):
        _teach(
            engine,
            rng.integers(arms, size=bandits).tolist(),
            rng.exponential(size=bandits).tolist(),
        )


@pytest.fixture(scope="session")
def make_engine() -> Callable[..., BanditEngine]:
    return _make_engine


@pytest.fixture(scope="session")
def teach() -> Callable[..., None]:
    return _teach


@pytest.fixture(scope="session")
def train() -> Callable[..., None]:
    return _train


@pytest.fixture(params=["host", "device"])
def engine_kind(request: pytest.FixtureRequest) -> str:
    """Either engine, on the CPU."""
    kind: str = request.param
    return kind
