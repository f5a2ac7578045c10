"""Stored studies as plain records."""

from __future__ import annotations

import datetime
import time
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from hpo_mab import HpoMabWarning
from hpo_mab._attributes import BUDGET_KEY, SECONDS_KEY, WORKER_KEY
from hpo_mab._errors import StorageError
from hpo_mab.storage import Storage, read_run
from hpo_mab.storage._runs import _most_processes, deletion_is_an_error
from hpo_mab.storage._tables import local_time


def _trial(
    worker: str, begun: int, ended: int, state: TrialState = TrialState.COMPLETE, hours: int = 9
) -> FrozenTrial:
    attrs = {} if worker else {BUDGET_KEY: 100, SECONDS_KEY: 3600.0 * hours}
    trial = optuna.create_trial(
        value=0.5, user_attrs=attrs, system_attrs={WORKER_KEY: worker or None}
    )
    trial.number, trial.state = begun, state
    trial.datetime_start = datetime.datetime(2000, 1, 1, begun)
    trial.datetime_complete = datetime.datetime(2000, 1, 1, ended)
    return trial


@pytest.mark.parametrize(
    ("trials", "most"),
    [
        ([], 1),
        # In slots of one process, and continued by another.
        ([("a", 0, 2), ("a", 1, 3), ("b", 3, 4)], 1),
        ([("a", 0, 5), ("a", 1, 2), ("b", 3, 4)], 2),
        ([("c", 2, 3), ("a", 0, 3), ("b", 1, 3)], 3),
        # In loops of a user's own; a killed trial ends when another process finds it.
        ([("", 0, 2), ("", 1, 3), ("", 3, 4)], 2),
        ([("", 0, 5, TrialState.FAIL), ("", 1, 2), ("", 3, 4)], 1),
        # Asked for together, trained one after the other.
        ([("", 0, 2, TrialState.COMPLETE, 1), ("", 0, 3, TrialState.COMPLETE, 1)], 1),
    ],
)
def test_processes_count_that_train_at_one_time(trials: list[tuple[Any, ...]], most: int) -> None:
    assert _most_processes([_trial(*each) for each in trials]) == most


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="Windows has one time zone")
def test_processes_do_not_overlap_because_the_clocks_go_back(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        with monkeypatch.context() as patch:
            patch.setenv("TZ", "Europe/Berlin")
            time.tzset()
            study = optuna.create_study(study_name="own", storage=storage.optuna)
            trials = [_trial(worker, 0, 0) for worker in ("a", "b")]
            for hour, trial in enumerate(trials):
                # 2:10 to 2:30 in Berlin, twice.
                began = datetime.datetime(2026, 10, 25, hour, 10)
                ended = began + datetime.timedelta(minutes=20)
                trial.datetime_start, trial.datetime_complete = map(local_time, (began, ended))
                study.add_trial(trial)
            stored = study.get_trials()
            assert stored[0].datetime_start == stored[1].datetime_start
            assert _most_processes(stored) == 1
    finally:
        time.tzset()


def test_a_trial_that_breaks_a_constraint_is_not_the_best(storage: Storage) -> None:
    study = optuna.create_study(study_name="own", storage=storage.optuna, direction="maximize")
    for accuracy, size in ((0.5, 0.0), (0.9, 1.0)):
        limits, attrs = {"size": size}, {BUDGET_KEY: 100}
        study.add_trial(optuna.create_trial(value=accuracy, user_attrs=attrs, constraints=limits))
    # Its cost counts.
    with pytest.warns(HpoMabWarning, match="2 of 2 trials"):
        run = read_run(storage, "own")
    assert run.best == run.trials[0]


def test_a_trial_that_a_failover_has_lost_is_an_error_of_one_line(storage: Storage) -> None:
    optuna.create_study(study_name="study", storage=storage.optuna)
    with pytest.raises(StorageError, match="no longer in"), deletion_is_an_error(storage, "study"):
        storage.optuna.get_trial(999)
    # Of a user's own code.
    with pytest.raises(KeyError, match="own"), deletion_is_an_error(storage, "study"):
        raise KeyError("own")
