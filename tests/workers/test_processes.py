from __future__ import annotations

import functools
import math
import threading
import time
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import optuna
import pytest
from optuna.trial import TrialState
from small_studies import define

from hpo_mab import HpoMabWarning, _machine
from hpo_mab._attributes import LOST_KEY, WORKER_KEY
from hpo_mab._errors import ArgumentError, StorageError
from hpo_mab.search._observer import NOBODY, observer_of
from hpo_mab.search._target import StudyTarget
from hpo_mab.storage import Storage
from hpo_mab.storage._process import machine, this_process
from hpo_mab.workers import ProcessLauncher, RayLauncher, _processes
from hpo_mab.workers._processes import WorkerProcess
from hpo_mab.workers._room import later_devices
from hpo_mab.workers._watch import FinishedWatch

PASSWORD = "hunter2"


class Script:
    """Replaces worker processes; they end with the given statuses, in order."""

    pid = 1
    begins: ClassVar[Callable[[], object]]
    ends: ClassVar[list[int]] = []
    started: ClassVar[list[Sequence[str]]] = []

    def __init__(self, arguments: Sequence[str], *, storage: str) -> None:
        type(self).begins()
        self.started.append(arguments)
        self.status = self.ends.pop(0) if self.ends else 0

    def last_line(self) -> str:
        return f"status {self.status}"

    def stop(self) -> None: ...

    def close(self) -> None: ...


@pytest.fixture
def study(tmp_path: Path) -> Any:
    storage = Storage(str(tmp_path / "studies.db"))
    study = optuna.create_study(study_name="mine", storage=storage.optuna, direction="maximize")
    define(study, {})
    # The workers that replace processes have begun a trial.
    study.add_trial(optuna.create_trial(value=0.5, system_attrs={WORKER_KEY: f"{machine()}:1:2"}))
    yield study
    storage.close()


@pytest.fixture
def run(
    study: optuna.Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., bool]:
    """Runs two workers that end with the given statuses; returns whether interrupted.

    Each calls ``begins`` first.
    """
    monkeypatch.setattr(_processes, "WorkerProcess", Script)
    monkeypatch.setattr(_processes, "_SECONDS_BETWEEN_POLLS", 0.001)

    def launch(
        *ends: int,
        here: bool = False,
        on_trial: Any = None,
        trains: Any = lambda: None,
        begins: Any = lambda: None,
    ) -> bool:
        Script.ends, Script.started, Script.begins = list(ends), [], begins
        storage = Storage(str(tmp_path / "studies.db"))
        launcher = ProcessLauncher(storage, devices=["cpu", "cpu"], data_root="data", slots=3)

        def run_here(observer: Any, *, workers: int = 1) -> bool:
            launch.observer = observer  # type: ignore[attr-defined]
            trains()
            return here

        return launcher(study, observer_of(on_trial), run_here)

    return launch


def test_a_worker_that_dies_is_replaced(run: Callable[..., bool]) -> None:
    assert run(-9, 1, 0, -9, 0) is False
    assert len(Script.started) == 5
    assert list(Script.started[0]) == [
        "--device", "cpu", "--data-root", "data", "--slots", "3", "--workers", "3",
        "--", "mine",
    ]  # fmt: skip


def test_a_worker_that_is_just_replaced_is_waited_for(run: Callable[..., bool]) -> None:
    replacing = threading.Event()

    def begins() -> None:
        if len(Script.started) >= 2:
            replacing.set()
            # Meanwhile this process looks several times for workers to wait for.
            time.sleep(0.05)

    with pytest.warns(HpoMabWarning, match="died; the last one: status -11"):
        run(*[-11] * 100, trains=replacing.wait, begins=begins)
    assert len(Script.started) == 10


