"""What the bandits seek, on losses that are made up: signal, and label noise."""

import runpy
from pathlib import Path
from typing import Any

import pytest

_BENCHMARK = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks/slow_examples.py"))


def share_of_special(*, learnable: bool, **knobs: Any) -> float:
    """The benchmark's figure for one seed of `mab`."""
    return _BENCHMARK["share_of_special"]("mab", knobs, learnable=learnable, seed=0)


def test_signal_is_drawn_several_times_as_often_as_uniformly() -> None:
    # Uniform sampling draws a tenth.
    assert share_of_special(learnable=True, memory=None) > 0.4
    assert share_of_special(learnable=True, memory=100) > 0.3


def test_forgetting_bounds_the_share_of_mislabelled_draws() -> None:
    literal = share_of_special(learnable=False, memory=None)
    windowed = share_of_special(learnable=False)
    floored = share_of_special(learnable=False, floor=0.5)
    assert literal > 0.6
    assert windowed < 0.25
    assert floored < windowed


@pytest.mark.parametrize("policy", ["softmax", "epsilon_greedy", "ucb1"])
def test_other_policies_seek_high_losses_too(policy: str) -> None:
    assert share_of_special(learnable=False, policy=policy, memory=None) > 0.3


def test_floor_of_one_is_uniform() -> None:
    # 13,340 draws at 0.1: five standard errors are 0.013.
    assert share_of_special(learnable=False, memory=None, floor=1.0) == pytest.approx(0.1, abs=0.02)
