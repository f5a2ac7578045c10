"""The counts of either engine against a recount of the pulls that count."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from engines import make_engine, teach
from hypothesis import given, settings
from hypothesis import strategies as st

from hpo_mab._errors import ArgumentError, UnknownNameError
from hpo_mab.bandits._device import DeviceEngine
from hpo_mab.bandits._settings import BanditSettings
from hpo_mab.bandits._thompson import columns_of
from hpo_mab.training._captured import register_generators

LOSSES = st.sampled_from([0.0, 1.0, 2.0, 3.0, math.nan, math.inf, -math.inf])


class Recount:
    """Successes and failures by keeping all pulls, and the mean loss by its definition."""

    def __init__(self, bandits: int, arms: int, memory: int | None, decay: float) -> None:
        self.pulls: list[deque[tuple[int, int]]] = [deque(maxlen=memory) for _ in range(bandits)]
        self.shape = (bandits, arms, 2)
        self.means: list[float] = []
        self.decay = decay

    def learn(self, arms: list[int], losses: list[float]) -> None:
        if not all(map(math.isfinite, losses)):
            return
        mean = sum(losses) / len(losses)
        weights = [self.decay**age for age in reversed(range(len(self.means)))]
        before = zip(weights, self.means, strict=True)
        threshold = sum(w * m for w, m in before) / sum(weights) if weights else mean
        self.means.append(mean)
        for pulls, arm, loss in zip(self.pulls, arms, losses, strict=True):
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
    lesson: tuple[int, int, list[tuple[list[int], list[float]]]], memory: int | None
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


@pytest.mark.parametrize("memory", [None, 60, 150])
def test_counts_and_states_agree_after_hundreds_of_pulls_of_an_arm(memory: int | None) -> None:
    recount = Recount(3, 300, memory, 0.99)
    engine, again = (make_engine("host", examples=900, bandits=3, memory=memory) for _ in range(2))
    rng = np.random.default_rng(0)
    alone = []
    for step in range(450):
        # Long sequences of one arm of the first bandit: it rises through all states, then is drawn
        # by itself, and leaves the window when other arms fill it.
        arm = (step // 70) % 3 if rng.random() < 0.9 else int(rng.integers(3))
        pulled = [arm, int(rng.integers(8)), int(rng.integers(300))]
        losses = rng.exponential(size=3).round(3).tolist()
        recount.learn(pulled, losses)
        teach(engine, pulled, losses)
        alone.append(bool(engine._members.states[0, 0] == engine._single_column))
        if step % 10 == 9:
            assert engine.counts().tolist() == recount.counts().tolist()
    assert ((True, False) in itertools.pairwise(alone)) == (memory is not None)
    # The propensities look up every state: one mistaken for another would not add up.
    assert torch.allclose(engine.propensities().sum(dim=1), torch.ones(3, dtype=torch.float64))
    pairs = engine.counts().numpy().reshape(-1, 2)
    states = columns_of(pairs, engine._single_column).reshape(3, 300)
    assert engine._members.states.tolist() == states.tolist()
    again.load_state(engine.state())
    for _ in range(200):
        assert again.counts().tolist() == engine.counts().tolist()
        assert torch.equal(again.draw(uniform=False)[0], engine.draw(uniform=False)[0])
        for one in (again, engine):
            teach(one, [1, 2, 3], [0.3, 0.7, 0.5])


def test_discount_decays_all_counts_of_a_bandit_at_each_of_its_pulls() -> None:
    engine = make_engine("device", examples=4, bandits=2, discount=0.5, loss_decay=0.0)
    teach(engine, [0, 0], [1.0, 3.0])  # Judged by 2: failure, success.
    teach(engine, [1, 0], [5.0, math.nan])  # Nothing changes.
    teach(engine, [1, 0], [5.0, 1.0])  # Judged by 2: success, failure.
    teach(engine, [1, 1], [2.0, 6.0])  # Judged by 3: failure, success.
    assert engine.counts().tolist() == [[[0, 0.25], [0.5, 1]], [[0.25, 0.5], [1, 0]]]


@pytest.mark.parametrize("memory", [None, 126, 127, 128, 129])
def test_an_arm_that_fills_the_window_is_counted_whole(memory: int | None) -> None:
    def always(losses: Any, average: Any) -> Any:
        return losses > 0

    engine = make_engine("host", examples=6, bandits=2, memory=memory, reward=always)
    for _ in range(300):
        teach(engine, [0, 1], [1.0, 1.0])
    assert engine.counts()[:, :2, 0].tolist() == [[memory or 300, 0], [0, memory or 300]]


def test_counts_of_draws_do_not_wrap_around() -> None:
    engine = make_engine("host", examples=4, bandits=2)
    engine._draws[:] = 65534
    for _ in range(6):
        engine.draw(uniform=False)
    assert engine._draws.tolist() == [65535] * 4


def counts_of(engine: Any, draws: int, examples: int) -> np.ndarray:
    drawn = torch.cat([engine.draw(uniform=False)[0] for _ in range(draws)])
    return np.bincount(drawn.numpy(), minlength=examples)


@pytest.mark.parametrize(
    ("engine_kind", "knobs"),
    [
        *(("host", knobs) for knobs in ({}, {"floor": 1.0})),
        *(("device", knobs) for knobs in ({}, {"policy": "softmax"}, {"floor": 1.0})),
    ],
)
def test_arms_without_pulls_are_drawn_once_a_pass(engine_kind: str, knobs: dict[str, Any]) -> None:
    # 3 bandits of 6, 6 and 5 arms; 30 draws are 5, 5 and 6 passes.
    engine = make_engine(engine_kind, examples=17, bandits=3, **knobs)
    assert sorted(counts_of(engine, 30, 17)) == [5] * 12 + [6] * 5


def test_arms_with_pulls_are_skipped_by_passes(engine_kind: str) -> None:
    engine = make_engine(engine_kind, examples=18, bandits=3, memory=4)
    # Twice the same: the first batch is compared with its own mean, which no loss is above.
    for arm in (0, 0, 4):
        teach(engine, [arm] * 3, [1.0, 1.0, 1.0])
    counts = counts_of(engine, 200, 18)
    shares = np.asarray(engine._shares)
    unknown = counts[shares[:, [1, 2, 3, 5]]]
    assert (np.ptp(unknown, axis=1) <= 1).all()
    # Two successes of arm 0: drawn more often than the unknown ones.
    assert (counts[shares[:, 0]] > unknown.max(axis=1)).all()


def test_with_replacement_some_arms_wait_and_some_are_drawn_twice(engine_kind: str) -> None:
    engine = make_engine(engine_kind, examples=60, bandits=3, replacement=True)
    counts = counts_of(engine, 20, 60)
    # All once by chance: (20! / 20^20)^3, below 1e-20.
    assert counts.min() == 0
    assert counts.max() > 1


def test_replacement_follows_correction() -> None:
    assert BanditSettings().shuffles
    assert not BanditSettings(correction=0.5).shuffles
    assert not BanditSettings(replacement=True).shuffles
    with pytest.raises(ArgumentError, match=r"correction=0\.5 and replacement=False"):
        BanditSettings(correction=0.5, replacement=False)
    with pytest.raises(ArgumentError, match=r"replacement must be True, False or 'auto', got 'no'"):
        BanditSettings(replacement="no")  # type: ignore[arg-type]


def test_thompson_propensities_of_discounted_counts_are_refused() -> None:
    engine = make_engine("device", examples=8, bandits=2, discount=0.9)
    with pytest.raises(ArgumentError, match=r"discount=0\.9"):
        engine.propensities()


def test_each_network_of_a_stack_has_its_own_statistics() -> None:
    shares = np.tile(make_engine("host", examples=23, bandits=2)._shares, (3, 1))
    engine = DeviceEngine(shares, BanditSettings(), torch.Generator().manual_seed(0), stack=3)
    for _ in range(40):
        _, _, arms = engine.draw(uniform=False)
        engine.learn(arms, arms.float())
    held, expected = engine.rows(), []
    for draws, (rewarded, judged) in zip(held["draws"], held["tally"][:, 0].tolist(), strict=True):
        # A tenth of the examples is 3.
        most = draws.flatten().sort(descending=True).values[:3]
        expected.append({"reward_rate": rewarded / judged, "concentration": int(most.sum()) / 80})
    assert engine.statistics_of([2, 0]) == [expected[2], expected[0]]
    # Rewards are those since the last call.
    assert ["reward_rate" in found for found in engine.statistics_of([0, 1])] == [False, True]


KNOBS: dict[str, dict[str, Any]] = {
    "window": {},
    "nothing forgotten": {"memory": None},
    "discount": {"discount": 0.99},
    "correction": {"correction": 0.5, "floor": 0.1},
    "softmax": {"policy": "softmax", "correction": 0.5},
    "epsilon_greedy": {"policy": "epsilon_greedy"},
}


@pytest.mark.cuda
@pytest.mark.parametrize("knobs", KNOBS.values(), ids=KNOBS)
def test_a_graph_draws_and_learns_at_each_replay(knobs: dict[str, Any]) -> None:
    engine = make_engine("device", examples=1003, bandits=32, device="cuda", **knobs)
    losses = torch.rand(1003, device="cuda")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            indices, _, arms = engine.draw(uniform=False)
            engine.learn(arms, losses[indices])
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    register_generators(graph, engine.generator)
    with torch.cuda.graph(graph):
        indices, _, arms = engine.draw(uniform=False)
        engine.learn(arms, losses[indices])
    # The capture wrote the generator's offset on its own stream.
    torch.cuda.synchronize()
    drawn = set()
    for _ in range(10):
        graph.replay()
        drawn.add(tuple(indices.tolist()))
    assert len(drawn) == 10
    assert engine._tally[0, 1] == 13 * 32


@pytest.mark.parametrize("kind", ["host", "device"])
def test_a_rule_of_reward_decides_what_is_rewarded(kind: str) -> None:
    def all_but_the_lowest(losses: Any, average: Any) -> Any:
        assert average[..., 0].shape == losses[..., 0].shape
        return losses.argsort(-1).argsort(-1) >= 1

    engine = make_engine(kind, examples=8, bandits=4, memory=None, reward=all_but_the_lowest)
    teach(engine, [0, 0, 0, 0], [3.0, 1.0, 2.0, 9.0])
    assert engine.counts()[:, 0].tolist() == [[1, 0], [0, 1], [1, 0], [1, 0]]
    by_average = make_engine(kind, examples=8, bandits=4, memory=None)
    teach(by_average, [0, 0, 0, 0], [3.0, 1.0, 2.0, 9.0])
    assert by_average.counts()[:, 0].tolist() == [[0, 1], [0, 1], [0, 1], [1, 0]]


@pytest.mark.parametrize(
    ("rule", "got"),
    [
        (lambda losses, average: (losses >= average) * 1, "int64"),
        (lambda losses, average: losses - average, "float32"),
        (lambda losses, average: (losses >= average)[..., :1], r"1\] of bool"),
    ],
)
def test_a_rule_of_reward_returns_a_boolean_for_each_loss(
    rule: Callable[..., Any], got: str, engine_kind: str
) -> None:
    engine = make_engine(engine_kind, examples=8, bandits=4, reward=rule)
    with pytest.raises(ArgumentError, match=rf"boolean for each loss, .*4\], got .*{got}"):
        teach(engine, [0, 0, 0, 0], [3.0, 1.0, 2.0, 9.0])


def test_an_unknown_rule_of_reward_is_refused() -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown reward 'above_averge'.*'above_average'"):
        BanditSettings(reward="above_averge")
    with pytest.raises(ArgumentError, match="reward 'nowhere:rule' cannot be imported"):
        BanditSettings(reward="nowhere:rule")
