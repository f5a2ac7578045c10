"""What either engine knows of its arms, against a recount of the pulls that count."""

import math
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

LOSSES = st.sampled_from([0.0, 1.0, 2.0, 3.0, math.nan, math.inf, -math.inf])


class Recount:
    """Successes and failures by keeping all pulls, and the mean loss by its definition."""

    def __init__(self, bandits: int, arms: int, memory: int | None, decay: float) -> None:
        self.pulls: list[deque[tuple[int, int]]] = [deque(maxlen=memory) for _ in range(bandits)]
        self.shape = (bandits, arms, 2)
        self.means: list[float] = []
        self.decay = decay

    def learn(self, arms: list[int], losses: list[float]) -> None:
        finite = [loss for loss in losses if math.isfinite(loss)]
        if not finite:
            return
        mean = sum(finite) / len(finite)
        weights = [self.decay**age for age in reversed(range(len(self.means)))]
        before = zip(weights, self.means, strict=True)
        threshold = sum(w * m for w, m in before) / sum(weights) if weights else mean
        self.means.append(mean)
        for pulls, arm, loss in zip(self.pulls, arms, losses, strict=True):
            if math.isfinite(loss):
                pulls.append((arm, int(np.float32(loss) >= np.float32(threshold))))

    def counts(self) -> np.ndarray:
        counts = np.zeros(self.shape)
        for bandit, pulls in enumerate(self.pulls):
            for arm, reward in pulls:
                counts[bandit, arm, 1 - reward] += 1
        return counts


@st.composite
def lessons(draw: st.DrawFn) -> tuple[int, int, list[tuple[list[int], list[float]]]]:
    bandits, arms = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    step = st.tuples(
        st.lists(st.integers(0, arms - 1), min_size=bandits, max_size=bandits),
        st.lists(LOSSES, min_size=bandits, max_size=bandits),
    )
    return bandits, arms, draw(st.lists(step, max_size=24))


@settings(max_examples=40)
@given(lesson=lessons(), memory=st.none() | st.integers(1, 6))
def test_counts_equal_a_recount_of_the_last_pulls(
    lesson: tuple[int, int, list[tuple[list[int], list[float]]]],
    memory: int | None,
    make_engine: Callable[..., Any],
    teach: Callable[..., Any],
) -> None:
    bandits, arms, steps = lesson
    knobs = {"memory": memory, "loss_decay": 0.5}
    recount = Recount(bandits, arms, memory, 0.5)
    engines = [
        make_engine(kind, examples=bandits * arms, bandits=bandits, **knobs)
        for kind in ("host", "device")
    ]
    for pulled, losses in steps:
        recount.learn(pulled, losses)
        for engine in engines:
            teach(engine, pulled, losses)
    for engine in engines:
        assert engine.counts().tolist() == recount.counts().tolist()


@pytest.mark.parametrize("memory", [None, 150])
def test_many_states_are_kept_apart_while_columns_are_made_and_used_again(
    memory: int | None, make_engine: Callable[..., Any], teach: Callable[..., Any]
) -> None:
    # One bandit's arm rises through hundreds of states, most of which nobody is in any more.
    recount = Recount(3, 70, memory, 0.99)
    engine = make_engine("host", examples=210, bandits=3, memory=memory)
    rng = np.random.default_rng(0)
    for step in range(450):
        pulled = [0, int(rng.integers(8)), int(rng.integers(70))]
        losses = rng.exponential(size=3).round(3).tolist()
        recount.learn(pulled, losses)
        teach(engine, pulled, losses)
        if step % 50 == 49:
            assert engine.counts().tolist() == recount.counts().tolist()
    # The propensities look up every state: one mistaken for another would not add up.
    assert torch.allclose(engine.propensities().sum(dim=1), torch.ones(3, dtype=torch.float64))


def test_discount_decays_all_counts_of_a_bandit_at_each_of_its_pulls(
    make_engine: Callable[..., Any], teach: Callable[..., Any]
) -> None:
    engine = make_engine("device", examples=4, bandits=2, discount=0.5, loss_decay=0.0)
    teach(engine, [0, 0], [1.0, 3.0])  # Judged by 2: failure, success.
    teach(engine, [1, 0], [5.0, math.nan])  # Judged by 2: success, no pull.
    teach(engine, [1, 1], [4.0, 6.0])  # Judged by 5: failure, success.
    assert engine.counts().tolist() == [[[0, 0.25], [0.5, 1]], [[0.5, 0], [1, 0]]]


def test_batch_without_a_finite_loss_leaves_no_trace(
    engine_kind: str, make_engine: Callable[..., Any], teach: Callable[..., Any]
) -> None:
    def state_after(*lessons: list[float]) -> dict[str, object]:
        engine = make_engine(engine_kind, examples=12, bandits=3, memory=2)
        for losses in lessons:
            teach(engine, [0, 1, 2], losses)
        found = engine.state()
        return {
            name: value.tolist() if torch.is_tensor(value) else value
            for name, value in found.items()
        }

    bad = [math.nan, math.inf, -math.inf]
    assert state_after([1.0, 2.0, 3.0], bad) == state_after([1.0, 2.0, 3.0])
    assert state_after(bad, [1.0, 2.0, 3.0]) == state_after([1.0, 2.0, 3.0])


def test_engines_agree_after_a_long_history(
    make_engine: Callable[..., Any], train: Callable[..., Any]
) -> None:
    host, device = (
        make_engine(kind, examples=203, bandits=10, memory=30) for kind in ("host", "device")
    )
    for engine in (host, device):
        train(engine, steps=400, arms=20, seed=5)
    assert host.counts().tolist() == device.counts().tolist()
    assert host.counts().sum().item() == 300
    assert torch.allclose(host.propensities(), device.propensities(), atol=1e-6)
