"""The next trial of a study, after lost trials are closed and queued again.

No slot is trained twice and none is left out.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from hpo_mab._attributes import (
    LENGTH_KEY,
    PROMOTES_KEY,
    REASON_KEY,
    SAMPLER_KEY,
    SLOT_KEY,
    USED_RECORD_KEY,
    WORKER_KEY,
)
from hpo_mab._errors import HpoMabError, failure_reason
from hpo_mab._interrupts import raise_if_interrupted
from hpo_mab._plan import Attempt, Next, Plan, budgets_of
from hpo_mab._results import Results
from hpo_mab.pruners import PromotionPruner, TopKPruner
from hpo_mab.search._retries import close_lost, requeue
from hpo_mab.search._target import Spending, StudyTarget
from hpo_mab.storage import Storage
from hpo_mab.storage._open import STORAGE_ERRORS
from hpo_mab.storage._optuna import add_running, begin_waiting, id_of, running_trial, storage_of
from hpo_mab.storage._process import hold, release, this_process

_CLAIM_SECONDS = 5.0

#: Queues the twins of a study's trials that are due; returns whether there were any.
QueueTwins = Callable[[optuna.Study], bool]


#: Whether this worker finds a checkpoint from which a complete trial can continue.
IsSaved = Callable[[FrozenTrial], bool]


def claim(
    study: optuna.Study,
    storage: Storage,
    claimed: list[optuna.trial.Trial],
    *,
    count: int,
    queue_twins: QueueTwins = lambda study: False,
    is_saved: IsSaved | None = None,
) -> Next | None:
    """Append the study's next trials to ``claimed``: those that wait, else new ones.

    Finished and running trials together, twins not counted, never exceed the study's target. A
    running trial of another program has no slot; it counts only when it has finished. A new
    trial takes the slot after the highest that a trial has had.

    Each trial is appended as soon as it runs, so that the caller ends it if this raises. It takes
    ``count`` trials with one lock; fewer, but at least one, if that takes longer than some seconds,
    or after one that may end its worker. ``queue_twins`` is called with the study's lock held. If
    ``is_saved`` is None, no complete trial continues.

    Returns `Next.DONE` or `Next.WAIT` if the study has no more trials, else None.

    Raises:
        StudyFailedError: Three trials in a row failed.
    """
    with storage.lock(study.study_name), storage.optuna.collect_writes():
        target = StudyTarget.load(study)
        close_lost(study, storage)
        if target.total is None:
            # Without a total budget, complete trials would continue without end.
            is_saved = None
        spending = None if target.total is None else Spending(study, target, storage.curves)
        most, began, ends = len(claimed) + count, time.monotonic(), False
        while not ends:
            raise_if_interrupted()
            if spending is not None:
                if spending.share >= 1:
                    return Next.DONE
                if spending.share_when_done >= 1:
                    # A running trial may be pruned, which leaves room for another.
                    return Next.WAIT
            # Made again for each trial: the one before it counts.
            plan = _complete_plan(study, queue_twins)
            following, best = _next_step(study, plan, target, is_saved)
            if following in (Next.DONE, Next.WAIT):
                return following
            trial = _start_next(study, storage, plan, best)
            if trial is not None:
                claimed.append(trial)
                # Suggestions may take long, and others wait for the lock: the caller claims again.
                ends = len(claimed) == most or time.monotonic() - began >= _CLAIM_SECONDS
                # Trials claimed after one that ends its worker would be lost, too.
                ends = ends or plan.is_suspect(trial.number)
    return None


def _next_step(
    study: optuna.Study, plan: Plan, target: StudyTarget, is_saved: IsSaved | None
) -> tuple[Next, FrozenTrial | None]:
    """What a worker does next, and the trial that a promotion trains in full or continues.

    It is the first of these that applies, see `Plan.next`:

    1. A twin that waits, or another waiting trial while ``budget.trials`` is not reached.
    2. Under `PromotionPruner`: the best paused trial, or a saved complete one beyond its budget.
    3. While ``budget.trials`` is not reached: a new configuration. Under `TopKPruner` the last
       ``k`` trials train the best stopped configurations in full.
    4. Under `PromotionPruner` with a total budget: the next best trial, even if its rung's rule
       would not continue it. Without a total budget: the same, while no trial is complete.
    """
    pruner, best = study.pruner, None
    promotions = pruner.k if isinstance(pruner, TopKPruner) else 0
    if isinstance(pruner, PromotionPruner):
        best = pruner.next_best(study, is_saved=is_saved)
        following = plan.next(target.trials)
        if target.total is not None:
            # The rest of the total budget continues trials that the promotion rule would not.
            ignores_rule = following in (Next.DONE, Next.WAIT)
        else:
            # If there are few trials, all may be paused. Then the best one is trained to its end.
            ignores_rule = following is Next.DONE and not Results.of(study).states()["complete"]
        if best is None and ignores_rule:
            best = pruner.next_best(study, every=True, is_saved=is_saved)
    following = plan.next(target.trials, promotions=promotions, promotable=best is not None)
    if following is not Next.PROMOTION:
        return following, None
    return following, pruner.next_best(study) if isinstance(pruner, TopKPruner) else best


def _start_next(
    study: optuna.Study, storage: Storage, plan: Plan, best: FrozenTrial | None
) -> optuna.trial.Trial | None:
    """Begin a trial; None if none has begun.

    Optuna's own loop takes no lock, so it may have begun the waiting one. Or the study's sampler
    raised, and the trial has failed.

    Raises:
        StudyFailedError: Three trials in a row failed.
    """
    trial_id: int | None
    if best is not None:
        trial_id = _begin_promotion(study, best, plan.next_slot)
    elif plan.waiting is not None:
        trial_id = _begin_waiting(study, plan.waiting, plan.next_slot)
    else:
        trial_id = add_running(study, {SLOT_KEY: plan.next_slot})
    if trial_id is None:
        return None
    # Before the lock is released: another thread that looks for lost trials must see it.
    hold(storage.optuna, trial_id)
    try:
        # In this order: a trial with a heartbeat has an owner.
        storage.optuna.set_trial_system_attr(trial_id, WORKER_KEY, this_process())
        storage.optuna.record_heartbeat(trial_id)
        return running_trial(study, trial_id)
    except BaseException as error:
        release(storage.optuna, trial_id)
        if not isinstance(error, Exception) or isinstance(error, STORAGE_ERRORS):
            raise
        _fail(study, trial_id, error)
    return None


def _fail(study: optuna.Study, trial_id: int, error: Exception) -> None:
    """Store that a trial has failed before it was trained."""
    storage_of(study).set_trial_user_attr(trial_id, REASON_KEY, failure_reason(error))
    storage_of(study).set_trial_state_values(trial_id, TrialState.FAIL)
    raise_if_failing(study)


def _complete_plan(study: optuna.Study, queue_twins: QueueTwins) -> Plan:
    """The study's plan, after trials that were cut off and twins that are due are queued."""
    while True:
        plan = Plan.of(study)
        if not requeue(study, plan) and not queue_twins(study):
            return plan


