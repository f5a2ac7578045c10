from __future__ import annotations

import dataclasses
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from _faults import FaultReport, count_faults, inject_kills

from hpo_mab.search import StudySpec
from hpo_mab.storage import Storage, read_run

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")

Make = Callable[..., StudySpec]


def _lost_and_doubled_nothing(report: FaultReport, *, trials: int) -> None:
    assert report.trials == report.target >= trials
    assert (report.lost, report.doubled, report.inconsistent) == ((), (), ())


def test_killed_workers_lose_and_double_nothing(tmp_path: Path, quick: Make) -> None:
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    report = inject_kills(url, quick(trials=24, steps=60), kills=8)
    assert report.kills >= 8
    _lost_and_doubled_nothing(report, trials=24)
    # Otherwise no killed worker had begun a trial, and nothing was tested.
    assert report.attempts >= report.trials + 4


def test_killed_workers_lose_and_double_nothing_on_postgresql(
    postgres_url: str, quick: Make
) -> None:
    report = inject_kills(postgres_url, quick(trials=16), kills=5, workers=3)
    assert report.kills >= 5
    _lost_and_doubled_nothing(report, trials=16)
    assert report.attempts >= report.trials + 2


def test_killed_workers_lose_and_double_nothing_on_mariadb(mariadb_url: str, quick: Make) -> None:
    report = inject_kills(mariadb_url, quick(trials=10), kills=3, workers=3)
    assert report.kills >= 3
    _lost_and_doubled_nothing(report, trials=10)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
def test_a_database_that_restarts_costs_no_trial(
    own_postgres: Any, quick: Make, runs: Callable[[int], bool]
) -> None:
    stopped: list[int] = []

    def restart() -> None:
        stopped.append(own_postgres.pid)
        # PostgreSQL's immediate shutdown, like a loss of power.
        os.kill(stopped[0], signal.SIGQUIT)
        while runs(stopped[0]):
            time.sleep(0.05)
        own_postgres.restart()

    report = inject_kills(own_postgres.url, quick(trials=40), kills=0, disturb=restart)
    assert own_postgres.pid != stopped[0]
    _lost_and_doubled_nothing(report, trials=40)


def test_lost_and_doubled_trials_are_counted(tmp_path: Path, quick: Make) -> None:
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    inject_kills(url, quick(trials=3), kills=0, workers=1)
    storage = Storage(url)
    run = read_run(storage, "tiny-uniform-seed0")
    storage.close()
    clean = count_faults(run, kills=0)
    assert (clean.lost, clean.doubled, clean.inconsistent) == ((), (), ())

    first, second, third = run.trials
    again = dataclasses.replace(second, slot=first.slot, attrs={**second.attrs, "hpo_mab:slot": 0})
    assert count_faults(dataclasses.replace(run, trials=(first, again, third)), kills=0).doubled
    cut = dataclasses.replace(second, curve=second.curve[:-1])
    assert count_faults(dataclasses.replace(run, trials=(first, cut)), kills=0).inconsistent == (1,)
    empty = dataclasses.replace(second, state="pruned", curve=(), value=None)
    assert count_faults(dataclasses.replace(run, trials=(first, empty)), kills=0).inconsistent
    gone = dataclasses.replace(second, state="running", value=None)
    assert count_faults(dataclasses.replace(run, trials=(first, gone)), kills=0).lost == (1,)
