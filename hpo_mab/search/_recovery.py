"""Trials whose worker is gone: noticed, closed and queued again.

Everything here is called with the study's lock held, so it happens once, and every step can be
repeated: what was cut off half way is finished by the next worker that gets the lock.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import optuna
import sqlalchemy as sa
from optuna.trial import FrozenTrial, TrialState

from hpo_mab._attributes import (
    LOST_KEY,
    PROMOTES_KEY,
    REASON_KEY,
    RETRY_KEY,
    SAMPLER_KEY,
    SLOT_KEY,
    TWIN_KEY,
    WORKER_KEY,
    trial_attributes,
)
from hpo_mab.search._plan import Plan
from hpo_mab.storage import Storage, is_gone, is_held, is_here, this_process

# Optuna's own table of signs of life.
_heartbeats = sa.table("trial_heartbeats", sa.column("trial_id"))


def close_lost(study: optuna.Study, storage: Storage) -> None:
    """Fail the trials whose worker is gone.

    Args:
        study: The study, whose lock is held.
        storage: Its database.
    """
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    for trial in _lost(study, storage, running):
        study._storage.set_trial_user_attr(trial._trial_id, LOST_KEY, True)
        study._storage.set_trial_user_attr(trial._trial_id, REASON_KEY, "its worker ended suddenly")
        study.tell(trial.number, state=TrialState.FAIL)


def requeue(study: optuna.Study, trials: Sequence[FrozenTrial], plan: Plan) -> int:
    """Queue every slot again whose last attempt was cut off; returns how many were queued.

    Args:
        study: The study, whose lock is held.
        trials: Its trials.
        plan: Their plan.
    """
    retries = plan.retries()
    for (slot, _), numbers in retries:
        study.add_trial(_retry(slot, numbers, trials[numbers[-1]]))
    return len(retries)


def _retry(slot: int, numbers: list[int], last: FrozenTrial) -> FrozenTrial:
    system: dict[str, Any] = {RETRY_KEY: numbers[0], "retry_history": numbers}
    if "fixed_params" in last.system_attrs:
        system["fixed_params"] = last.system_attrs["fixed_params"]
    # What it has become: a twin with its sampler, or a promotion.
    attrs = trial_attributes(last)
    kept = [PROMOTES_KEY] + [TWIN_KEY, SAMPLER_KEY] * (TWIN_KEY in attrs)
    return optuna.create_trial(
        state=TrialState.WAITING,
        params=last.params,
        distributions=last.distributions,
        user_attrs={SLOT_KEY: slot, **{key: attrs[key] for key in kept if key in attrs}},
        system_attrs=system,
    )


def _lost(
    study: optuna.Study, storage: Storage, running: Sequence[FrozenTrial]
) -> list[FrozenTrial]:
    if not running:
        return []
    alive = _with_heartbeat(storage, [trial._trial_id for trial in running])
    stale = set(storage.optuna._get_stale_trial_ids(study._study_id))
    return [trial for trial in running if _is_lost(trial, storage, alive, stale)]


def _is_lost(trial: FrozenTrial, storage: Storage, alive: set[int], stale: set[int]) -> bool:
    worker = trial.system_attrs.get(WORKER_KEY)
    if trial._trial_id not in alive:
        # The lock is ours: whoever held it when claiming this trial died before the first sign
        # of life. Without a slot it is no trial of ours, and may be just starting.
        return SLOT_KEY in trial_attributes(trial)
    if worker == this_process():
        return not is_held(storage.optuna, trial._trial_id)
    if worker is not None and is_here(worker):
        # A worker on this machine that was asleep with it is not lost, however stale its sign.
        return is_gone(worker)
    return trial._trial_id in stale


def _with_heartbeat(storage: Storage, trial_ids: list[int]) -> set[int]:
    query = sa.select(_heartbeats.c.trial_id).where(_heartbeats.c.trial_id.in_(trial_ids))
    with storage.optuna.engine.connect() as connection:
        return set(connection.scalars(query))
