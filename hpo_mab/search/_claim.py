"""Taking the next trial of a study, so that no slot is trained twice and none is left out."""

from __future__ import annotations

import enum
import warnings

import optuna
from optuna.trial import FrozenTrial, TrialState

from hpo_mab._attributes import SLOT_KEY, WORKER_KEY, trial_attributes
from hpo_mab.pruners._trial_pairs import is_twin
from hpo_mab.search._promotion import is_open, is_promotion_due, queue_promotion
from hpo_mab.search._recovery import close_lost, requeue
from hpo_mab.search._stopping import Target
from hpo_mab.storage import Storage, hold, release, this_process

_FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


class NoTrial(enum.Enum):
    """Why there is no trial to run."""

    DONE = "the study has what was asked for"
    WAIT = "other workers are running the last ones"


def claim(study: optuna.Study, storage: Storage) -> optuna.trial.Trial | NoTrial:
    """Take the study's next trial: one that waits to be tried again, else a new one.

    Finished and running trials together, the pilot's twins not counted, never exceed the study's
    target. A new trial takes the lowest slot that no trial has had.

    Args:
        study: The study.
        storage: Its database.

    Returns:
        A running trial that is this process's alone, or why there is none.
    """
    with storage.lock(study.study_name):
        target = Target.load(study)
        close_lost(study, storage)
        if target.is_spent(study, storage.curves):
            return NoTrial.DONE
        requeue(study)
        trials = study.get_trials(deepcopy=False)
        why = _why_none(trials, target)
        if why is not None:
            return why
        due = is_promotion_due(study, trials, target)
        if due and is_open(trials) and not _waiting(trials):
            return NoTrial.WAIT
        _make_waiting(study, trials, promote=due)
        trial = _ask(study)
        # Before the lock is released: another thread may look for lost trials next.
        hold(storage.optuna, trial._trial_id)
        try:
            # In this order: a trial with a sign of life has an owner.
            storage.optuna.set_trial_system_attr(trial._trial_id, WORKER_KEY, this_process())
            storage.optuna.record_heartbeat(trial._trial_id)
        except BaseException:
            release(storage.optuna, trial._trial_id)
            raise
    return trial


def _why_none(trials: list[FrozenTrial], target: Target) -> NoTrial | None:
    counted = [trial for trial in trials if not is_twin(trial)]
    taken = sum(t.state in _FINISHED or t.state == TrialState.RUNNING for t in counted)
    waiting = next((trial for trial in trials if trial.state == TrialState.WAITING), None)
    if taken < target.trials or (waiting is not None and is_twin(waiting)):
        return None
    # What runs may yet be lost with its worker, and then somebody must try it again.
    running = any(trial.state == TrialState.RUNNING for trial in trials)
    return NoTrial.WAIT if running else NoTrial.DONE


def _waiting(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    return [trial for trial in trials if trial.state == TrialState.WAITING]


def _make_waiting(study: optuna.Study, trials: list[FrozenTrial], *, promote: bool) -> None:
    """See to it that the next trial Optuna hands out has a slot."""
    waiting = _waiting(trials)
    slots = [int(a[SLOT_KEY]) for a in map(trial_attributes, trials) if SLOT_KEY in a]
    new_slot = max(slots, default=-1) + 1
    if not waiting and promote and queue_promotion(study, new_slot):
        return
    if not waiting:
        attrs = {SLOT_KEY: new_slot}
        study.add_trial(optuna.create_trial(state=TrialState.WAITING, user_attrs=attrs))
    elif SLOT_KEY not in waiting[0].user_attrs:
        # From `optuna.Study.enqueue_trial`, the dashboard, or an earlier version's retry or twin.
        known = trial_attributes(waiting[0])
        for key, value in {SLOT_KEY: new_slot, **known}.items():
            if key not in waiting[0].user_attrs:
                study._storage.set_trial_user_attr(waiting[0]._trial_id, key, value)


def _ask(study: optuna.Study) -> optuna.trial.Trial:
    with warnings.catch_warnings():
        # Optuna knows of heartbeats in its own loop only.
        warnings.filterwarnings("ignore", message="Heartbeat of storage")
        return study.ask()
