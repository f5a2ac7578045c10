"""Workers as processes of this machine."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Sequence

import optuna

from hpo_mab._errors import ArgumentError, StorageError
from hpo_mab.search import StudyFailedError, TrialCallback
from hpo_mab.storage import STORAGE_ERRORS, Storage
from hpo_mab.workers._watch import FinishedTrials
from hpo_mab.workers._worker_process import WorkerProcess

_SECONDS_BETWEEN_LOOKS = 0.5
_DEATHS_IN_A_ROW = 3
#: ``hpo-mab``'s exit statuses that are an end rather than an accident.
_DONE, _MISTAKE, _INTERRUPTED = 0, 2, 130


class ProcessLauncher:
    """Runs a study's trials in worker processes, see `hpo_mab.search.StudyRunner.run`.

    A worker that dies is replaced; its trial is tried again. Ctrl-C once lets every worker end its
    trial as interrupted, to be tried again when the study goes on; twice kills the workers.

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
            StudyFailedError: Every worker gave up; the message is the last one's.
        """
        watch = FinishedTrials(study, on_trial)
        crew = _Crew(
            members={i: self._start(study, device) for i, device in enumerate(self._devices)}
        )
        try:
            while crew.members:
                time.sleep(_SECONDS_BETWEEN_LOOKS)
                # Whether a database that is away comes back in time, the workers decide.
                with contextlib.suppress(*STORAGE_ERRORS):
                    if watch.look():
                        crew.deaths = 0
                for index in crew.fallen():
                    crew.members[index] = self._start(study, self._devices[index])
            watch.look()
        except KeyboardInterrupt:
            crew.stop()
            watch.look()
            return True
        finally:
            crew.close()
        if crew.complaint and not crew.done:
            raise StudyFailedError(crew.complaint)
        return crew.interrupted and not crew.done

    def _start(self, study: optuna.Study, device: str) -> WorkerProcess:
        arguments = ["--study", study.study_name, "--device", device]
        return WorkerProcess(
            [*arguments, "--data-root", self._data_root], storage=self._storage.secret_url
        )


@dataclasses.dataclass(kw_only=True)
class _Crew:
    """The workers at work.

    Attributes:
        members: Workers that run, by their place.
        deaths: Workers that died since a trial last finished.
        complaint: What the last worker said that gave up.
        done: Whether a worker found the study's target reached.
        interrupted: Whether somebody stopped a worker.
    """

    members: dict[int, WorkerProcess]
    deaths: int = 0
    complaint: str = ""
    done: bool = False
    interrupted: bool = False

    def fallen(self) -> list[int]:
        """Dismiss the workers that have ended; returns the places of those to be replaced."""
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
        """Take note of how a worker ended; whether another one should take its place."""
        if worker.status == _DONE:
            self.done = True
        elif worker.status == _INTERRUPTED:
            self.interrupted = True
        elif worker.status == _MISTAKE:
            self.complaint = worker.last_words()
        else:
            self.deaths += 1
            if self.deaths <= _DEATHS_IN_A_ROW * max(1, len(self.members)):
                return True
            self.complaint = f"Worker after worker died; the last one: {worker.last_words()}"
        return False

    def stop(self) -> None:
        """Let every worker end its trial as interrupted; a second Ctrl-C kills them.

        Raises:
            KeyboardInterrupt: The second: nothing is to be waited for any more.
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
        """End what still runs and give back all files."""
        self._kill()
        for worker in self.members.values():
            worker.close()

    def _kill(self) -> None:
        for worker in self.members.values():
            if worker.status is None:
                worker.kill()
