from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo_mab.training import TrainingDiverged
from hpo_mab.training._schedule import LearningCurve, Schedule


def test_exact_values() -> None:
    schedule = Schedule(steps=10, warmup=0.2)
    expected = [1 / 2, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8, 0]
    assert [schedule.factor(step) for step in range(11)] == expected


def test_without_warmup_the_first_step_is_at_the_peak() -> None:
    schedule = Schedule(steps=4, warmup=0)
    assert [schedule.factor(step) for step in range(5)] == [1, 0.75, 0.5, 0.25, 0]


@given(steps=st.integers(1, 300), warmup=st.floats(0, 0.999))
def test_rises_to_one_then_falls_to_zero(steps: int, warmup: float) -> None:
    schedule = Schedule(steps=steps, warmup=warmup)
    factors = [schedule.factor(step) for step in range(steps + 1)]
    top = schedule.warmup_steps
    assert factors[top] == max(factors) == 1
    assert factors[: top + 1] == sorted(factors[: top + 1])
    assert factors[top:] == sorted(factors[top:], reverse=True)
    assert all(factor > 0 for factor in factors[:-1])
    assert factors[-1] == 0


@given(steps=st.integers(1, 10_000), evaluations=st.integers(1, 50))
def test_evaluations_are_equally_spaced_and_end_at_the_budget(steps: int, evaluations: int) -> None:
    points = LearningCurve(steps=steps, evaluations=evaluations).stops
    assert len(points) == min(steps, evaluations)
    assert points[-1] == steps
    gaps = {after - before for before, after in zip((0, *points), points, strict=False)}
    assert min(gaps) >= 1
    assert max(gaps) - min(gaps) <= 1


def test_a_diverged_training_lost_the_work_since_its_last_evaluation() -> None:
    curve = LearningCurve(steps=4, evaluations=2)
    measured: Any = {"batch_size": 8, "learning_rate": 0.1, "train_loss": 1.5, "statistics": {}}
    point = curve.add(False, 0.5, 1.0, step=2, seconds=3.0, **measured)
    with pytest.raises(TrainingDiverged, match="by step 4: the validation loss is nan") as lost:
        curve.add(False, 0.5, math.nan, step=4, seconds=5.0, **measured)
    assert (lost.value.step, lost.value.examples, lost.value.seconds) == (4, 16, 2.0)
    assert curve.points == [point]
