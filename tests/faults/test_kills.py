from __future__ import annotations

import dataclasses
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from _faults import FaultReport, count_faults, inject_kills
from small_studies import quick
from tools import runs

from hpo_mab.storage import Storage, read_run

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")


def _lost_and_doubled_nothing(report: FaultReport, *, trials: int) -> None:
    assert report.trials == report.target >= trials
    assert (report.lost, report.doubled, report.inconsistent) == ((), (), ())


@pytest.mark.parametrize(
    ("database_url", "trials", "steps", "kills", "workers", "more"),
    [("sqlite", 24, 60, 8, 2, 4), ("postgresql", 16, 12, 5, 3, 2), ("mariadb", 10, 12, 3, 3, 0)],
    indirect=["database_url"],
)
def test_killed_workers_lose_and_double_nothing(
    database_url: str, trials: int, steps: int, kills: int, workers: int, more: int
) -> None:
    spec = quick(trials=trials, steps=steps)
    report = inject_kills(database_url, spec, kills=kills, workers=workers)
    assert report.kills >= kills
    _lost_and_doubled_nothing(report, trials=trials)
    # Otherwise no killed worker had begun a trial, and nothing was tested.
    assert report.attempts >= report.trials + more


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
def test_a_database_that_restarts_costs_no_trial(own_postgres: Any) -> None:
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


def test_lost_and_doubled_trials_are_counted(tmp_path: Path) -> None:
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
