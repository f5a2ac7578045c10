"""Trials whose worker is gone: noticed, closed and queued again.

Everything here is called with the study's lock held, so it happens once, and every step can be
repeated: what was cut off half way is finished by the next worker that gets the lock.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import optuna
import sqlalchemy as sa
from optuna.trial import FrozenTrial, TrialState

from hpo_mab._attributes import (
    INTERRUPTED_KEY,
    LOST_KEY,
    REASON_KEY,
    RETRY_KEY,
    SLOT_KEY,
    WORKER_KEY,
    trial_attributes,
)
from hpo_mab.pruners._trial_pairs import is_twin, twin_attrs
from hpo_mab.search._promotion import promotion_attrs
from hpo_mab.storage import RETRIES, Storage, is_gone, is_held, is_here, this_process

_OPEN = (TrialState.WAITING, TrialState.RUNNING)
_HELD = (*_OPEN, TrialState.COMPLETE, TrialState.PRUNED)

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


def requeue(study: optuna.Study) -> int:
    """Queue every slot again whose last attempt was cut off; returns how many were queued.

    A trial that lost its worker is tried three more times, as it may be the cause. One that was
    interrupted is no worse for that: it does not count.

    Args:
        study: The study, whose lock is held.
    """
    count = 0
    for (slot, _), attempts in sorted(_by_slot(study.get_trials(deepcopy=False)).items()):
        if _is_to_be_retried(attempts):
            study.add_trial(_retry(slot, attempts))
            count += 1
    return count


def unsettled(study: optuna.Study) -> set[tuple[int, bool]]:
    """Slots, and whether it is their twin, with a trial that is open or will be tried again."""
    return {
        slot
        for slot, attempts in _by_slot(study.get_trials(deepcopy=False)).items()
        if any(trial.state in _OPEN for trial in attempts) or _is_to_be_retried(attempts)
    }


def _is_to_be_retried(attempts: Sequence[FrozenTrial]) -> bool:
    last = attempts[-1]
    lost = sum(LOST_KEY in trial_attributes(trial) for trial in attempts)
    cut_off = {LOST_KEY, INTERRUPTED_KEY} & trial_attributes(last).keys()
    held = any(trial.state in _HELD for trial in attempts)
    return bool(cut_off) and not held and lost <= RETRIES


def _retry(slot: int, attempts: Sequence[FrozenTrial]) -> FrozenTrial:
    last = attempts[-1]
    numbers = [trial.number for trial in attempts]
    system: dict[str, Any] = {RETRY_KEY: numbers[0], "retry_history": numbers}
    if "fixed_params" in last.system_attrs:
        system["fixed_params"] = last.system_attrs["fixed_params"]
    return optuna.create_trial(
        state=TrialState.WAITING,
        params=last.params,
        distributions=last.distributions,
        user_attrs={SLOT_KEY: slot, **twin_attrs(last), **promotion_attrs(last)},
        system_attrs=system,
    )


def _by_slot(trials: Iterable[FrozenTrial]) -> dict[tuple[int, bool], list[FrozenTrial]]:
    """Attempts at each slot, and at each slot's uniform twin."""
    slots: dict[tuple[int, bool], list[FrozenTrial]] = defaultdict(list)
    for trial in trials:
        slot = trial_attributes(trial).get(SLOT_KEY)
        if slot is not None:
            slots[int(slot), is_twin(trial)].append(trial)
    return slots


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
