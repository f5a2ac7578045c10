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

from hpo_mab._attributes import STACK_KEY, WORKER_KEY
from hpo_mab._errors import ArgumentError, StorageError
from hpo_mab._interrupts import deferred_interrupts, raise_if_interrupted
from hpo_mab._plan import Attempt
from hpo_mab.search import TrialCallback
from hpo_mab.search._definition import Slots
from hpo_mab.search._runner import RunHere
from hpo_mab.search._target import Target
from hpo_mab.search._trial_loop import FinishedTrials
from hpo_mab.storage import STORAGE_ERRORS, Storage
from hpo_mab.storage._process import is_local, this_process
from hpo_mab.workers._room import WorkerWarning


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
            [sys.executable, "-P", "-m", "hpo_mab", "worker", *arguments, "--quiet", "--until-eof"],
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
_DEATHS_IN_A_ROW = 3
#: Other processes start if more seconds of work than this are left. A start takes about five.
_WORTH_SECONDS = 20.0
#: Exit statuses of ``hpo-mab`` after which a worker is not replaced.
_DONE, _USER_ERROR, _INTERRUPTED = 0, 2, 130


class ProcessLauncher:
    """Runs a study's trials here and in other processes, see `hpo_mab.search.StudyRunner.run`.

    This process trains from the start, the others as soon as they have loaded the data. With
    `later_devices` they are started once this process estimates that alone it would train for more
    than 20 further seconds. A worker that dies is replaced, and its trial is tried again. At the
    first Ctrl-C every worker ends its trial as interrupted, to be tried again when the study is
    continued. The second one kills the workers.

    Args:
        storage: The study's database.
        devices: One device for each other process, which starts at once; or `later_devices` with
            device and threads, called with the trials that are left and the slots of a process.
        data_root: Folder of the data.
        slots: Trials that each process trains at the same time; None takes the definition's.

    Raises:
        ArgumentError: No devices.
        StorageError: A database in memory, which no other process can reach.

    Examples:
        >>> from hpo_mab.storage import Storage
        >>> from hpo_mab.workers import ProcessLauncher
        >>> storage = Storage("sqlite:///studies.db")
        >>> launch = ProcessLauncher(storage, devices=["cpu"], data_root="data")
        >>> storage.close()
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

    def __call__(
        self, study: optuna.Study, on_trial: TrialCallback | None, run_here: RunHere
    ) -> bool:
        """Run trials until the study's target is reached.

        Args:
            study: The study.
            on_trial: Called with study and trial after each trial; in another thread while there
                are other processes.
            run_here: Runs trials in this process.

        Returns:
            Whether Ctrl-C ended it early.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed twice.
            StudyFailedError: Three trials in a row failed here.
        """
        watch = FinishedTrials(study, on_trial)
        workers = _Workers(functools.partial(self._start, study))
        here = None
        if callable(self._devices):
            here = _OthersStarter(study, self._storage, watch, workers, later=self._devices)
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
                    on_end = _EndsWith(here, following)
                    interrupted = run_here(on_end, workers=workers.sharing)
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
        if workers.devices or here is None:
            watch.report_new()
        if workers.last_error:
            warnings.warn(workers.last_error, WorkerWarning, stacklevel=2)
        return interrupted

    def _follow(self, workers: _Workers, watch: FinishedTrials, over: threading.Event) -> None:
        """Once there are workers, report trials that finish and replace workers that die."""
        workers.started.wait()
        try:
            while not over.wait(_SECONDS_BETWEEN_POLLS):
                # If the database cannot be reached, the workers wait for it, and exit in the end.
                with contextlib.suppress(*STORAGE_ERRORS):
                    new = (trial for trial in watch.report_new() if Attempt.of(trial).finished)
                    ended = (trial.system_attrs.get(WORKER_KEY) for trial in new)
                    if any(worker not in (None, this_process()) for worker in ended):
                        workers.deaths = 0
                workers.replace_dead()
        finally:
            self._storage.optuna.remove_session()

    def _start(self, study: optuna.Study, device: str, workers: int) -> WorkerProcess:
        options = {
            "--study": study.study_name,
            "--device": device,
            "--data-root": self._data_root,
            **({} if self._slots is None else {"--slots": str(self._slots)}),
            "--workers": str(workers),
        }
        arguments = [part for option in options.items() for part in option]
        return WorkerProcess(arguments, storage=self._storage.secret_url)


class _EndsWith:
    """This process's callback; it raises an error of the other thread, which ends the run."""

    def __init__(self, here: _OthersStarter | None, following: Future[None]) -> None:
        self._here = here
        self._following = following

    def __call__(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self._raise_of_others()
        if self._here is not None:
            self._here(study, trial)

    def running(self, shares: Mapping[int, float]) -> None:
        """Called during trials."""
        self._raise_of_others()
        if self._here is not None:
            self._here.running(shares)

    def _raise_of_others(self) -> None:
        if self._following.done():
            self._following.result()


class _OthersStarter:
    """Starts the other processes; called after each trial and during trials while there are none.

    ``watch`` passes trials to the callback; another thread does so once the others are started.
    """

    def __init__(
        self,
        study: optuna.Study,
        storage: Storage,
        watch: FinishedTrials,
        workers: _Workers,
        *,
        later: Callable[..., Sequence[str]],
    ) -> None:
        self._study = study
        self._curves = storage.curves
        self._watch = watch
        self._workers = workers
        #: None once it is decided.
        self._later: Callable[..., Sequence[str]] | None = later
        self._began = time.monotonic()
        self._spent_before = Target.load(study).share_spent(study, self._curves)
        self._finished = 0
        self._has_checked = False

    def __call__(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Pass a trial on, and start the others if enough is left to do."""
        if self._workers.devices:
            return
        self._watch.report(trial)
        ended = Attempt.of(trial)
        if ended.finished and not ended.lacked_checkpoint:
            self._finished += 1
            self._start_if_worth(self._finished, slots=ended.attrs.get(STACK_KEY, 1))

    def running(self, shares: Mapping[int, float]) -> None:
        """Pass on how far the running trials are; start the others if the first one is long."""
        if self._workers.devices:
            return
        if self._watch.on_progress is not None:
            self._watch.on_progress(shares)
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
        trials = Target.load(self._study).trials_left(
            self._study, self._curves, done=done, spent_before=self._spent_before
        )
        each = (time.monotonic() - self._began) / done
        if trials * each > _WORTH_SECONDS:
            devices = self._later(trials=trials, slots=slots)
            self._later = None
            self._workers.start(devices)


class _Workers:
    """The workers, once they are started.

    ``start`` is called with a device and the number of processes that share the study.

    Attributes:
        sharing: Processes that share the study, this one included.
        started: Set when the workers have been started, or when none will be.
        devices: Devices of the workers; empty before they are started.
        members: Workers that run, by their place.
        deaths: Workers that died since one of them last finished a trial.
        last_error: Why a worker ended early, or did not begin; the last such reason.
    """

    def __init__(self, start: Callable[[str, int], WorkerProcess]) -> None:
        self._start = start
        self.sharing = 1
        self.started = threading.Event()
        self.devices: tuple[str, ...] = ()
        self.members: dict[int, WorkerProcess] = {}
        self.deaths = 0
        self.last_error = ""

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
            self.last_error = f"Fewer workers run: no process could be started: {error}"
            return False
        return True

    def places_in(self, study: optuna.Study) -> set[int]:
        """Places of the workers that have begun a trial.

        The others may still be loading the data; once the study is done they begin no trial.
        """
        names = (trial.system_attrs.get(WORKER_KEY) for trial in study.get_trials(deepcopy=False))
        # The process id is the second part of the name.
        begun = {int(name.split(":")[1]) for name in names if name and is_local(name)}
        return {place for place, one in list(self.members.items()) if one.pid in begun}

    def replace_dead(self) -> None:
        """Remove the workers that have ended; those that died are replaced."""
        for place, worker in list(self.members.items()):
            if worker.status is None:
                continue
            dead = self._is_to_be_replaced(worker)
            worker.close()
            # Its place is never empty meanwhile: this process would stop waiting for the workers.
            replaced = dead and self._begin(place, self.devices[place])
            if not replaced:
                del self.members[place]

    def _is_to_be_replaced(self, worker: WorkerProcess) -> bool:
        """Whether to replace a worker that has ended; records why it ended."""
        if worker.status in (_DONE, _INTERRUPTED):
            return False
        if worker.status == _USER_ERROR:
            self.last_error = f"A worker has ended early: {worker.last_line()}"
            return False
        self.deaths += 1
        if self.deaths <= _DEATHS_IN_A_ROW * len(self.devices):
            return True
        self.last_error = f"Worker after worker died; the last one: {worker.last_line()}"
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
