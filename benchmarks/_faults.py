"""Kill workers by SIGKILL, and count lost and doubled trials."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import signal
import time
import traceback
from collections.abc import Callable, Iterator

import optuna
from optuna.trial import TrialState

from hpo_mab._attributes import EXAMPLES_KEY, REASON_KEY, WORKER_KEY
from hpo_mab._plan import FINISHED_STATES, RETRIES, Plan
from hpo_mab.search import StudyRunner, StudySpec
from hpo_mab.search._study import open_for_training
from hpo_mab.search._target import StudyTarget
from hpo_mab.search._trial_loop import TrialLoop
from hpo_mab.storage import Storage, StudyRun, TrialRun, read_run

_FINISHED_STATES = (TrialState.COMPLETE, TrialState.PRUNED)
#: Target of a study that must not end yet.
_OPEN_END = 10**6
_SHORT_TRIAL = 0.05


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FaultReport:
    """Counts of a study whose workers were killed repeatedly.

    Attributes:
        kills: Workers killed while the study was under way.
        target: Trials that the study had to finish.
        trials: Planned trials that were finished.
        attempts: Trials in all, lost ones included.
        lost: Planned trials that were begun, but neither finished nor used up their attempts.
        given_up: Planned trials that lost their worker at every attempt.
        doubled: Planned trials that finished more than once.
        inconsistent: Numbers of finished trials whose curve does not fit their record.
        seconds: Wall-clock time.
    """

    kills: int
    target: int
    trials: int
    attempts: int
    lost: tuple[int, ...]
    given_up: tuple[int, ...]
    doubled: tuple[int, ...]
    inconsistent: tuple[int, ...]
    seconds: float


def inject_kills(
    url: str,
    spec: StudySpec,
    *,
    kills: int,
    workers: int = 2,
    disturb: Callable[[], None] | None = None,
    seed: int = 0,
) -> FaultReport:
    """Run a study in forked workers, killing one by SIGKILL at random moments.

    Moments are counts of finished trials, spread over the study, so that they do not depend on the
    machine's speed. The study stays open until all kills are made; then it ends at the definition's
    number of trials, or at the number begun by then. Every second killed worker has a trial.

    Args:
        url: Storage that holds no study of the definition yet.
        spec: The definition; its trials should be short.
        kills: Workers to kill.
        workers: Workers at a time.
        disturb: Called once, when a quarter of the trials are finished.
        seed: Seed of the moments and of the workers to kill.

    Raises:
        RuntimeError: A worker ended by itself before the study was done.
    """
    began = time.monotonic()
    random_ = random.Random(seed)
    storage = Storage(url)
    # Forked workers inherit data and imports, which takes milliseconds where a start takes seconds.
    runner = StudyRunner(spec, storage)
    name = runner.study_name()
    runner.run(name, score=False, launch=lambda *_: False)
    storage.close()
    wanted = spec.budget.trials
    _set_target(url, name, lambda _: _OPEN_END)
    crew = {_fork(url, name, runner) for _ in range(workers)}
    if disturb is not None:
        _wait_for_trials(url, name, crew, wanted // 4)
        disturb()
    killed = 0
    for number, moment in enumerate(sorted(random_.randrange(wanted) for _ in range(kills))):
        _wait_for_trials(url, name, crew, moment)
        held = False
        while not held:
            # Not every kill just after a trial's end; no check depends on this time.
            time.sleep(random_.uniform(0, _SHORT_TRIAL))
            busy = number % 2 == 1
            victim = _kill_one(url, name, crew, random_, busy=busy)
            killed += 1
            held = not busy or _held_a_trial(url, name, victim)
            crew = crew - {victim} | {_fork(url, name, runner)}
    target = _set_target(url, name, lambda begun: max(wanted, begun))
    for pid in crew:
        _check_status(os.waitpid(pid, 0)[1])
    storage = Storage(url)
    run = read_run(storage, name)
    storage.close()
    return count_faults(run, kills=killed, target=target, seconds=time.monotonic() - began)


def count_faults(
    run: StudyRun, *, kills: int, target: int | None = None, seconds: float = 0.0
) -> FaultReport:
    """Count lost, doubled and inconsistent trials of a study that is done."""
    plan = Plan(run.trials)
    finished = {
        slot: sum(attempt.finished for attempt in attempts)
        for (slot, twin), attempts in plan.places.items()
        if not twin
    }
    given_up = {
        slot
        for (slot, twin), attempts in plan.places.items()
        if not twin and not finished[slot] and sum(one.lost for one in attempts) > RETRIES
    }
    return FaultReport(
        kills=kills,
        target=run.settings.trials if target is None else target,
        trials=sum(count > 0 for count in finished.values()),
        attempts=len(run.trials),
        lost=tuple(s for s, count in sorted(finished.items()) if not count and s not in given_up),
        given_up=tuple(sorted(given_up)),
        doubled=tuple(s for s, count in sorted(finished.items()) if count > 1),
        inconsistent=tuple(t.number for t in run.trials if not _fits(t, run)),
        seconds=seconds,
    )


def _fits(trial: TrialRun, run: StudyRun) -> bool:
    """Whether a finished trial's curve is complete and ends in its value."""
    points = [evaluation.index for evaluation in trial.curve]
    if trial.state not in FINISHED_STATES:
        return True
    if trial.state == "pruned" and not points:
        # It diverged before its first evaluation, as its attributes say.
        return REASON_KEY in trial.attrs
    if points != list(range(1, len(points) + 1)) or trial.attrs.get(EXAMPLES_KEY) != trial.examples:
        return False
    whole = run.settings.evaluations or 0
    if trial.state == "pruned":
        return len(points) < whole
    return len(points) == whole and trial.value == trial.curve[-1].accuracy


