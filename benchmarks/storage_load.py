"""What the storage costs: share of a trial's time, throughput, and reading a large study.

    python benchmarks/storage_load.py share                 # share of a 10 s trial, SQLite
    python benchmarks/storage_load.py share --postgres
    python benchmarks/storage_load.py load --postgres --workers 8
    python benchmarks/storage_load.py load --workers 2
    python benchmarks/storage_load.py read
    python benchmarks/storage_load.py long

``share`` and ``load`` run the package's trials with a training that computes nothing, so that all
their time is that of the storage. A trial has eight evaluations, and a median pruner checks all but
the last. CPU time is that of the workers, without a server. Wall time has everything, on an idle
machine. ``read`` inserts finished trials with curves into the tables, then reads and summarises the
study. ``long`` continues such a study, with TPE, successive halving and a total budget. The output
is JSON. The exit status is 1 if a bound is exceeded: a trial lost or interrupted; an error of the
database, such as a timeout of a lock, even after a successful retry; a deadlock; 2% of a 10 s trial
in CPU time (``share``); 30 s of CPU to read and compare; 100 ms of CPU a trial (``long``).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import sys
import time
from collections.abc import Iterator
from typing import Any, cast

import _shared
import optuna
import sqlalchemy as sa
import torch
from _stored import EVALUATIONS, evaluation, fill_study, make_study
from torch import nn
from torch.utils.data import TensorDataset

from hpo_mab.compare import summarise
from hpo_mab.search import TrainingObjective
from hpo_mab.search._observer import NOBODY, Observer, observer_of
from hpo_mab.search._searchers import PlannedSearcher, searcher_maker
from hpo_mab.search._target import StudyTarget
from hpo_mab.search._trial_loop import TrialLoop
from hpo_mab.search._workload import LoopSettings, Workload
from hpo_mab.storage import Storage, read_run
from hpo_mab.training import Budget, Evaluation

#: Trials of each command by default.
TRIALS = {"share": 150, "load": 1000, "read": 10_000, "long": 6000}
TRIAL_SECONDS = 10.0
_MORE = 40

_DATA = TensorDataset(torch.zeros(1000, 1), torch.arange(1000) % 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=TRIALS)
    parser.add_argument("--postgres", action="store_true")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--trials", type=int)
    given = parser.parse_args()
    trials = given.trials or TRIALS[given.what]
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    with _shared.database(postgres=given.postgres) as url:
        if given.what == "read":
            figures, holds = read(url, trials)
        elif given.what == "long":
            figures, holds = continued(url, trials)
        else:
            workers = 1 if given.what == "share" else given.workers
            figures, holds = load(url, workers, trials)
            holds = holds and (given.what == "load" or figures["cpu_share_of_a_10_s_trial"] < 0.02)
    print(json.dumps({"storage": "postgresql" if given.postgres else "sqlite", **figures}))
    sys.exit(not holds)


def load(url: str, workers: int, trials: int) -> tuple[dict[str, Any], bool]:
    """Run empty trials in ``workers`` processes; their time is that of the storage."""
    make_study(url, "load", trials=trials)
    context = multiprocessing.get_context("fork")
    costs = context.Queue()
    began = time.perf_counter()
    crew = [context.Process(target=_work, args=(url, "load", costs)) for _ in range(workers)]
    for worker in crew:
        worker.start()
    results = [costs.get() for _ in crew]
    cpu_seconds, errors = (sum(column) for column in zip(*results, strict=True))
    for worker in crew:
        worker.join()
    seconds = time.perf_counter() - began
    storage = Storage(url)
    states = [trial.state for trial in read_run(storage, "load").trials]
    deadlocks = _deadlocks(storage)
    storage.close()
    wall, cpu = seconds * workers / len(states), cpu_seconds / len(states)
    figures = {
        "workers": workers,
        "trials": len(states),
        "complete": states.count("complete"),
        "cut_off": len(states) - states.count("complete"),
        "storage_errors": errors,
        "deadlocks": deadlocks,
        "crashed_workers": sum(worker.exitcode != 0 for worker in crew),
        "trials_per_second": round(len(states) / seconds, 1),
        "wall_ms_per_trial": round(1000 * wall, 1),
        "cpu_ms_per_trial": round(1000 * cpu, 1),
        "wall_share_of_a_10_s_trial": round(wall / (TRIAL_SECONDS + wall), 4),
        "cpu_share_of_a_10_s_trial": round(cpu / (TRIAL_SECONDS + cpu), 4),
    }
    bad = ("cut_off", "storage_errors", "deadlocks", "crashed_workers")
    return figures, figures["complete"] == trials and not any(figures[key] for key in bad)


def _deadlocks(storage: Storage) -> int:
    """Deadlocks that the server had to break; SQLite counts none, having one writer at a time."""
    if storage.is_sqlite:
        return 0
    query = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    with storage.optuna.engine.connect() as connection:
        return int(connection.scalar(sa.text(query)))


def read(url: str, trials: int) -> tuple[dict[str, Any], bool]:
    """Time to read, and to compare, two studies of so many finished trials with curves."""
    for arm in ("mab", "uniform"):
        fill_study(url, arm, trials)
    storage = Storage(url)
    wall, began = time.perf_counter(), time.process_time()
    runs = [read_run(storage, arm) for arm in ("mab", "uniform")]
    middle = time.process_time()
    summary = summarise(runs)
    end = time.process_time()
    storage.close()
    figures = {
        "studies": 2,
        "trials_each": trials,
        "evaluations": sum(len(trial.curve) for run in runs for trial in run.trials),
        "pairs": summary.contrasts[0].pairs,
        "read_cpu_seconds": round(middle - began, 2),
        "compare_cpu_seconds": round(end - middle, 2),
        "wall_seconds": round(time.perf_counter() - wall, 2),
    }
    return figures, end - began < 30


def continued(url: str, trials: int) -> tuple[dict[str, Any], bool]:
    """CPU time of one more trial in a study with this many finished ones."""
    fill_study(url, "mab", trials)
    storage = Storage(url)
    study = optuna.load_study(
        study_name="mab",
        storage=storage.optuna,
        sampler=PlannedSearcher(searcher_maker("tpe", {}), seed=0, initial=0),
        pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=2, reduction_factor=2),
    )
    target = StudyTarget(trials=trials + _MORE, total=f"{100 * trials} epochs", epoch_examples=1000)
    target.save(study)
    # The first trial reads all earlier ones, so it does not count.
    ends: list[float] = []
    _loop(study, storage, observer_of(lambda *_: ends.append(time.process_time()))).run()
    storage.close()
    each = 1000 * (ends[-1] - ends[0]) / (len(ends) - 1)
    figures = {"finished_trials": trials, "further": len(ends), "cpu_ms_per_trial": round(each, 1)}
    return figures, len(ends) == _MORE and each < 100


def _work(url: str, name: str, costs: Any) -> None:
    began = time.process_time()
    storage = Storage(url)
    study = optuna.load_study(
        study_name=name,
        storage=storage.optuna,
        sampler=optuna.samplers.RandomSampler(),
        pruner=optuna.pruners.MedianPruner(),
    )
    loop = _loop(study, storage)
    try:
        loop.run()
    finally:
        # A process that waits for this one must not wait for ever.
        costs.put((time.process_time() - began, loop.errors))
    storage.close()


def _loop(study: optuna.Study, storage: Storage, observer: Observer = NOBODY) -> _CountingLoop:
    """The product's loop over trials that compute nothing."""
    objective = TrainingObjective(
        model=nn.Identity,
        data=(_DATA, _DATA),
        budget=Budget(epochs=1),
        optimizer={
            "lr": {"low": 0.01, "high": 1.0, "log": True},
            "momentum": {"low": 0.5, "high": 0.98},
            "weight_decay": {"low": 1e-6, "high": 1e-2, "log": True},
        },
        evaluations=EVALUATIONS,
        device="cpu",
        curves=storage.curves,
    )
    objective.workload = cast(Workload, _NoWork(objective.workload.loop))
    return _CountingLoop(study, storage, objective, observer=observer)


class _CountingLoop(TrialLoop):
    """Counts errors of the storage, such as timeouts of locks, which the loop retries."""

    errors = 0

    def _wait_for_database(self, error: BaseException) -> None:
        self.errors += 1
        super()._wait_for_database(error)


class _NoWork:
    """A workload whose trainings end at once with equal accuracies, so none is pruned."""

    def __init__(self, loop: LoopSettings) -> None:
        self.loop = loop

    @contextlib.contextmanager
    def training(self, configuration: object, **_: object) -> Iterator[Any]:
        yield _NoTraining()


class _NoTraining(Iterator[Evaluation]):
    """A training whose evaluations are ready from the start."""

    resumed = ()
    evaluations = EVALUATIONS
    evaluation_seconds = 0.0
    tally = None
    loop_reason = None

    def __init__(self) -> None:
        self._index = 0

    def __next__(self) -> Evaluation:
        if self._index == EVALUATIONS:
            raise StopIteration
        self._index += 1
        return evaluation(self._index, 0.5)


if __name__ == "__main__":
    main()
