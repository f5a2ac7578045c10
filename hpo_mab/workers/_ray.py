"""Workers on a Ray cluster: Ray places and restarts them, Optuna holds the study."""

from __future__ import annotations

import contextlib
import importlib
import signal
import threading
import warnings
from typing import Any

import optuna

from hpo_mab._errors import ArgumentError, HpoMabWarning, StorageError, require
from hpo_mab.search import StudyFailedError
from hpo_mab.search._definition import Slots
from hpo_mab.search._observer import Observer
from hpo_mab.search._runner import RunHere
from hpo_mab.search._trial_loop import SECONDS_BETWEEN_POLLS
from hpo_mab.storage import Storage
from hpo_mab.storage._open import STORAGE_ERRORS
from hpo_mab.workers._watch import FinishedWatch


class RayLauncher:
    """Runs a study's trials in tasks of a Ray cluster, see `hpo_mab.search.StudyRunner.run`.

    Every node needs this package, the data under ``data_root`` and access to the database.

    Args:
        storage: The study's database, on a server.
        workers: Number of tasks, at least 1.
        address: ``"auto"`` or an address of a running cluster; ``"local"`` starts one here.
        gpus_per_worker: GPUs that Ray reserves for each worker, may be a fraction.
        device: Where the workers train; ``"auto"`` is the CPU if no GPUs are reserved. None takes
            the definition's device.
        data_root: Folder of the data on every node.
        slots: Trials that each worker trains at the same time; None takes the definition's.
        threads: CPUs that Ray reserves for each worker.

    Raises:
        ArgumentError: An argument outside its bound, or Ray is not installed.
        StorageError: A database that other machines cannot reach.

    Examples:
        >>> from hpo_mab.storage import Storage
        >>> from hpo_mab.workers import RayLauncher
        >>> RayLauncher(Storage("sqlite:///studies.db"), workers=4, data_root="data")
        Traceback (most recent call last):
            ...
        hpo_mab._errors.StorageError: Ray needs a storage that every node reaches, ...
    """

    def __init__(
        self,
        storage: Storage,
        *,
        workers: int,
        address: str = "auto",
        gpus_per_worker: float = 0.0,
        device: str | None = None,
        data_root: str,
        slots: Slots | None = None,
        threads: int = 1,
    ) -> None:
        require(workers >= 1, "--workers", "at least 1", workers)
        require(gpus_per_worker >= 0, "--gpus-per-worker", "at least 0", gpus_per_worker)
        if storage.is_sqlite:
            raise StorageError(
                "Ray needs a storage that every node reaches, such as "
                "--storage postgresql://host/studies; SQLite is a file of one machine."
            )
        self._ray = _import_ray()
        self._storage = storage
        self._address = address
        self._resources = {"num_cpus": float(threads), "num_gpus": gpus_per_worker}
        self._given: dict[str, Any] = {
            # Ray may leave all GPUs visible to a worker that has reserved none.
            "device": "cpu" if device == "auto" and not gpus_per_worker else device,
            "data_root": data_root,
            "slots": slots,
            "workers": workers,
        }

    def __call__(self, study: optuna.Study, observer: Observer, run_here: RunHere) -> bool:
        """Run trials until the study's target is reached.

        Args:
            study: The study.
            observer: Sees the trials of all workers.
            run_here: Not called: all trials run on the cluster.

        Returns:
            Whether Ctrl-C ended it early.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed twice.
            StudyFailedError: Every worker ended with an error; the message is the last one's.
        """
        ray = self._ray
        if not ray.is_initialized():
            before = signal.getsignal(signal.SIGTERM)
            try:
                ray.init(address=self._address, log_to_driver=False, logging_level="ERROR")
            except (ConnectionError, ValueError) as error:
                text = str(error).splitlines()[0].rstrip(".")
                raise ArgumentError(f"--ray {self._address}: {text}.") from None
            finally:
                # Ray sets a handler that exits without a stop of the workers.
                if before is not None and threading.current_thread() is threading.main_thread():
                    signal.signal(signal.SIGTERM, before)
        self._warn_without_a_node()
        # Ray starts a task again if its node or process is lost.
        task = ray.remote(max_retries=3, **self._resources)(_work)
        arguments = (self._storage.secret_url, study.study_name)
        tasks = [task.remote(*arguments, **self._given) for _ in range(self._given["workers"])]
        watch = FinishedWatch(study, observer)
        try:
            return self._follow(tasks, watch)
        except KeyboardInterrupt:
            self._stop(tasks)
            self._report(watch)
            return True
        except BaseException:
            with contextlib.suppress(Exception):
                self._stop(tasks)
            raise

    def _warn_without_a_node(self) -> None:
        """Warn if no node can take a worker: Ray then waits, and reports it in its own log only."""
        wanted = {"CPU": self._resources["num_cpus"], "GPU": self._resources["num_gpus"]}
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        if not any(all(has.get(name, 0.0) >= wanted[name] for name in wanted) for has in nodes):
            needs = " and ".join(f"{number:g} {name}" for name, number in wanted.items() if number)
            warnings.warn(
                f"No node of the Ray cluster has the {needs} of a worker. "
                "The workers start when such a node joins.",
                HpoMabWarning,
                stacklevel=3,
            )

    def _follow(self, tasks: list[Any], watch: FinishedWatch) -> bool:
        interrupted, last_error, done = False, "", False
        while tasks:
            ended, tasks = self._ray.wait(tasks, timeout=SECONDS_BETWEEN_POLLS)
            for task in ended:
                try:
                    interrupted |= self._ray.get(task)
                    done = True
                except self._ray.exceptions.RayError as error:
                    # Ray wraps an error of the task, whose message is that of its cause.
                    cause = getattr(error, "cause", None) or error
                    lines = str(cause).strip().splitlines()
                    last_error = lines[-1] if lines else type(cause).__name__
            self._report(watch)
        if last_error and not done:
            raise StudyFailedError(last_error)
        if last_error:
            # The study has reached its target, but with fewer workers.
            warnings.warn(f"A worker has ended early: {last_error}", HpoMabWarning, stacklevel=3)
        return interrupted

    def _report(self, watch: FinishedWatch) -> None:
        # If the database cannot be reached, the workers wait for it, and exit in the end.
        with contextlib.suppress(*STORAGE_ERRORS):
            watch.report_new()

    def _stop(self, tasks: list[Any]) -> None:
        """Let every worker end its trial as interrupted; a second Ctrl-C kills them."""
        try:
            for task in tasks:
                self._ray.cancel(task)
            self._ray.wait(tasks, num_returns=len(tasks))
        except KeyboardInterrupt:
            for task in tasks:
                self._ray.cancel(task, force=True)
            raise


def _work(url: str, study: str, **given: Any) -> bool:
    """One worker, in a process of Ray; only the GPUs that Ray reserved are visible to it."""
    from hpo_mab.search._runner import join_study

    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    storage = Storage(url)
    try:
        return join_study(storage, study, **given)
    except STORAGE_ERRORS as error:
        raise storage.error(error) from None
    finally:
        storage.close()


def _import_ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError:
        raise ArgumentError(
            "--ray needs Ray: pip install '.[ray]' in a clone of hpo-mab."
        ) from None
