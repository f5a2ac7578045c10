from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tools import count, until

from hpo_mab.storage import Storage, read_run

Cli = Any
NAME = "tiny-mab-seed0"

pytestmark = pytest.mark.skipif(not Path("/proc").exists(), reason="needs /proc")


def _children(pid: int) -> list[int]:
    """Processes that any thread of a process has started."""
    lists = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for one in lists for child in one.read_text().split()]


def _finished(database: Path) -> int:
    """Number of finished trials, by SQL: opening a storage takes longer than a trial."""
    return count(database, "trials WHERE state IN ('COMPLETE', 'PRUNED')")


def _has_trained(database: Path, pid: int) -> bool:
    """Whether a process has begun a trial."""
    return count(database, f"trial_system_attributes WHERE value_json LIKE '%:{pid}:%'") > 0


@contextlib.contextmanager
def _launched(tiny: str, folder: Path, *, workers: int) -> Iterator[subprocess.Popen[bytes]]:
    """A run with so many trials that it lasts until all its workers have started."""
    # A test run in the background of a shell ignores Ctrl-C, and so would the command.
    attentive = ["env", "--default-signal=INT", sys.executable, "-m", "hpo_mab"]
    crew = ["--workers", str(workers)]
    command = [*attentive, "run", tiny, "--trials", "20000", *crew, "--quiet"]
    with subprocess.Popen(command, cwd=folder) as parent:
        try:
            yield parent
        finally:
            # End the run also if the test fails.
            parent.kill()


def _goes_on(cli: Cli, tiny: str, database: Path) -> None:
    """The same command finishes the study, every planned trial once."""
    # Each of up to three workers had a trial, which is repeated.
    target = _finished(database) + 3
    out = cli.out("run", tiny, "--trials", str(target), "--json")
    facts = json.loads(out)
    assert facts["trials"]["complete"] + facts["trials"]["pruned"] == target
    storage = Storage(database)
    trials = read_run(storage, NAME).trials
    storage.close()
    slots = sorted(t.slot for t in trials if t.state in ("complete", "pruned"))
    assert slots == list(range(target))
    assert not any(trial.state in ("running", "waiting") for trial in trials)


def test_workers_survive_a_kill_and_ctrl_c_and_lose_nothing(
    cli: Cli, tiny: str, tmp_path: Path
) -> None:
    database = tmp_path / "hpo_mab.db"
    with _launched(tiny, tmp_path, workers=2) as parent:
        assert until(lambda: _finished(database) >= 1 and len(_children(parent.pid)) == 1)
        workers = _children(parent.pid)
        assert until(lambda: _has_trained(database, workers[0]))
        os.kill(workers[0], signal.SIGKILL)
        assert until(lambda: len(set(_children(parent.pid)) - set(workers)) == 1)
        parent.send_signal(signal.SIGINT)
        assert parent.wait(240) == 130
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    _goes_on(cli, tiny, database)


def test_a_worker_joins_a_study_by_name_and_replay_repeats_its_trials(
    cli: Cli, tiny: str, tmp_path: Path
) -> None:
    from hpo_mab.search._target import StudyTarget
    from hpo_mab.storage import open_study

    assert cli("run", tiny, "--trials", "1", "--quiet")[0] == 0
    storage = Storage(f"sqlite:///{tmp_path / 'hpo_mab.db'}")
    study = open_study(storage, NAME)
    target = StudyTarget.load(study)
    StudyTarget(trials=3, total=None, epoch_examples=target.epoch_examples).save(study)
    storage.close()
    status, out, err = cli("worker", NAME)
    assert (status, out) == (0, "")
    assert "3/3 trials" in err
    out = cli.out("replay", NAME, "2")
    assert "reproduced bit for bit" in out

    # Nothing is left to do, which it says.
    status, out, err = cli("worker", NAME)
    assert (status, out) == (0, "")
    assert err.startswith(f"{NAME}: 3/3 trials, 0 pruned, best ")
    assert cli("worker", NAME, "--quiet") == (0, "", "")


def test_replay_says_that_a_trial_was_trained_in_a_slot(cli: Cli, tiny: str) -> None:
    run = ("run", tiny, "--sampler", "mab", "--trials", "2", "--name", "slots", "--quiet")
    assert cli(*run, "--slots", "2")[0] == 0
    status, out, _ = cli("replay", "slots", "0")
    assert status == 1
    assert "A difference is expected: the trial was one of up to 2 in a stack" in out
    assert json.loads(cli("replay", "slots", "0", "--json").out)["slots"] == 2


def test_a_worker_on_ray_reserves_the_threads_of_its_trials(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from hpo_mab import workers
    from hpo_mab.cli._launcher import launcher
    from hpo_mab.search import load_spec

    given: dict[str, Any] = {}
    monkeypatch.setattr(workers, "RayLauncher", lambda _, **options: given.update(options))
    options = {"workers": "2", "ray": "auto", "gpus_per_worker": None}
    context: Any = SimpleNamespace(params={**options, "quiet": True, "as_json": False})
    spec = load_spec("digits", {"training.threads": 4})
    launcher(context, spec, Storage("postgresql://host/studies"))
    assert given["threads"] == 4


# A comparison keeps one process unless it is asked for more, so that its seconds compare.
@pytest.mark.parametrize(("command", "auto"), [("run", ()), ("compare", ("--workers", "auto"))])
def test_others_start_later_where_they_can_reach_the_study(
    cli: Cli, tiny: str, monkeypatch: pytest.MonkeyPatch, command: str, auto: tuple[str, ...]
) -> None:
    from hpo_mab import workers

    made: list[object] = []

    class Launcher(workers.ProcessLauncher):
        def __init__(self, storage: Storage, *, devices: object, **options: Any) -> None:
            made.append(devices)
            super().__init__(storage, devices=devices, **options)

    monkeypatch.setattr(workers, "ProcessLauncher", Launcher)
    few = ("--trials", "1", "--set", "compare.retrain=0", "--json")
    memory = (*auto, "--storage", "sqlite://")
    one = ("--workers", "1") if command == "run" else ()
    for given, later in ((auto, 1), (one, 0), (memory, 0)):
        status, _, err = cli(command, tiny, *few, *given)
        assert (status, err) == (0, "")
        assert list(map(callable, made)) == [True] * later
        made.clear()