@contextlib.contextmanager
def _opened(url: str, name: str) -> Iterator[tuple[Storage, optuna.Study]]:
    # Closed before the next fork: a forked process must not use SQLite's connections.
    storage = Storage(url)
    try:
        yield storage, optuna.load_study(study_name=name, storage=storage.optuna)
    finally:
        storage.close()


def _set_target(url: str, name: str, trials: Callable[[int], int]) -> int:
    """Set the number of trials the study must finish, given the number it has begun."""
    # While the lock is held, no trial is begun.
    with _opened(url, name) as (storage, study), storage.lock(name):
        counted = (*_FINISHED_STATES, TrialState.RUNNING)
        number = trials(len(study.get_trials(deepcopy=False, states=counted)))
        dataclasses.replace(StudyTarget.load(study), trials=number).save(study)
    return number


def _wait_for_trials(url: str, name: str, crew: set[int], finished: int) -> None:
    with _opened(url, name) as (_, study):
        while len(study.get_trials(deepcopy=False, states=_FINISHED_STATES)) < finished:
            for pid in crew:
                if os.waitpid(pid, os.WNOHANG)[0]:
                    raise RuntimeError("A worker ended before the study was done.")
            time.sleep(0.005)


def _kill_one(url: str, name: str, crew: set[int], random_: random.Random, *, busy: bool) -> int:
    """Kill a worker; with ``busy`` one that had a trial a moment ago."""
    with _opened(url, name) as (_, study):
        while not (found := _with_trial(study, TrialState.RUNNING) & crew if busy else crew):
            time.sleep(0.005)
        victim = random_.choice(sorted(found))
        os.kill(victim, signal.SIGKILL)
    os.waitpid(victim, 0)
    return victim


def _held_a_trial(url: str, name: str, pid: int) -> bool:
    """Whether a worker that is dead left a trial; another may have marked it as lost by now."""
    with _opened(url, name) as (_, study):
        return pid in _with_trial(study, TrialState.RUNNING, TrialState.FAIL)


def _with_trial(study: optuna.Study, *states: TrialState) -> set[int]:
    """Process ids of the workers of trials in a state."""
    trials = study.get_trials(deepcopy=False, states=states)
    workers = [trial.system_attrs.get(WORKER_KEY, "") for trial in trials]
    return {int(worker.split(":")[1]) for worker in workers if worker}


def _fork(url: str, name: str, runner: StudyRunner) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        storage = Storage(url)
        runner.objective.store_in(storage, checkpoint=runner.spec.training.checkpoint)
        study = open_for_training(storage, name, runner.spec)
        TrialLoop(study, storage, runner.objective).run()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        # Not sys.exit: the clean-up of the parent process must not run here.
        os._exit(status)


def _check_status(status: int) -> None:
    code = os.waitstatus_to_exitcode(status)
    if code != 0:
        raise RuntimeError(f"A worker ended with {code} by itself.")
