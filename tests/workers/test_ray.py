"""Workers on a Ray cluster.

``pytest -m ray`` runs the tests that start one, which takes longer than all others together.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from small_studies import define, quick

from hpo_mab import HpoMabWarning
from hpo_mab.search import StudyFailedError, StudyRunner
from hpo_mab.search._observer import NOBODY
from hpo_mab.storage import Storage
from hpo_mab.workers import RayLauncher, _ray

PASSWORD = "hunter2ever"
_ME = str(os.getpid())


def on_a_cluster(test: Callable[..., None]) -> Callable[..., None]:
    """Marks a test that starts a cluster."""
    # Ray's own threads, sockets and deprecations.
    return pytest.mark.ray(pytest.mark.filterwarnings("default")(test))


class _RayError(Exception):
    """Ray's error of a task."""


class _Ended:
    """Ray as far as the launcher uses it. Each task has ended: with a result, or with an error."""

    exceptions = types.SimpleNamespace(RayError=_RayError)

    def __init__(self, *ends: bool | _RayError) -> None:
        self._ends = iter(ends)
        #: What each task was given.
        self.given: list[dict[str, Any]] = []

    def is_initialized(self) -> bool:
        return True

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": {"CPU": 8.0, "GPU": 8.0}}]

    def remote(self, **options: Any) -> Callable[..., Any]:
        return lambda work: types.SimpleNamespace(remote=self._start)

    def _start(self, *arguments: str, **given: Any) -> bool | _RayError:
        self.given.append(given)
        return next(self._ends)

    def wait(self, tasks: list[Any], *, timeout: float) -> tuple[list[Any], list[Any]]:
        return tasks[:1], tasks[1:]

    def get(self, task: bool | _RayError) -> bool:
        if isinstance(task, _RayError):
            raise task
        return task


def _defined(**options: Any) -> optuna.Study:
    study = optuna.create_study(study_name="mine", **options)
    define(study, {})
    return study


def _launch(monkeypatch: pytest.MonkeyPatch, ray: _Ended, **options: Any) -> bool:
    """Launches two workers."""
    monkeypatch.setattr(_ray, "_import_ray", lambda: ray)
    given = {"workers": 2, "data_root": "data", **options}
    launcher = RayLauncher(Storage("postgresql://host/studies"), **given)
    return launcher(_defined(), NOBODY, lambda observer: False)


@pytest.mark.parametrize("ends", [(_RayError("no\ndisk"), False), (False, _RayError("no\ndisk"))])
def test_a_worker_that_ends_with_an_error_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, ends: tuple[bool | _RayError, ...]
) -> None:
    with pytest.warns(HpoMabWarning, match="A worker has ended early: disk"):
        assert not _launch(monkeypatch, _Ended(*ends))


def test_workers_that_all_end_with_errors_fail_the_study(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StudyFailedError, match="no space"):
        _launch(monkeypatch, _Ended(_RayError("no disk"), _RayError("no space")))


@pytest.mark.parametrize(
    ("device", "gpus", "taken"),
    [("auto", 0.0, "cpu"), ("auto", 0.5, "auto"), ("cuda", 0.0, "cuda"), (None, 0.0, None)],
)
def test_workers_without_a_gpu_of_their_own_train_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch, device: str | None, gpus: float, taken: str | None
) -> None:
    ray = _Ended(False, False)
    assert not _launch(monkeypatch, ray, device=device, gpus_per_worker=gpus)
    assert [one["device"] for one in ray.given] == [taken] * 2


