"""Stored studies as plain records."""

from __future__ import annotations

import datetime

import optuna
import pytest
from optuna.trial import FrozenTrial

from hpo_mab._attributes import WORKER_KEY
from hpo_mab.storage._runs import _most_processes


def _trial(worker: str, begun: int, ended: int) -> FrozenTrial:
    trial = optuna.create_trial(value=0.5, system_attrs={WORKER_KEY: worker})
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
    ],
)
def test_processes_count_that_train_at_one_time(
    trials: list[tuple[str, int, int]], most: int
) -> None:
    assert _most_processes([_trial(*each) for each in trials]) == most
