"""Curves on common budgets, and the same at equal seconds."""

import numpy as np
import pytest

from hpo_mab._errors import ArgumentError
from hpo_mab.advantage import PairedCurves
from hpo_mab.advantage._curves import interpolate

BUDGETS = np.array([100.0, 200.0, 400.0])


def curves(**fields):
    rows = np.array([[0.2, 0.4, 0.5]])
    return PairedCurves(**({"budgets": BUDGETS, "bandit": rows, "uniform": rows} | fields))


def test_interpolation_keeps_evaluations_and_is_straight_in_log_budget():
    values = np.array([[0.2, 0.4, 0.5], [0.1, 0.5, 0.9]])
    assert interpolate(BUDGETS, values, BUDGETS) == pytest.approx(values, abs=0)
    halfway = interpolate(BUDGETS, values, np.array([100 * 2**0.5]))
    assert halfway[:, 0] == pytest.approx([0.3, 0.3])


def test_interpolation_below_the_first_evaluation_lies_between_chance_and_that_evaluation():
    values = np.array([0.4, 0.5, 0.55])
    below = interpolate(BUDGETS, values, np.array([0.0, 1.0, 50.0, 95.0]), chance=0.1)
    assert below[0] == pytest.approx(0.1)
    assert np.all(np.diff(below) > 0)
    assert below[-1] == pytest.approx(0.4 + 0.1 * np.log(0.95) / np.log(2))


def test_interpolation_of_a_stopped_curve_is_known_up_to_its_last_evaluation():
    found = interpolate(BUDGETS, np.array([0.2, 0.4, np.nan]), np.array([150.0, 200.0, 250.0]))
    assert np.isfinite(found).tolist() == [True, True, False]


def test_equal_seconds_reads_a_slower_arm_earlier():
    seconds = np.array([[1.0, 2.0, 4.0]])
    slower = curves(bandit_seconds=2 * seconds, uniform_seconds=seconds).in_seconds()
    # After 2 and 4 seconds the slower arm is at its first and second evaluation.
    assert slower.bandit[0, 1:] == pytest.approx([0.2, 0.4])
    assert slower.bandit[0, 0] < 0.2


def test_equal_seconds_lets_a_faster_arm_keep_its_end_but_not_a_stopped_one():
    seconds = np.array([[1.0, 2.0, 4.0]])
    faster = curves(bandit_seconds=seconds / 2, uniform_seconds=seconds).in_seconds()
    assert faster.bandit[0].tolist() == pytest.approx([0.4, 0.5, 0.5])
    stopped = curves(
        bandit=np.array([[0.2, 0.4, np.nan]]),
        bandit_seconds=np.array([[0.5, 1.0, np.nan]]),
        uniform_seconds=seconds,
    ).in_seconds()
    assert stopped.bandit[0, 0] == pytest.approx(0.4)
    assert np.isnan(stopped.bandit[0, 1:]).all()


def test_equal_seconds_of_equal_clocks_changes_nothing():
    seconds = np.array([[1.0, 1.0, 4.0]])
    same = curves(bandit_seconds=seconds, uniform_seconds=seconds).in_seconds()
    assert same.bandit[0, 2] == pytest.approx(0.5, abs=1e-6)
    assert same.bandit[0, 0] == pytest.approx(0.2, abs=1e-6)


def test_equal_seconds_needs_seconds():
    with pytest.raises(ArgumentError, match="bandit_seconds"):
        curves().in_seconds()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("budgets", np.array([100.0, 100.0, 400.0])),
        ("budgets", np.array([0.0, 100.0, 400.0])),
        ("bandit", np.zeros((1, 2))),
        ("uniform", np.zeros((2, 3))),
        ("bandit_seconds", np.zeros(3)),
    ],
)
def test_what_does_not_fit_is_refused(field, value):
    with pytest.raises(ArgumentError, match=field):
        curves(**{field: value})


def test_counts_fall_where_either_arm_was_stopped():
    pairs = curves(
        bandit=np.array([[0.1, 0.2, np.nan], [0.1, 0.2, 0.3]]),
        uniform=np.array([[0.1, 0.2, 0.3], [0.1, np.nan, np.nan]]),
    )
    assert pairs.counts.tolist() == [2, 1, 0]
    assert pairs.complete.tolist() == [True, False]
