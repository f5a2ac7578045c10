"""Killing workers for real, and counting what became of the trials."""

from __future__ import annotations

import collections
import dataclasses
import os
import random
import signal
import time
import traceback
from collections.abc import Callable

import optuna
from optuna.trial import TrialState

from hpo_mab._attributes import EXAMPLES_KEY, LOST_KEY, REASON_KEY, SLOT_KEY, WORKER_KEY
from hpo_mab.search import StudyRunner, StudySpec, TrialLoop
from hpo_mab.search._study import open_with_parts
from hpo_mab.storage import RETRIES, Storage, StudyRun, TrialRun, read_run

_FINISHED = ("complete", "pruned")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FaultReport:
    """What a study looks like after its workers were killed again and again.

    Attributes:
        kills: Workers killed while the study was under way.
        trials: Slots with a finished trial.
        attempts: Trials in all, lost ones included.
        lost: Slots that were begun and that neither finished nor ran out of attempts.
        given_up: Slots that lost their worker at every attempt they had.
        doubled: Slots that finished more than once.
        inconsistent: Numbers of finished trials whose curve does not fit their record.
        seconds: Wall-clock time.
    """

    kills: int
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
    pause: float = 0.5,
    disturb: Callable[[], None] | None = None,
    seed: int = 0,
) -> FaultReport:
    """Run a study in forked workers, killing one by SIGKILL at random moments.

    Every second victim has a trial in hand, as random moments may all fall between trials.

    Args:
        url: Storage that holds no study of the definition yet.
        spec: The definition; its trials should be short.
        kills: Workers to kill; fewer if the study is done before.
        workers: Workers at a time.
        pause: Mean seconds between two kills.
        disturb: Called once, after the first pause.
        seed: Decides moments and victims.
    """
    began = time.monotonic()
    random_ = random.Random(seed)
    storage = Storage(url)
    # Forked workers inherit data and imports, which takes milliseconds where a start takes seconds.
    runner = StudyRunner(spec, storage)
    name = runner.name()
    runner.run(name, score=False, launch=lambda study, on_trial: False)
    storage.close()
    crew = {_fork(url, name, runner) for _ in range(workers)}
    killed = 0
    while crew:
        deadline = time.monotonic() + random_.expovariate(1 / pause)
        while crew and time.monotonic() < deadline:
            crew -= {pid for pid in crew if _has_ended(pid)}
            time.sleep(0.005)
        if disturb is not None:
            disturb()
            disturb = None
        if crew and killed < kills:
            victim = _kill_one(url, name, crew, random_, busy=killed % 2 == 1)
            crew.remove(victim)
            if os.waitstatus_to_exitcode(os.waitpid(victim, 0)[1]) == -signal.SIGKILL:
                killed += 1
                crew.add(_fork(url, name, runner))
    storage = Storage(url)
    run = read_run(storage, name)
    storage.close()
    return count_faults(run, kills=killed, seconds=time.monotonic() - began)


def count_faults(run: StudyRun, *, kills: int, seconds: float = 0.0) -> FaultReport:
    """Count lost, doubled and inconsistent trials of a study that is done."""
    slots: dict[int, list[TrialRun]] = collections.defaultdict(list)
    for trial in run.trials:
        if SLOT_KEY in trial.attrs:
            slots[trial.slot].append(trial)
    finished = {s: sum(t.state in _FINISHED for t in tried) for s, tried in slots.items()}
    given_up = {
        slot
        for slot, tried in slots.items()
        if not finished[slot] and sum(bool(t.attrs.get(LOST_KEY)) for t in tried) > RETRIES
    }
    return FaultReport(
        kills=kills,
        trials=sum(count > 0 for count in finished.values()),
        attempts=len(run.trials),
        lost=tuple(s for s, count in sorted(finished.items()) if not count and s not in given_up),
        given_up=tuple(sorted(given_up)),
        doubled=tuple(s for s, count in sorted(finished.items()) if count > 1),
        inconsistent=tuple(t.number for t in run.trials if not _fits(t, run)),
        seconds=seconds,
    )


def _fits(trial: TrialRun, run: StudyRun) -> bool:
    """Whether a finished trial's curve is whole and ends in its value."""
    points = [evaluation.index for evaluation in trial.curve]
    if trial.state not in _FINISHED:
        return True
    if trial.state == "pruned" and not points:
        # It diverged before its first evaluation, and says so.
        return REASON_KEY in trial.attrs
    if points != list(range(1, len(points) + 1)) or trial.attrs.get(EXAMPLES_KEY) != trial.examples:
        return False
    whole = int(run.spec["budget"]["evaluations"])
    if trial.state == "pruned":
        return len(points) < whole
    return len(points) == whole and trial.value == trial.curve[-1].accuracy


def _kill_one(url: str, name: str, crew: set[int], random_: random.Random, *, busy: bool) -> int:
    """Kill a worker; with ``busy`` one that has a trial in hand, if one has within two seconds."""
    if not busy:
        victim = random_.choice(sorted(crew))
        os.kill(victim, signal.SIGKILL)
        return victim
    # Closed again before the next fork: SQLite's connections must not be carried across one.
    storage = Storage(url)
    try:
        study = optuna.load_study(study_name=name, storage=storage.optuna)
        deadline = time.monotonic() + 2.0
        while not (at_work := _busy(study) & crew) and time.monotonic() < deadline:
            time.sleep(0.005)
        victim = random_.choice(sorted(at_work or crew))
        os.kill(victim, signal.SIGKILL)
        return victim
    finally:
        storage.close()


def _busy(study: optuna.Study) -> set[int]:
    """Process ids of the workers that run a trial now."""
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    workers = [trial.system_attrs.get(WORKER_KEY, "") for trial in running]
    return {int(worker.split(":")[1]) for worker in workers if worker}


def _fork(url: str, name: str, runner: StudyRunner) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        storage = Storage(url)
        runner.objective.store_in(storage, checkpoint=runner.spec.training.checkpoint)
        study = open_with_parts(storage, name, runner.spec)
        TrialLoop(study, storage, runner.objective).run()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        # Not sys.exit: what this process was forked from must not clean up here.
        os._exit(status)


def _has_ended(pid: int) -> bool:
    ended, status = os.waitpid(pid, os.WNOHANG)
    if ended and os.waitstatus_to_exitcode(status) != 0:
        raise RuntimeError(f"A worker ended with {os.waitstatus_to_exitcode(status)} by itself.")
    return bool(ended)
