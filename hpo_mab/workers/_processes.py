"""Workers as processes of this machine, and when to start them."""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import optuna
from optuna.trial import FrozenTrial

from hpo_mab._attributes import STACK_SLOTS_KEY, WORKER_KEY
from hpo_mab._errors import ArgumentError, HpoMabWarning, StorageError
from hpo_mab._interrupts import deferred_interrupts, raise_if_interrupted
from hpo_mab._plan import RETRIES, Attempt
from hpo_mab.search._definition import Slots
from hpo_mab.search._observer import Observer
from hpo_mab.search._runner import RunHere
from hpo_mab.search._target import StudyTarget
from hpo_mab.storage import Storage
from hpo_mab.storage._open import STORAGE_ERRORS
from hpo_mab.storage._process import is_local
from hpo_mab.workers._watch import FinishedWatch


class WorkerProcess:
    """A running worker.

    Its standard input is a pipe without data. The pipe closes when `stop` is called or when this
    process ends; the worker then interrupts itself. It runs in a new session, so that the
    terminal's Ctrl-C does not reach it.

    Args:
        arguments: Arguments of ``hpo-mab worker``.
        storage: The storage URL with its password; it travels in the environment, which other
            users cannot see.
    """

    def __init__(self, arguments: Sequence[str], *, storage: str) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        self._process = subprocess.Popen(
            # -P: a file of the current folder must not hide a module of Python.
            [sys.executable, "-P", "-m", "hpo_mab", "worker", "--quiet", "--until-eof", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            env={
                **os.environ,
                "HPO_MAB_STORAGE": storage,
                # What this process can import, a worker must be able to, too.
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            },
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def status(self) -> int | None:
        """Exit status, negative for a signal; None while it runs."""
        return self._process.poll()

    def stop(self) -> None:
        """Close its standard input: it ends its trial as interrupted, then exits."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.close()

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()

    def last_line(self) -> str:
        """Why it ended: a signal, else its last line on standard error, else its exit status."""
        if self.status is not None and self.status < 0:
            # What it wrote before is not the reason.
            return f"ended by signal {-self.status} (9 is often a lack of memory)"
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1].removeprefix("hpo-mab: ") if lines else f"ended with status {self.status}"

    def close(self) -> None:
        """Close its pipe and its file of errors."""
        self.stop()
        self._errors.close()


_SECONDS_BETWEEN_POLLS = 0.5
#: More than the attempts of a trial that ends its worker each time.
_DEATHS_IN_A_ROW = RETRIES + 1
#: Other processes start if more seconds of work than this are left. A start takes about five.
_WORTH_SECONDS = 20.0
#: Exit statuses of ``hpo-mab`` after which a worker is not replaced.
_DONE, _USER_ERROR, _INTERRUPTED = 0, 2, 130


class ProcessLauncher:
    """Runs a study's trials here and in other processes, see `hpo_mab.search.StudyRunner.run`.

    This process trains from the start, the others as soon as they have loaded the data. If
    ``devices`` is a function, they are started once this process estimates that alone it would
    train for more than 20 further seconds. A worker that dies is replaced, and its trial is tried
    again. At the first Ctrl-C every worker ends its trial as interrupted, to be tried again when
    the study is continued. The second one kills the workers.

    Args:
        storage: The study's database.
        devices: One device for each other process, which starts at once; or a function that returns
            them, called with ``trials``, those that are left, and ``slots``, those of a process.
        data_root: Folder of the data.
        slots: Trials that each process trains at the same time; None takes the definition's.

    Raises:
        ArgumentError: No devices.
        StorageError: A database in memory, which no other process can reach.

    Examples:
        >>> from hpo_mab.storage import Storage
        >>> from hpo_mab.workers import ProcessLauncher
        >>> with Storage("sqlite:///studies.db") as storage:
        ...     launch = ProcessLauncher(storage, devices=["cpu"], data_root="data")
    """

    def __init__(
        self,
        storage: Storage,
        *,
        devices: Sequence[str] | Callable[..., Sequence[str]],
        data_root: str,
        slots: Slots | None = None,
    ) -> None:
        if not devices:
            raise ArgumentError("devices must name at least one device, got none.")
        if storage.in_memory:
            raise StorageError("Workers need a database that they can reach, not one in memory.")
        self._storage = storage
        self._devices = devices
        self._data_root = data_root
        self._slots = slots

    def __call__(self, study: optuna.Study, observer: Observer, run_here: RunHere) -> bool:
        """Run trials until the study's target is reached.

        Args:
            study: The study.
            observer: Sees the trials of all workers; called in another thread while there are
                other processes.
            run_here: Runs trials in this process.

        Returns:
            Whether Ctrl-C ended it early.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed twice.
            StudyFailedError: Three trials in a row failed here.
        """
        watch = FinishedWatch(study, observer)
        workers = _Workers(functools.partial(self._start, study))
        later = None
        if callable(self._devices):
            later = self._devices
        else:
            workers.start(self._devices)
            # Also without a worker: this process's trials are passed on from the other thread.
            workers.started.set()
        over = threading.Event()
        try:
            # In another thread: Ctrl-C must interrupt the main thread, which trains.
            with ThreadPoolExecutor(1) as thread:
                following = thread.submit(self._follow, workers, watch, over)
                try:
                    here = _OthersStarter(study, self._storage, watch, workers, following, later)
                    interrupted = run_here(here, workers=workers.sharing)
                    begun = set() if interrupted else workers.places_in(study)
                    while begun & workers.members.keys() and not following.done():
                        time.sleep(_SECONDS_BETWEEN_POLLS)
                except KeyboardInterrupt:
                    interrupted = True
                finally:
                    over.set()
                    workers.started.set()
        finally:
            workers.stop()
        following.result()
        if workers.devices or later is None:
            watch.report_new()
        return interrupted

    def _follow(self, workers: _Workers, watch: FinishedWatch, over: threading.Event) -> None:
        """Once there are workers, report trials that finish and replace workers that die."""
        workers.started.wait()
        try:
            while not over.wait(_SECONDS_BETWEEN_POLLS):
                # If the database cannot be reached, the workers wait for it, and exit in the end.
                with contextlib.suppress(*STORAGE_ERRORS):
                    for trial in watch.report_new():
                        place = workers.place_of(trial)
                        if place is not None and Attempt.of(trial).finished:
                            workers.deaths.pop(place, None)
                workers.replace_dead()
        finally:
            self._storage.optuna.remove_session()

    def _start(self, study: optuna.Study, device: str, workers: int) -> WorkerProcess:
        options = {
            "--device": device,
            "--data-root": self._data_root,
            **({} if self._slots is None else {"--slots": str(self._slots)}),
            "--workers": str(workers),
        }
        arguments = [part for option in options.items() for part in option]
        # A name may begin with a dash.
        return WorkerProcess([*arguments, "--", study.study_name], storage=self._storage.secret_url)


class _OthersStarter(Observer):
    """This process's observer: it starts the others, and raises an error of thread ``following``.

    ``watch`` passes trials to the run's observer; that thread does so once others are started.
    """

    def __init__(
        self,
        study: optuna.Study,
        storage: Storage,
        watch: FinishedWatch,
        workers: _Workers,
        following: Future[None],
        later: Callable[..., Sequence[str]] | None,
    ) -> None:
        self._study = study
        self._curves = storage.curves
        self._watch = watch
        self._workers = workers
        self._following = following
        #: None once it is decided.
        self._later = later
        self._began = time.monotonic()
        self._spent_before = (
            StudyTarget.load(study).share_spent(study, self._curves) if later else 0.0
        )
        self._finished = 0
        self._has_checked = False

    def ended(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Pass a trial on, and start the others if enough is left to do."""
        if self._following.done():
            self._following.result()
        if self._workers.started.is_set():
            return
        self._watch.report(trial)
        ended = Attempt.of(trial)
        if ended.finished and not ended.lacked_checkpoint:
            self._finished += 1
            self._start_if_worth(self._finished, slots=ended.attrs.get(STACK_SLOTS_KEY, 1))

    def running(self, shares: Mapping[int, float]) -> None:
        """Pass on how far the running trials are; start the others if the first one is long."""
        if self._following.done():
            self._following.result()
        if self._workers.started.is_set():
            return
        self._watch.observer.running(shares)
        if self._later is None or self._finished or self._has_checked or not shares:
            return
        # Not at once, as the first steps are slow; and once, as this is called after every step.
        if time.monotonic() - self._began > _WORTH_SECONDS / 4:
            self._has_checked = True
            with deferred_interrupts():  # It reads the database.
                self._start_if_worth(sum(shares.values()), slots=len(shares))
            raise_if_interrupted()

    def _start_if_worth(self, done: float, *, slots: int) -> None:
        """Start the others if enough is left; ``done`` counts the running trials by their share."""
        if self._later is None:
            return
        trials = StudyTarget.load(self._study).trials_left(
            self._study, self._curves, done=done, spent_before=self._spent_before
        )
        each = (time.monotonic() - self._began) / done
        if trials * each > _WORTH_SECONDS:
            devices = self._later(trials=trials, slots=slots)
            self._later = None
            self._workers.start(devices)


def _warn(text: str) -> None:
    warnings.warn(text, HpoMabWarning, stacklevel=3)


class _Workers:
    """The workers, once they are started.

    ``start`` is called with a device and the number of processes that share the study.

    Attributes:
        sharing: Processes that share the study, this one included.
        started: Set when the workers have been started, or when none will be.
        devices: Devices of the workers; empty before they are started.
        members: Workers that run, by their place.
        deaths: Workers that died in a place since one there last finished a trial, by place.
    """

    def __init__(self, start: Callable[[str, int], WorkerProcess]) -> None:
        self._start = start
        self.sharing = 1
        self.started = threading.Event()
        self.devices: tuple[str, ...] = ()
        self.members: dict[int, WorkerProcess] = {}
        self.deaths: dict[int, int] = {}

    def start(self, devices: Sequence[str]) -> None:
        """Start a worker on each device; fewer where the system refuses another process."""
        self.sharing = len(devices) + 1
        begun = [self._begin(place, device) for place, device in enumerate(devices)]
        self.devices = tuple(devices) if any(begun) else ()
        if self.devices:
            self.started.set()

    def _begin(self, place: int, device: str) -> bool:
        try:
            self.members[place] = self._start(device, self.sharing)
        except OSError as error:
            _warn(f"Fewer workers run: no process could be started: {error}")
            return False
        return True

    def places_in(self, study: optuna.Study) -> set[int]:
        """Places of the workers that have begun a trial.

        The others may still be loading the data; once the study is done they begin no trial.
        """
        places = map(self.place_of, study.get_trials(deepcopy=False))
        return {place for place in places if place is not None}

    def place_of(self, trial: FrozenTrial) -> int | None:
        """Place of the worker that runs or ran a trial; None if it is none of these workers."""
        name = trial.system_attrs.get(WORKER_KEY)
        if name is None or not is_local(name):
            return None
        # The process id is the second part of the name.
        pid = int(name.split(":")[1])
        return next((place for place, one in list(self.members.items()) if one.pid == pid), None)

    def replace_dead(self) -> None:
        """Remove the workers that have ended; those that died are replaced."""
        for place, worker in list(self.members.items()):
            if worker.status is None:
                continue
            dead = self._is_to_be_replaced(place, worker)
            worker.close()
            # Its place is never empty meanwhile: this process would stop waiting for the workers.
            replaced = dead and self._begin(place, self.devices[place])
            if not replaced:
                del self.members[place]

    def _is_to_be_replaced(self, place: int, worker: WorkerProcess) -> bool:
        """Whether to replace a worker that has ended; warns if not."""
        if worker.status in (_DONE, _INTERRUPTED):
            return False
        if worker.status == _USER_ERROR:
            _warn(f"A worker has ended early: {worker.last_line()}")
            return False
        self.deaths[place] = self.deaths.get(place, 0) + 1
        if self.deaths[place] <= _DEATHS_IN_A_ROW:
            return True
        _warn(f"Worker after worker died; the last one: {worker.last_line()}")
        return False

    def stop(self) -> None:
        """Let every worker end its trial as interrupted; a second Ctrl-C kills them."""
        for worker in self.members.values():
            worker.stop()
        try:
            while any(worker.status is None for worker in self.members.values()):
                time.sleep(0.05)
        finally:
            for worker in self.members.values():
                if worker.status is None:
                    worker.kill()
                worker.close()
