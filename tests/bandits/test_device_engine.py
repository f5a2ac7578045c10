"""The engine in tensors: its Thompson draws; and on CUDA, that nothing waits for the host."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from hpo_mab._errors import ArgumentError


def test_thompson_draws_of_both_engines_are_distributed_alike(
    make_engine: Callable[..., Any], train: Callable[..., Any]
) -> None:
    counts = []
    for kind in ("host", "device"):
        engine = make_engine(kind, examples=64, bandits=8, memory=20)
        train(engine, steps=40, arms=8, seed=3)
        drawn = torch.cat([engine.draw(uniform=False)[0] for _ in range(3000)])
        counts.append(np.bincount(drawn.numpy(), minlength=64))
    table = np.stack(counts)
    # Eight multinomials at once, 56 degrees of freedom; a level of 0.001, fixed seeds.
    expected = table.sum(axis=0) / 2
    statistic = ((table - expected) ** 2 / expected).sum()
    assert stats.chi2.sf(statistic, 56) > 1e-3


def test_thompson_propensities_of_discounted_counts_are_refused(
    make_engine: Callable[..., Any],
) -> None:
    engine = make_engine("device", examples=8, bandits=2, discount=0.9)
    with pytest.raises(ArgumentError, match=r"discount=0\.9"):
        engine.propensities()


CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
KNOBS: dict[str, dict[str, Any]] = {
    "window": {},
    "nothing forgotten": {"memory": None},
    "discount": {"discount": 0.99},
    "correction": {"correction": 0.5, "floor": 0.1},
    "softmax": {"policy": "softmax", "correction": 0.5},
    "epsilon_greedy": {"policy": "epsilon_greedy"},
    "ucb1": {"policy": "ucb1"},
}


@pytest.mark.cuda
@CUDA
@pytest.mark.parametrize("knobs", KNOBS.values(), ids=KNOBS)
def test_draw_and_learn_never_wait_for_the_host(
    knobs: dict[str, Any], make_engine: Callable[..., Any], no_waiting: Callable[[], Any]
) -> None:
    engine = make_engine("device", examples=1003, bandits=32, device="cuda", **knobs)
    losses = torch.rand(32, device="cuda")
    with no_waiting():
        for step in range(20):
            _, _, arms = engine.draw(uniform=step % 5 == 4)
            engine.learn(arms, losses)
    assert engine.figures().judged == 20 * 32


@pytest.mark.cuda
@CUDA
@pytest.mark.parametrize("knobs", KNOBS.values(), ids=KNOBS)
def test_a_graph_draws_and_learns_at_each_replay(
    knobs: dict[str, Any], make_engine: Callable[..., Any]
) -> None:
    engine = make_engine("device", examples=1003, bandits=32, device="cuda", **knobs)
    losses = torch.rand(1003, device="cuda")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            indices, _, arms = engine.draw(uniform=False)
            engine.learn(arms, losses[indices])
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(engine.generator)
    with torch.cuda.graph(graph):
        indices, _, arms = engine.draw(uniform=False)
        engine.learn(arms, losses[indices])
    drawn = set()
    for _ in range(10):
        graph.replay()
        drawn.add(tuple(indices.tolist()))
    assert len(drawn) == 10
    assert engine.figures().judged == 13 * 32
