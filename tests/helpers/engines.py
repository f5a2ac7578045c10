"""Bandit engines with the same arguments, and losses for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from hpo_mab.bandits._device import DeviceEngine
from hpo_mab.bandits._host import HostEngine
from hpo_mab.bandits._settings import BanditEngine, BanditSettings, stratified_shares


def make_engine(
    kind: str, *, examples: int, bandits: int, seed: int = 0, device: str = "cpu", **knobs: Any
) -> BanditEngine:
    """An engine over examples of one class."""
    rng = np.random.default_rng(seed)
    shares = stratified_shares(np.zeros(examples, dtype=np.int64), bandits, rng)
    settings = BanditSettings(**knobs)
    if kind == "host":
        return HostEngine(shares, settings, rng)
    return DeviceEngine(shares, settings, torch.Generator(device).manual_seed(seed))


def teach(engine: BanditEngine, arms: Any, losses: list[float]) -> None:
    """Feed losses of arms to either engine."""
    given = np.array(arms) if isinstance(engine, HostEngine) else torch.tensor(arms)
    engine.learn(given, torch.tensor(losses, dtype=torch.float32))


def train(engine: BanditEngine, *, steps: int, arms: int, seed: int) -> None:
    """Feed random losses of random arms, the same to every engine."""
    rng = np.random.default_rng(seed)
    bandits = len(engine.counts())
    for _ in range(steps):
        teach(
            engine,
            rng.integers(arms, size=bandits).tolist(),
            rng.exponential(size=bandits).tolist(),
        )
