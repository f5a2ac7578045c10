"""Workers as processes of this machine, and the device of each worker."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

import joblib
import optuna
import torch

from hpo_mab import training
from hpo_mab._attributes import StudySettings
from hpo_mab._errors import ArgumentError, StorageError
from hpo_mab.search import StudyFailedError, TrialCallback
from hpo_mab.storage import STORAGE_ERRORS, Storage


def worker_devices(workers: int, *, device: str = "auto") -> tuple[str, ...]:
    """A device for each worker; CUDA devices are assigned round robin.

    Args:
        workers: Number of workers, at least 1.
        device: ``"auto"`` or ``"cuda"`` for all CUDA devices; any other name is the device of
            every worker.

    Raises:
        ArgumentError: An argument below 1, or more workers than CUDA devices.
        UnknownNameError: No such device.
    """
    if workers < 1:
        raise ArgumentError(f"--workers must be at least 1, got {workers}.")
    chosen = training.select_device(device)
    if chosen.type != "cuda":
        return (device,) * workers
    cards = _cards(chosen)
    if workers > len(cards):
        raise ArgumentError(
            f"--workers must be at most {len(cards)}, the number of CUDA devices, got {workers}; "
            "one process trains many trials on a device at the same time, see --slots."
        )
    return tuple(f"cuda:{cards[index % len(cards)]}" for index in range(workers))


def room(*, device: str = "auto", threads: int = 1) -> int:
    """How many workers use this machine fully without competing for a core or device.

    On CUDA every card has a worker. On the CPU each worker has ``threads`` cores. Networks of a few
    layers are hardly faster with a second thread; a second trial uses a second core fully
    (``benchmarks/cpu_split.py``).

    Args:
        device: As for `worker_devices`.
        threads: CPU threads of a trial, at least 1.

    Returns:
        Number of workers, at least 1; 1 on devices that only one process can use well.
    """
    chosen = training.select_device(device)
    if chosen.type == "cuda":
        return len(_cards(chosen))
    if chosen.type != "cpu":
        return 1
    # Cores that this process may use: joblib counts affinity and a container's quota.
    return max(1, int(joblib.cpu_count()) // threads)


def _cards(device: torch.device) -> list[int]:
    return [device.index] if device.index is not None else list(range(torch.cuda.device_count()))


class FinishedTrials:
    """Passes every trial that finishes from now on to a callback, once.

    Args:
        study: The study.
        on_trial: Called with study and trial, see `TrialCallback`; None only counts.
    """

    def __init__(self, study: optuna.Study, on_trial: TrialCallback | None) -> None:
        self._study = study
        self._on_trial = on_trial
        self._on_progress = getattr(on_trial, "running", None)
        self._known = {t.number for t in self._trials() if t.state.is_finished()}

    def report_new(self) -> int:
        """Pass the trials finished since the last call to the callback; returns their number."""
        trials = self._trials()
        new = [t for t in trials if t.state.is_finished() and t.number not in self._known]
        for trial in new:
            self._known.add(trial.number)
            if self._on_trial is not None:
                self._on_trial(self._study, trial)
        if self._on_progress is not None and not new:
            evaluations = StudySettings.stored_in(self._study.user_attrs).evaluations or 1
            running = [t for t in trials if not t.state.is_finished() and t.last_step is not None]
            self._on_progress({t.number: (t.last_step or 0) / evaluations for t in running})
        return len(new)

    def _trials(self) -> list[optuna.trial.FrozenTrial]:
        return self._study.get_trials(deepcopy=False)


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
            [sys.executable, "-m", "hpo_mab", "worker", *arguments, "--quiet", "--until-eof"],
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
        """The last line it wrote to standard error; without one, its exit status."""
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        if lines:
            return lines[-1].removeprefix("hpo-mab: ")
        return f"ended with status {self.status}"

    def close(self) -> None:
        """Close its pipe and its file of errors."""
        self.stop()
        self._errors.close()


_SECONDS_BETWEEN_LOOKS = 0.5
_DEATHS_IN_A_ROW = 3
#: Exit statuses of ``hpo-mab`` after which a worker is not replaced.
_DONE, _MISTAKE, _INTERRUPTED = 0, 2, 130


class ProcessLauncher:
    """Runs a study's trials in worker processes, see `hpo_mab.search.StudyRunner.run`.

    A worker that dies is replaced; its trial is tried again. Ctrl-C once lets every worker end its
    trial as interrupted, to be tried again when the study is continued; twice kills the workers.

    Args:
        storage: The study's database.
        devices: One device for each worker.
        data_root: Folder of the data.

    Raises:
        ArgumentError: No devices.
        StorageError: A database in memory, which no other process can reach.
    """

    def __init__(self, storage: Storage, *, devices: Sequence[str], data_root: str) -> None:
        if not devices:
            raise ArgumentError("devices must name at least one device, got none.")
        if storage.is_sqlite and storage.file is None:
            raise StorageError("Workers need a database that they can reach, not one in memory.")
        self._storage = storage
        self._devices = tuple(devices)
        self._data_root = data_root

    def __call__(self, study: optuna.Study, on_trial: TrialCallback | None = None) -> bool:
        """Run trials until the study's target is reached.

        Returns:
            Whether Ctrl-C ended it early.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed twice.
            StudyFailedError: Every worker ended with an error; the message is the last one's.
        """
        watch = FinishedTrials(study, on_trial)
        running = _Workers(
            members={i: self._start(study, device) for i, device in enumerate(self._devices)}
        )
        try:
            while running.members:
                time.sleep(_SECONDS_BETWEEN_LOOKS)
                # If the database cannot be reached, the workers wait for it, and exit in the end.
                with contextlib.suppress(*STORAGE_ERRORS):
                    if watch.report_new():
                        running.deaths = 0
                for index in running.remove_ended():
                    running.members[index] = self._start(study, self._devices[index])
            watch.report_new()
        except KeyboardInterrupt:
            running.stop()
            watch.report_new()
            return True
        finally:
            running.close()
        if running.last_error and not running.done:
            raise StudyFailedError(running.last_error)
        return running.interrupted and not running.done

    def _start(self, study: optuna.Study, device: str) -> WorkerProcess:
        arguments = ["--study", study.study_name, "--device", device]
        return WorkerProcess(
            [*arguments, "--data-root", self._data_root], storage=self._storage.secret_url
        )


@dataclasses.dataclass(kw_only=True)
class _Workers:
    """The running workers.

    Attributes:
        members: Workers that run, by their place.
        deaths: Workers that died since a trial last finished.
        last_error: The last line of the last worker that ended with an error.
        done: Whether a worker found the study's target reached.
        interrupted: Whether a worker was interrupted.
    """

    members: dict[int, WorkerProcess]
    deaths: int = 0
    last_error: str = ""
    done: bool = False
    interrupted: bool = False

    def remove_ended(self) -> list[int]:
        """Remove the workers that have ended; returns the places of those to be replaced."""
        dead = []
        for index, worker in list(self.members.items()):
            if worker.status is None:
                continue
            if self._is_accident(worker):
                dead.append(index)
            worker.close()
            del self.members[index]
        return dead

    def _is_accident(self, worker: WorkerProcess) -> bool:
        """Record how a worker ended; returns whether to replace it."""
        if worker.status == _DONE:
            self.done = True
        elif worker.status == _INTERRUPTED:
            self.interrupted = True
        elif worker.status == _MISTAKE:
            self.last_error = worker.last_line()
        else:
            self.deaths += 1
            if self.deaths <= _DEATHS_IN_A_ROW * max(1, len(self.members)):
                return True
            self.last_error = f"Worker after worker died; the last one: {worker.last_line()}"
        return False

    def stop(self) -> None:
        """Let every worker end its trial as interrupted; a second Ctrl-C kills them.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed a second time.
        """
        for worker in self.members.values():
            worker.stop()
        try:
            while any(worker.status is None for worker in self.members.values()):
                time.sleep(0.05)
        except KeyboardInterrupt:
            self._kill()
            raise

    def close(self) -> None:
        """Kill the workers that still run, and close all files."""
        self._kill()
        for worker in self.members.values():
            worker.close()

    def _kill(self) -> None:
        for worker in self.members.values():
            if worker.status is None:
                worker.kill()