def test_each_worker_reserves_a_cpu_for_each_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.warns(HpoMabWarning, match="No node of the Ray cluster has the 9 CPU of a worker"):
        assert not _launch(monkeypatch, _Ended(False, False), threads=9)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A Ray cluster of two nodes of one CPU each, on this host."""
    reason = "needs Ray (extra 'ray')"
    utils = pytest.importorskip("ray.cluster_utils", reason=reason)
    ray = pytest.importorskip("ray", reason=reason)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        started = utils.Cluster(
            initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
        )
        started.add_node(num_cpus=1)
        yield started
        ray.shutdown()
        started.shutdown()


@on_a_cluster
def test_two_nodes_finish_a_study_together(
    cluster: Any, postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, work = str(tmp_path), _ray._work

    def work_once_both_have_a_trial(*arguments: str, **given: Any) -> bool:
        import os
        import pathlib
        import time

        from hpo_mab.search import TrainingObjective

        train = TrainingObjective.train

        def wait_for_the_other(objective: Any, trial: Any, recording: Any) -> float:
            pathlib.Path(here, str(os.getpid())).touch()
            while len(list(pathlib.Path(here).iterdir())) < 2:
                time.sleep(0.05)
            return train(objective, trial, recording)

        TrainingObjective.train = wait_for_the_other
        return work(*arguments, **given)

    monkeypatch.setattr(_ray, "_work", work_once_both_have_a_trial)
    spec = quick(trials=12)
    # The server asks for no password; Ray must not show the one it is given.
    storage = Storage(postgres_url.replace("postgres:@", f"postgres:{PASSWORD}@"))
    assert PASSWORD in storage.secret_url
    launcher = RayLauncher(storage, workers=2, address=cluster.address, data_root=spec.data.root)
    finished_trials: list[int] = []
    outcome = StudyRunner(spec, storage).run(
        score=False,
        launch=launcher,
        on_trial=lambda study, trial: finished_trials.append(trial.number),
    )
    assert not outcome.interrupted
    finished = [t for t in outcome.run.trials if t.state in ("complete", "pruned")]
    assert sorted(trial.slot for trial in finished) == list(range(12))
    assert sorted(finished_trials) == [trial.number for trial in outcome.run.trials]
    # Both nodes had a part in it.
    workers = {
        t.system_attrs["hpo_mab:worker"]
        for t in storage.optuna.get_all_trials(
            storage.optuna.get_study_id_from_name(outcome.run.name)
        )
    }
    assert len(workers) == 2
    storage.close()
    _holds_no_password(cluster)


def _holds_no_password(cluster: Any) -> None:
    """Neither Ray's logs and state nor the command lines of its processes."""
    state = pytest.importorskip("ray.util.state", reason="needs Ray's state API")
    folder = Path(cluster.head_node.get_session_dir_path())
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert any(path.suffix == ".log" for path in files)
    lines = [path for path in Path("/proc").glob("[0-9]*/cmdline") if path.parent.name != _ME]
    for path in [*files, *lines]:
        with contextlib.suppress(OSError):
            assert PASSWORD.encode() not in path.read_bytes(), path
    with contextlib.suppress(state.exception.RayStateApiException):  # It needs Ray's dashboard.
        assert PASSWORD not in repr(state.list_tasks(detail=True))


@on_a_cluster
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.usefixtures("python_handler")
def test_the_second_ctrl_c_ends_workers_that_do_not_answer_the_first(
    cluster: Any, postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = str(tmp_path / "begun")

    def deaf(*_: str, **__: Any) -> None:
        import os
        import pathlib
        import sqlite3

        pathlib.Path(begun).write_text(str(os.getpid()))
        # Counts for ever, so that Python cannot handle signals.
        sqlite3.connect(":memory:").execute(
            "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT max(x) FROM n"
        )

    over, pressed = threading.Event(), list[float]()

    def press_twice() -> None:
        while not Path(begun).exists() or not Path(begun).read_text():
            if over.wait(0.05):
                return
        # The first one waits for the worker, however long that takes.
        while len(pressed) < 2 and not over.wait(2):
            pressed.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(_ray, "_work", deaf)
    storage = Storage(postgres_url)
    study = _defined(storage=storage.optuna)
    launcher = RayLauncher(storage, workers=1, address=cluster.address, data_root="data")
    hand = threading.Thread(target=press_twice)
    hand.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            launcher(study, NOBODY, lambda observer: False)
    finally:
        seconds = time.monotonic() - (pressed or [0.0])[-1]
        over.set()
        hand.join()
        storage.close()
    assert len(pressed) == 2
    assert seconds < 10
    worker = Path("/proc") / Path(begun).read_text()
    while worker.exists():
        assert time.monotonic() < pressed[-1] + 20
        time.sleep(0.05)


@on_a_cluster
def test_workers_that_no_node_can_take_are_announced(
    cluster: Any, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(postgres_url)
    study = _defined(storage=storage.optuna)
    given: dict[str, Any] = {"workers": 1, "address": cluster.address, "data_root": "data"}
    monkeypatch.setattr(_ray, "_work", lambda *_, **__: False)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "No node")
        assert not RayLauncher(storage, **given)(study, None, lambda observer: False)
    # It would wait for such a node.
    monkeypatch.setattr(RayLauncher, "_follow", lambda *_: False)
    with pytest.warns(HpoMabWarning, match="has the 1 CPU and 0.5 GPU of a worker"):
        RayLauncher(storage, gpus_per_worker=0.5, **given)(study, None, lambda observer: False)
    storage.close()