def test_a_trial_that_a_worker_lost_is_no_sign_of_life(
    run: Callable[..., bool], study: optuna.Study
) -> None:
    def begins() -> None:
        study.add_trial(
            optuna.create_trial(
                state=optuna.trial.TrialState.FAIL,
                user_attrs={LOST_KEY: True},
                system_attrs={WORKER_KEY: "other:1:2"},
            )
        )

    with pytest.warns(HpoMabWarning, match="died; the last one: status -11"):
        run(*[-11] * 100, begins=begins)
    assert len(Script.started) == 10


@pytest.mark.parametrize(
    ("worker", "started"),
    # In the last case that of the first place does. The second place is given up nevertheless.
    [(this_process(), 10), ("other:1:2", 10), (f"{machine()}:1:2", 31)],
    ids=["this process", "other machine", "worker"],
)
def test_deaths_in_a_place_are_forgotten_when_its_worker_finishes_a_trial(
    run: Callable[..., bool], study: optuna.Study, worker: str, started: int
) -> None:
    def begins() -> None:
        if len(Script.started) % 2:
            study.add_trial(optuna.create_trial(value=0.5, system_attrs={WORKER_KEY: worker}))

    # The thread that follows the workers looks after each start.
    with pytest.warns(HpoMabWarning, match="status -11") as given_up:
        run(*[-11] * 30, begins=begins)
    assert len(Script.started) == started
    assert len(given_up) == (2 if started == 10 else 1)


def test_a_worker_that_gives_up_is_not_replaced_and_its_error_is_shown(
    run: Callable[..., bool],
) -> None:
    with pytest.warns(HpoMabWarning, match="A worker has ended early: status 2"):
        assert run(2, 0) is False
    assert len(Script.started) == 2


