"""The incumbent against what the study has spent."""

import math

import numpy as np
import pytest

from hpo_mab._errors import UnknownNameError
from hpo_mab.compare import incumbent_curve


@pytest.fixture(name="made")
def _made(trial, run):
    return run(
        [
            trial([0.1, 0.9], number=0, state="pruned", examples=100),
            trial([0.2, 0.5], number=1, examples=100),
            trial([0.2, 0.4], number=2, examples=50),
            trial([], number=3, state="fail"),
            trial([0.2, 0.8], number=4, examples=100),
            trial([0.9], number=5, state="running", examples=30),
        ],
        arm="mab",
    )


def test_only_complete_trials_are_incumbents_and_all_trials_are_spend(made):
    found = incumbent_curve(made)
    assert found.spent.tolist() == [200, 250, 350]
    assert found.accuracy.tolist() == [0.5, 0.5, 0.8]
    assert found.total == 380


def test_seconds_are_the_trials_own(made):
    found = incumbent_curve(made, "seconds")
    assert found.spent == pytest.approx(np.array([200, 250, 350]) * 1e-3)


def test_reading_at_a_spend(made):
    found = incumbent_curve(made)
    values = found.at([0, 199, 200, 349, 350, 1e9])
    assert np.isnan(values[:2]).all()
    assert values[2:].tolist() == [0.5, 0.5, 0.8, 0.8]


def test_first_reaching(made):
    found = incumbent_curve(made)
    assert found.first_reaching(0.5) == 200
    assert found.first_reaching(0.51) == 350
    assert found.first_reaching(0.81) == math.inf


def test_order_is_that_of_the_trial_numbers(made, run):
    turned = run(made.trials[::-1], arm="mab")
    assert incumbent_curve(turned).spent.tolist() == incumbent_curve(made).spent.tolist()


def test_a_study_without_trials_has_no_incumbent(run):
    found = incumbent_curve(run([], arm="mab"))
    assert (len(found.spent), found.total) == (0, 0.0)
    assert np.isnan(found.at(10.0))
    assert found.first_reaching(0.0) == math.inf


def test_unknown_currency(made):
    with pytest.raises(UnknownNameError, match=r"'second'.*'seconds'"):
        incumbent_curve(made, "second")
