"""What is called while a study runs."""

from __future__ import annotations

from typing import Any

import optuna
import pytest

from hpo_mab._errors import ArgumentError
from hpo_mab.search import Observer
from hpo_mab.search._observer import observer_of


def test_a_function_is_called_after_each_trial_only() -> None:
    study = optuna.create_study()
    study.add_trial(optuna.create_trial(value=0.5))
    ended: list[int] = []
    observer = observer_of(lambda study, trial: ended.append(trial.number))
    observer.running({0: 0.5})
    observer.testing({0: 0.5})
    assert not ended
    observer.ended(study, study.trials[0])
    assert ended == [0]


def test_an_observer_is_itself_and_none_is_one_that_does_nothing() -> None:
    study = optuna.create_study()
    study.add_trial(optuna.create_trial(value=0.5))
    own = Observer()
    assert observer_of(own) is own
    nobody = observer_of(None)
    nobody.running({0: 0.5})
    nobody.testing({0: 0.5})
    nobody.ended(study, study.trials[0])


@pytest.mark.parametrize("other", [3, "a function", Observer])
def test_what_cannot_be_called_after_a_trial_is_refused(other: Any) -> None:
    with pytest.raises(ArgumentError, match="on_trial must be a function or an Observer, got"):
        observer_of(other)