def test_a_worker_that_gives_up_is_warned_of_at_once(
    run: Callable[..., bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    warned, known = threading.Event(), list[bool]()
    monkeypatch.setattr("warnings.warn", lambda *_, **__: warned.set())
    run(2, 0, trains=lambda: known.append(warned.wait(60)))
    assert known == [True]


def test_a_run_goes_on_with_the_processes_that_the_system_allows(
    run: Callable[..., bool], study: optuna.Study
) -> None:
    def begins() -> None:
        if len(Script.started) >= allowed:
            raise BlockingIOError(11, "Resource temporarily unavailable")

    passed: list[int] = []
    for allowed in (0, 1, 2):
        # The second one dies, and cannot be replaced.
        with pytest.warns(HpoMabWarning, match="no process could be started: .*unavailable"):
            assert not run(
                *(0, -9),
                on_trial=lambda study, trial: passed.append(trial.number),
                trains=lambda: study.add_trial(optuna.create_trial(value=0.5)),
                begins=begins,
            )
        assert len(Script.started) == allowed
    assert passed == [1, 2, 3]


def test_the_run_is_interrupted_where_this_process_is(run: Callable[..., bool]) -> None:
    assert run(130, 130, here=True) is True
    # Of workers stopped from outside, this process has trained the rest.
    assert run(130, 0) is False


@pytest.mark.parametrize("trials_here", [0, 60_000])
def test_what_a_callback_raises_of_a_trial_elsewhere_ends_the_run(
    run: Any, study: optuna.Study, trials_here: int
) -> None:
    def fail(study: optuna.Study, trial: Any) -> None:
        raise OSError("the terminal is gone")

    def end_a_trial() -> None:
        study.add_trial(optuna.create_trial(value=0.5))

    def train() -> None:
        (frozen, *_) = study.trials
        for _ in range(trials_here):
            run.observer.ended(study, frozen)
            time.sleep(0.001)
        if trials_here:
            pytest.fail("the trials here continued")

    with pytest.raises(OSError, match="the terminal is gone"):
        run(on_trial=fail, trains=train, begins=end_a_trial)


def test_ctrl_c_stops_workers_and_kills_them_the_second_time(
    study: optuna.Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    class Busy:
        """A worker whose trial never ends."""

        pid = 1
        status: int | None = None

        def __init__(self, arguments: Sequence[str], *, storage: str) -> None: ...

        def stop(self) -> None:
            asked.append("stop")

        def kill(self) -> None:
            asked.append("kill")
            self.status = -9

        def close(self) -> None: ...

    def sleep(seconds: float) -> None:
        asked.append("Ctrl-C")
        raise KeyboardInterrupt

    monkeypatch.setattr(_processes, "WorkerProcess", Busy)
    clock = types.SimpleNamespace(sleep=sleep, monotonic=time.monotonic)
    monkeypatch.setattr(_processes, "time", clock)
    storage = Storage(str(tmp_path / "studies.db"))
    launcher = ProcessLauncher(storage, devices=["cpu"] * 2, data_root="data")
    # Raised, so that the summary and the pages after a run are left out.
    with pytest.raises(KeyboardInterrupt):
        launcher(study, NOBODY, lambda observer: True)
    assert asked == ["stop", "stop", "Ctrl-C", "kill", "kill"]
    asked.clear()
    # This process has no more trials, and waits for the workers.
    with pytest.raises(KeyboardInterrupt):
        launcher(study, NOBODY, lambda observer, **_: False)
    assert asked == ["Ctrl-C", "stop", "stop", "Ctrl-C", "kill", "kill"]


class _Clock:
    """Replaces the time; a trial takes ten seconds."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None: ...


@pytest.fixture
def run_later(
    study: optuna.Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[int]]:
    """Ends trials here one by one; returns how many workers had been started after each.

    A share in place of a state is that of the running trial; 0: none runs.
    """
    monkeypatch.setattr(_processes, "WorkerProcess", Script)
    monkeypatch.setattr(_processes, "_SECONDS_BETWEEN_POLLS", 0.001)
    monkeypatch.setattr(_processes, "time", clock := _Clock())
    monkeypatch.setattr("joblib.cpu_count", lambda: 3)
    monkeypatch.setattr(_machine, "available_memory", lambda: None)
    # One has finished before.
    StudyTarget(trials=13, total=None, epoch_examples=100).save(study)

    def launch(*states: str | float, worth: float, on_trial: Any = None) -> list[int]:
        Script.ends, Script.started, Script.begins = [], [], lambda: None
        started: list[int] = []
        passed = threading.Semaphore(0)

        def pass_on(study: optuna.Study, trial: Any) -> None:
            if on_trial is not None:
                on_trial(study, trial)
            passed.release()

        def run_here(here: Any, *, workers: int = 1) -> bool:
            for state in states:
                clock.now += 10.0
                if isinstance(state, float):
                    here.running({99: state} if state else {})
                    started.append(len(Script.started))
                    continue
                attrs = {"hpo_mab:length": 2} if state == "UNBEGUN" else {}
                value = {"value": 0.5} if state == "COMPLETE" else {}
                kind = TrialState["PRUNED" if state == "UNBEGUN" else state]
                study.add_trial(optuna.create_trial(state=kind, user_attrs=attrs, **value))
                here.ended(study, study.trials[-1])
                assert passed.acquire(timeout=240)
                started.append(len(Script.started))
            return False

        monkeypatch.setattr(_processes, "_WORTH_SECONDS", worth)
        later = functools.partial(later_devices, device="cpu")
        storage = Storage(str(tmp_path / "studies.db"))
        launcher = ProcessLauncher(storage, devices=later, data_root="data")
        launcher(study, observer_of(pass_on), run_here)
        storage.close()
        return started

    return launch


def test_others_are_started_once_a_trial_has_finished_and_enough_is_left(
    run_later: Callable[..., list[int]],
) -> None:
    # 20 s for the first that finishes and 11 left, which take 220 s.
    assert run_later("FAIL", "COMPLETE", "COMPLETE", worth=219.0) == [0, 1, 1]


def test_a_continuation_that_could_not_begin_is_no_measure_of_a_trial(
    run_later: Callable[..., list[int]],
) -> None:
    # 20 s for the first that is trained and 10 left, which take 200 s.
    assert run_later("UNBEGUN", "COMPLETE", worth=199.0) == [0, 1]


def test_others_are_not_started_for_little_work(run_later: Callable[..., list[int]]) -> None:
    assert run_later("COMPLETE", "PRUNED", "COMPLETE", worth=110.0) == [0, 0, 0]


def test_others_are_started_while_a_long_first_trial_runs(
    run_later: Callable[..., list[int]],
) -> None:
    # After 10 s, a quarter of 40 s, nothing is known yet.
    assert run_later(0.05, 0.1, 0.15, worth=40.0) == [0, 2, 2]
    assert run_later(0.0, 0.0, 0.1, 0.15, worth=40.0) == [0, 0, 2, 2]


def test_others_that_cannot_be_started_do_not_end_the_first_trial(
    run_later: Callable[..., list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(arguments: Sequence[str], *, storage: str) -> Script:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(_processes, "WorkerProcess", refuse)
    shown: list[int] = []
    with pytest.warns(HpoMabWarning, match="no process could be started"):
        started = run_later(
            0.1, 0.2, "COMPLETE", worth=20.0, on_trial=lambda study, trial: shown.append(1)
        )
    assert started == [0, 0, 0]
    assert shown == [1]


def test_the_first_trial_decides_once(
    run_later: Callable[..., list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of the budget nothing is left to do.
    shares = iter((0.25, 0.97))
    monkeypatch.setattr(StudyTarget, "share_spent", lambda *args: next(shares))
    assert run_later(0.9, 0.95, worth=20.0) == [0, 0]


def test_an_error_before_the_first_trial_ends_the_run(
    run_later: Callable[..., list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StudyTarget, "share_spent", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_later(worth=0.0)


def test_a_total_budget_leaves_less_to_do(
    run_later: Callable[..., list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of this budget a trial takes a twelfth: 8 more take 80 s.
    def spend(*args: Any, shares: Iterator[float]) -> float:
        return next(shares)

    for worth, started in ((80.0, 0), (79.0, 1)):
        shares = iter((0.25, 0.25 + 1 / 12))
        monkeypatch.setattr(StudyTarget, "share_spent", functools.partial(spend, shares=shares))
        assert run_later("COMPLETE", worth=worth) == [started]


def test_it_is_decided_once_how_many_there_are(
    run_later: Callable[..., list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_machine, "available_memory", lambda: 0)
    monkeypatch.setattr(_machine, "resident_memory", lambda: 1)
    asked: list[int] = []
    monkeypatch.setattr("joblib.cpu_count", lambda: asked.append(1) or 3)
    assert run_later("COMPLETE", "COMPLETE", worth=0.0) == [0, 0]
    assert asked == [1]


@pytest.mark.parametrize("worth", [0.0, math.inf])
def test_each_trial_is_passed_on_once_before_and_after_others_are_started(
    run_later: Callable[..., list[int]], worth: float
) -> None:
    numbers: list[int] = []
    threads: list[int] = []

    def on_trial(study: optuna.Study, trial: Any) -> None:
        numbers.append(trial.number)
        threads.append(threading.get_ident())

    run_later("COMPLETE", "COMPLETE", "FAIL", worth=worth, on_trial=on_trial)
    assert numbers == [1, 2, 3]
    # A run that is alone does not wait for another thread to look.
    alone = [thread == threading.get_ident() for thread in threads]
    assert alone == ([True] * 3 if worth == math.inf else [True, False, False])


def test_a_run_that_is_alone_shows_its_running_trial(
    study: optuna.Study, tmp_path: Path, progress: Any
) -> None:
    def run_here(here: Any, *, workers: int = 1) -> bool:
        here.running({1: 0.5})
        return False

    StudyTarget(trials=1, total=None, epoch_examples=100).save(study)
    storage = Storage(str(tmp_path / "studies.db"))
    ProcessLauncher(storage, devices=later_devices, data_root="data")(study, progress, run_here)
    storage.close()
    assert progress.shares == [{1: 0.5}]


def test_a_worker_that_still_loads_when_the_study_is_done_is_not_waited_for(
    study: optuna.Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Loading:
        """Ends when it is asked to, or looked at three times."""

        pid = 2
        looks = 0
        stopped: ClassVar[list[int]] = []

        def __init__(self, arguments: Sequence[str], *, storage: str) -> None: ...

        @property
        def status(self) -> int | None:
            self.looks += 1
            return 130 if self.stopped else None if self.looks < 3 else 0

        def stop(self) -> None:
            self.stopped.append(self.pid)

        def close(self) -> None: ...

    monkeypatch.setattr(_processes, "WorkerProcess", Loading)
    storage = Storage(str(tmp_path / "studies.db"))
    launcher = ProcessLauncher(storage, devices=["cpu"], data_root="data")
    assert launcher(study, NOBODY, lambda observer, **_: False) is False
    storage.close()
    assert Loading.stopped == [2]


def test_finished_trials_are_passed_on_once(run: Callable[..., bool], study: optuna.Study) -> None:
    study.add_trial(optuna.create_trial(value=0.5))
    finished: list[int] = []
    watch = FinishedWatch(study, observer_of(lambda study, trial: finished.append(trial.number)))
    assert watch.report_new() == []
    study.add_trial(optuna.create_trial(value=0.5))
    assert [[trial.number for trial in watch.report_new()] for _ in range(2)] == [[2], []]
    assert finished == [2]


@pytest.mark.parametrize("budget", [{"evaluations": 4}, {"steps": 4, "evaluations": 8}])
def test_running_trials_of_workers_show_the_share_of_their_budget(
    progress: Any, budget: dict[str, int]
) -> None:
    study = optuna.create_study(direction="maximize")
    define(study, {"budget": budget})
    watch = FinishedWatch(study, progress)
    first, _ = study.ask(), study.ask()
    first.report(0.5, step=1)
    watch.report_new()
    first.report(0.6, step=3)
    watch.report_new()
    study.tell(first, 0.7)
    watch.report_new()
    assert progress.shares == [{0: 0.25}, {0: 0.75}]


def test_workers_need_a_database_they_can_reach(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="not one in memory"):
        ProcessLauncher(Storage("sqlite://"), devices=["cpu"], data_root="data")
    with pytest.raises(ArgumentError, match="devices"):
        ProcessLauncher(Storage(str(tmp_path / "x.db")), devices=[], data_root="data")
    with pytest.raises(StorageError, match="SQLite is a file of one machine"):
        RayLauncher(Storage(str(tmp_path / "x.db")), workers=1, data_root="data")


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="needs /proc")
def test_a_password_reaches_the_worker_and_nobody_else() -> None:
    url = f"postgresql+psycopg://me:{PASSWORD}@127.0.0.1:1/studies"
    worker = WorkerProcess(["mine"], storage=url)
    while not (command := Path(f"/proc/{worker.pid}/cmdline").read_bytes()):
        time.sleep(0.01)
    environment = Path(f"/proc/{worker.pid}/environ").read_bytes()
    while worker.status is None:
        time.sleep(0.05)
    assert b"mine" in command
    assert PASSWORD.encode() not in command
    assert PASSWORD.encode() in environment
    assert worker.status == 2
    assert "Cannot open storage" in worker.last_line()
    assert PASSWORD not in worker.last_line()
    worker.close()


def test_a_signal_is_why_a_worker_ended_whatever_it_wrote_before() -> None:
    url = f"postgresql+psycopg://me:{PASSWORD}@127.0.0.1:1/studies"
    worker = WorkerProcess(["mine"], storage=url)
    worker._errors.write(b"a warning")
    worker.kill()
    assert worker.last_line() == "ended by signal 9 (9 is often a lack of memory)"
    worker.close()
