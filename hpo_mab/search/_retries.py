"""Trials whose worker is gone are closed, and trials that were cut off are queued again.

Every step can be repeated: if a worker dies half way, the next one with the study's lock finishes
the step.
"""

from __future__ import annotations

import optuna
from optuna.trial import FrozenTrial, TrialState

from hpo_mab._attributes import LOST_KEY, REASON_KEY, SLOT_KEY, WORKER_KEY
from hpo_mab._plan import Plan
from hpo_mab.storage import Storage
from hpo_mab.storage._optuna import add_copy, id_of, retry_of, storage_of
from hpo_mab.storage._process import is_gone, is_held, is_here, this_process


def close_lost(study: optuna.Study, storage: Storage) -> None:
    """Fail the trials whose worker is gone; the caller holds the study's lock."""
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    recent = storage.optuna.heartbeats([id_of(trial) for trial in running])
    for trial in running:
        if not _is_lost(trial, storage, recent.get(id_of(trial))):
            continue
        # Before the state: a failed trial without this mark would not be tried again.
        storage_of(study).set_trial_user_attr(id_of(trial), LOST_KEY, True)
        storage_of(study).set_trial_user_attr(id_of(trial), REASON_KEY, "its worker ended suddenly")
        storage.optuna.forget_rungs(id_of(trial))
        study.tell(trial.number, state=TrialState.FAIL)


def requeue(study: optuna.Study, plan: Plan) -> int:
    """Queue every slot again whose last attempt was cut off; returns how many were queued.

    A worker holds the study's lock; in Optuna's own loop nobody does.
    """
    retries = plan.retries()
    trials = study.get_trials(deepcopy=False) if retries else []
    for _, numbers in retries:
        add_copy(study, retry_of(trials[numbers[-1]], numbers))
    return len(retries)


def _is_lost(trial: FrozenTrial, storage: Storage, is_recent: bool | None) -> bool:
    """Whether a running trial's worker is gone.

    ``is_recent`` is whether its last heartbeat is recent; None without one.
    """
    worker = trial.system_attrs.get(WORKER_KEY)
    if worker == this_process():
        # The lock is held here: no thread of this process is just beginning a trial.
        return not is_held(storage.optuna, id_of(trial))
    gone = is_gone(worker) if worker is not None and is_here(worker) else None
    if is_recent is None:
        # A worker writes the first heartbeat before it releases the lock, which is held here. So
        # the worker of this trial has died. A trial with neither slot nor worker is a user's: it
        # may be starting.
        return bool(gone) or SLOT_KEY in trial.user_attrs
    # A suspended local worker is alive despite an old heartbeat.
    return not is_recent if gone is None else gone
