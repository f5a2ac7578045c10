"""Queued trials: twins, and retries of trials that were interrupted or lost their worker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from hpo_mab._attributes import (
    LEARNED_KEY,
    LENGTH_KEY,
    LOST_KEY,
    PREFIX,
    PROMOTES_KEY,
    REASON_KEY,
    RETRY_KEY,
    SAMPLER_KEY,
    SLOT_KEY,
    TARGET_KEY,
    TWIN_KEY,
    UNIFORM,
    WORKER_KEY,
)
from hpo_mab._plan import Plan, slot_of
from hpo_mab.storage import Storage, StoredDefinition
from hpo_mab.storage._optuna import add_copy, id_of, storage_of, unchecked_trial
from hpo_mab.storage._process import is_gone, is_held, is_here, this_process

# A twin is an ordinary trial with the slot, parameters and seed of another trial, under another
# batch sampler. It is never pruned. It has the user attributes ``hpo_mab:twin_of`` (the slot) and
# ``hpo_mab:sampler``. Twins count in the study's total budget, but not in ``budget.trials``. So a
# study has as many configurations with twins as without. Their results are results of the study
# like any other.
#
# In the pilot of `AdvantagePruner` each complete configuration of the first ones gets a twin under
# uniform sampling. `hpo_mab.search._race` queues the twins of ``"auto"``.


def queue_twin(
    study: optuna.Study, trial: optuna.trial.Trial | FrozenTrial, sampler: str = UNIFORM
) -> None:
    """Queue a trial's twin, unless it has one.

    Args:
        study: The trial's study.
        trial: A trial all of whose parameters are known.
        sampler: The twin's batch sampler.
    """
    slot = slot_of(study, trial)
    if Plan.of(study).has_twin(slot, sampler):
        return
    attrs = {SLOT_KEY: slot, TWIN_KEY: slot, SAMPLER_KEY: sampler}
    twin = unchecked_trial(
        state=TrialState.WAITING,
        params=trial.params,
        distributions=trial.distributions,
        user_attrs=attrs,
    )
    add_copy(study, twin)


# Trials whose worker is gone are closed and queued again.
#
# Everything here is called with the study's lock held, so it happens once. Every step can be
# repeated: if a worker dies half way, the next one with the lock finishes the step.


def close_lost(study: optuna.Study, storage: Storage) -> None:
    """Fail the trials whose worker is gone.

    Args:
        study: The study, whose lock is held.
        storage: Its database.
    """
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    for trial in _lost(study, storage, running):
        # Before the state: a failed trial without this mark would not be tried again.
        storage_of(study).set_trial_user_attr(id_of(trial), LOST_KEY, True)
        storage_of(study).set_trial_user_attr(id_of(trial), REASON_KEY, "its worker ended suddenly")
        storage.optuna.forget_rungs(id_of(trial))
        study.tell(trial.number, state=TrialState.FAIL)


def requeue(study: optuna.Study, plan: Plan) -> int:
    """Queue every slot again whose last attempt was cut off; returns how many were queued.

    Args:
        study: The study. A worker holds its lock; Optuna's own loop has none.
        plan: Its plan.
    """
    retries = plan.retries()
    trials = study.get_trials(deepcopy=False) if retries else []
    for (slot, _), numbers in retries:
        add_copy(study, _retry_of(slot, numbers, trials[numbers[-1]]))
    return len(retries)


def _retry_of(slot: int, numbers: list[int], last: FrozenTrial) -> FrozenTrial:
    system: dict[str, Any] = {RETRY_KEY: numbers[0], "retry_history": numbers}
    # Optuna's keys of a grid's point, and of queued parameters until they are suggested.
    for key in ("fixed_params", "grid_id", "search_space"):
        if key in last.system_attrs:
            system[key] = last.system_attrs[key]
    # A retry keeps its sampler, and a promotion the trial that it promotes. The study's record of
    # examples is used only if the first attempt used it.
    attrs = last.user_attrs
    kept = (PROMOTES_KEY, LENGTH_KEY, LEARNED_KEY, TWIN_KEY, SAMPLER_KEY)
    own = {key: value for key, value in attrs.items() if not key.startswith(PREFIX)}
    return unchecked_trial(
        state=TrialState.WAITING,
        params=last.params,
        distributions=last.distributions,
        user_attrs={**own, SLOT_KEY: slot, **{key: attrs[key] for key in kept if key in attrs}},
        system_attrs=system,
    )


def _lost(
    study: optuna.Study, storage: Storage, running: Sequence[FrozenTrial]
) -> list[FrozenTrial]:
    if not running:
        return []
    alive = storage.optuna.with_heartbeat([id_of(trial) for trial in running])
    stale = storage.optuna.stale(study)
    # A loop of a user's own may record no heartbeats.
    ours = TARGET_KEY in study.user_attrs or StoredDefinition.is_in(study.user_attrs)
    return [trial for trial in running if _is_lost(trial, storage, alive, stale, ours=ours)]


def _is_lost(
    trial: FrozenTrial, storage: Storage, alive: set[int], stale: set[int], *, ours: bool
) -> bool:
    worker = trial.system_attrs.get(WORKER_KEY)
    if worker == this_process():
        # The lock is held here: no thread of this process is just beginning a trial.
        return not is_held(storage.optuna, id_of(trial))
    if id_of(trial) not in alive:
        # A worker writes the first heartbeat before it releases the lock, which is held here. So
        # the worker of this trial has died. A trial with neither slot nor worker is a user's: it
        # may be starting.
        has_died = worker is not None and is_here(worker) and is_gone(worker)
        return ours and (has_died or SLOT_KEY in trial.user_attrs)
    if worker is not None and is_here(worker):
        # A suspended local worker is alive despite an old heartbeat.
        return is_gone(worker)
    return id_of(trial) in stale