def _begin_waiting(study: optuna.Study, waiting: Attempt, new_slot: int) -> int | None:
    """Begin a waiting trial, in a new slot if it has none; its id, or None if it waits no more."""
    trial = study.get_trials(deepcopy=False)[waiting.number]
    storage = storage_of(study)
    # The worker first: a running trial with neither worker nor slot would not be closed as lost.
    storage.set_trial_system_attr(id_of(trial), WORKER_KEY, this_process())
    # The slot last: a trial that Optuna's own loop has begun must get none.
    if not begin_waiting(study, trial):
        with contextlib.suppress(UpdateFinishedTrialError):
            storage.set_trial_system_attr(id_of(trial), WORKER_KEY, None)
        return None
    if SLOT_KEY not in trial.user_attrs:
        # It was queued by `optuna.Study.enqueue_trial` or the dashboard.
        storage.set_trial_user_attr(id_of(trial), SLOT_KEY, new_slot)
    return id_of(trial)


def _begin_promotion(study: optuna.Study, best: FrozenTrial, new_slot: int) -> int:
    """Begin a trial that trains ``best`` in full, or continues it in its slot; returns the id."""
    continues = isinstance(study.pruner, PromotionPruner)
    attrs = best.user_attrs
    # A trial that a user has added has no slot.
    slot = attrs.get(SLOT_KEY, new_slot) if continues else new_slot
    keys = (SAMPLER_KEY, USED_RECORD_KEY) if continues else ()
    inherited = {key: attrs[key] for key in keys if key in attrs}
    if continues and best.state == TrialState.COMPLETE:
        inherited[LENGTH_KEY] = budgets_of(attrs) + 1
    new_attrs = {SLOT_KEY: slot, PROMOTES_KEY: best.number, **inherited}
    return add_running(study, new_attrs, params=best.params, distributions=best.distributions)


_FAILURES_IN_A_ROW = 3


class StudyFailedError(HpoMabError):
    """Trial after trial failed; the message holds the last reason."""


def raise_if_failing(study: optuna.Study) -> None:
    """Give up after three failures in a row."""
    failed = Plan.of(study).failed_in_a_row()
    if len(failed) >= _FAILURES_IN_A_ROW:
        last = study.get_trials(deepcopy=False)[failed[-1]]
        reason = last.user_attrs.get(REASON_KEY, "see the log")
        raise StudyFailedError(
            f"{_FAILURES_IN_A_ROW} trials in a row failed, the last with: {reason}"
        )
