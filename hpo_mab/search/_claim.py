"""The target of a study, and its next trial, after lost trials are closed and queued again.

No slot is trained twice and none is left out.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Self

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from hpo_mab._attributes import (
    LEARNED_KEY,
    LENGTH_KEY,
    LOST_KEY,
    PREFIX,
    PROMOTES_KEY,
    REASON_KEY,
    RESUMED_KEY,
    RETRY_KEY,
    SAMPLER_KEY,
    SLOT_KEY,
    TARGET_KEY,
    TWIN_KEY,
    WORKER_KEY,
    TotalBudget,
    budgets_of,
    trial_attributes,
)
from hpo_mab._plan import Attempt, Next, Plan, raise_if_failing
from hpo_mab.pruners import PromotionPruner, TopKPruner
from hpo_mab.storage import (
    STORAGE_ERRORS,
    CurveStore,
    Definition,
    Storage,
    hold,
    is_gone,
    is_held,
    is_here,
    release,
    this_process,
)
from hpo_mab.storage._optuna import (
    add_copy,
    add_running,
    begin_waiting,
    id_of,
    running_trial,
    storage_of,
    unchecked_trial,
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a study is to reach; stored with it for all its workers.

    Attributes:
        trials: Trials that must be complete or pruned, the pilot's twins not counted.
        total: What all trials together may spend, as written; None is no limit.
        epoch_examples: Examples of one epoch.

    Examples:
        >>> from hpo_mab.search import Target
        >>> Target(trials=20, total="90 epochs", epoch_examples=1000).trials
        20
    """

    trials: int
    total: str | None
    epoch_examples: int

    def at_least(self, stored: Target) -> Target:
        """A stored target, raised to this one where this one is higher.

        Without a limit here the stored limit stays. Limits of different units cannot be compared:
        there this one is taken.
        """
        total = self.total or stored.total
        if self.total is not None and stored.total is not None:
            before, now = TotalBudget.parse(stored.total), TotalBudget.parse(self.total)
            if before.unit == now.unit and before.amount > now.amount:
                total = stored.total
        return dataclasses.replace(self, trials=max(self.trials, stored.trials), total=total)

    def save(self, study: optuna.Study) -> None:
        """Write the target into the study, in place of an earlier one."""
        study.set_user_attr(TARGET_KEY, dataclasses.asdict(self))

    @classmethod
    def load(cls, study: optuna.Study) -> Self:
        """The study's target as it is now; that of its definition where it has none."""
        stored = study.user_attrs.get(TARGET_KEY)
        if stored is None:
            definition = Definition.load(study)
            settings = definition.settings
            return cls(
                trials=settings.trials,
                total=settings.total,
                epoch_examples=definition.epoch_examples,
            )
        return cls(**stored)

    def share_spent(self, study: optuna.Study, curves: CurveStore) -> float:
        """Share of the total budget spent, lost and running trials included; 0 without limit."""
        return 0.0 if self.total is None else self.share(*self.spent(study, curves))

    def spent(self, study: optuna.Study, curves: CurveStore) -> tuple[int, float]:
        """Training examples and seconds of all trials, those of evaluations included."""
        examples, seconds = curves.spent(id_of(study))
        plan = Plan(study.get_trials(deepcopy=False))
        lost, lost_seconds = plan.unreported
        return examples + lost, seconds + lost_seconds + plan.evaluation_seconds

    def share(self, examples: int, seconds: float) -> float:
        """Share of the total budget that this is; 0 without limit."""
        if self.total is None:
            return 0.0
        return TotalBudget.parse(self.total).share_spent(
            seconds=seconds, examples=examples, epoch_examples=self.epoch_examples
        )

    def trials_left(
        self, study: optuna.Study, curves: CurveStore, *, done: float, spent_before: float
    ) -> int:
        """Trials that the study lacks, as far as its total budget is enough for them.

        Args:
            study: The study.
            curves: Its learning curves.
            done: Trials trained since, the running ones by their share.
            spent_before: `share_spent` before those.
        """
        left = self.trials - Plan(study.get_trials(deepcopy=False)).finished
        share = self.share_spent(study, curves)
        spent = share - spent_before
        if spent > 0:
            # `done` trials took the share `spent` of the budget. What is left of it is enough for
            # this number of trials of the same mean cost.
            paid_for = int(done * (1 - share) / spent)
            left = paid_for if self.lengthens(study) else min(left, paid_for)
        return max(0, left)

    def lengthens(self, study: optuna.Study) -> bool:
        """Whether complete trials continue until the total budget is spent."""
        unlimited = isinstance(study.pruner, PromotionPruner) and study.pruner.unlimited
        return unlimited and self.total is not None


class _Spending:
    """What trials have spent of a study's total budget, and what the running ones will spend.

    Args:
        study: The study.
        target: Its target.
        curves: Its learning curves.
    """

    def __init__(self, study: optuna.Study, target: Target, curves: CurveStore) -> None:
        self._study = study
        self._target = target
        # Without a definition the length of a trial is not known.
        self._definition = Definition.load(study) if Definition.is_in(study.user_attrs) else None
        # First: an evaluation that is stored in between then counts twice, and not never.
        stored = curves.load([id_of(trial) for trial in self._running()])
        self._reached = {name: points[-1].index for name, points in stored.items() if points}
        self._examples, self._seconds = target.spent(study, curves)

    @property
    def is_over(self) -> bool:
        """Whether the total budget is spent."""
        return self._target.share(self._examples, self._seconds) >= 1

    @property
    def is_promised(self) -> bool:
        """Whether the running trials will spend the rest if none is pruned.

        In seconds at the study's mean cost of an example so far; nothing is promised without any.
        """
        left = self._examples_left()
        seconds = self._seconds * (1 + left / max(self._examples, 1))
        return self._target.share(self._examples + left, seconds) >= 1

    def _running(self) -> list[FrozenTrial]:
        running = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return [trial for trial in running if SLOT_KEY in trial_attributes(trial)]

    def _examples_left(self) -> int:
        if self._definition is None:
            return 0
        per_budget = self._definition.settings.evaluations or 1
        left = 0
        for trial in self._running():
            attrs = trial_attributes(trial)
            # A trial that continues from a checkpoint says so once it has begun.
            reached = max(self._reached.get(id_of(trial), 0), attrs.get(RESUMED_KEY, 0))
            whole = self._definition.settings.examples_of(
                trial.params, longest=self._definition.trial_examples
            )
            left += (per_budget * budgets_of(attrs) - reached) * whole // per_budget
        return left


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
        add_copy(study, _retry_of(slot, numbers, trials[numbers[-1]]))
    return len(retries)


def _retry_of(slot: int, numbers: list[int], last: FrozenTrial) -> FrozenTrial:
    system: dict[str, Any] = {RETRY_KEY: numbers[0], "retry_history": numbers}
    # Optuna keeps the parameters of a queued trial there until they are suggested.
    if "fixed_params" in last.system_attrs:
        system["fixed_params"] = last.system_attrs["fixed_params"]
    # A retry keeps its sampler, and a promotion the trial that it promotes. The study's record of
    # examples is used only if the first attempt used it.
    attrs = trial_attributes(last)
    kept = (PROMOTES_KEY, LENGTH_KEY, LEARNED_KEY, TWIN_KEY, SAMPLER_KEY)
    own = {}
    # Earlier versions gave their attributes no prefix.
    if SLOT_KEY in last.user_attrs:
        own = {key: value for key, value in last.user_attrs.items() if not key.startswith(PREFIX)}
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
    ours = TARGET_KEY in study.user_attrs or Definition.is_in(study.user_attrs)
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
        # the worker of this trial has died. One with neither slot nor worker is a user's: it may
        # be starting.
        begun = worker is not None and is_here(worker) and is_gone(worker)
        return ours and (begun or SLOT_KEY in trial_attributes(trial))
    if worker is not None and is_here(worker):
        # A suspended local worker is alive despite an old heartbeat.
        return is_gone(worker)
    return id_of(trial) in stale


#: Queues the twins of a study's trials that are due; returns whether there were any.
QueueTwins = Callable[[optuna.Study, Sequence[FrozenTrial]], bool]


#: Whether there is a checkpoint of a complete trial here, from which it can continue.
IsSaved = Callable[[FrozenTrial], bool]


def claim(
    study: optuna.Study,
    storage: Storage,
    taken: list[optuna.trial.Trial],
    *,
    count: int,
    queue_twins: QueueTwins = lambda study, trials: False,
    is_saved: IsSaved | None = None,
) -> Next | None:
    """Take the study's next trials with one lock: those that wait, else new ones.

    Finished and running trials together, twins not counted, never exceed the study's target; but a
    running trial of another program, which has no slot, counts only when it has finished. A new
    trial takes the slot after the highest that a trial has had.

    Args:
        study: The study.
        storage: Its database.
        taken: Gets each trial, running here, as soon as it is taken: none is lost if this raises.
        count: Trials to take.
        queue_twins: Called with the study's lock held.
        is_saved: Whether a complete trial can continue; None: none can.

    Returns:
        None; `Next.DONE` or `Next.WAIT` if the study has no more.

    Raises:
        StudyFailedError: Three trials in a row failed.
    """
    with storage.lock(study.study_name), storage.optuna.collect_writes():
        target = Target.load(study)
        close_lost(study, storage)
        spending = None if target.total is None else _Spending(study, target, storage.curves)
        if spending is None:
            # Complete trials would continue for ever.
            is_saved = None
        elif spending.is_over:
            return Next.DONE
        most = len(taken) + count
        while len(taken) < most:
            if spending is not None and spending.is_promised:
                # A running trial may be pruned, which leaves room for another.
                return Next.WAIT
            # Made again for each trial: the one before it counts.
            plan = _complete_plan(study, target, queue_twins)
            following, best = _next_step(study, plan, target, is_saved)
            if following in (Next.DONE, Next.WAIT):
                return following
            trial = _start_next(study, storage, plan, best)
            if trial is not None:
                taken.append(trial)
    return None


def _next_step(
    study: optuna.Study, plan: Plan, target: Target, is_saved: IsSaved | None
) -> tuple[Next, FrozenTrial | None]:
    """What a worker does next, and the trial that a promotion trains in full or continues."""
    pruner = study.pruner
    if isinstance(pruner, PromotionPruner):
        best = pruner.next_best(study, is_saved=is_saved)
        following = plan.next(promotable=best is not None)
        idle = following is Next.WAIT and pruner.unlimited
        if (following is Next.DONE or idle) and target.total is not None:
            # What is left of the budget goes to the trials that the rule would leave as they are.
            best = pruner.next_best(study, every=True, is_saved=is_saved)
            following = plan.next(promotable=best is not None)
        return following, best if following is Next.PROMOTION else None
    following = plan.next()
    if following is Next.PROMOTION and isinstance(pruner, TopKPruner):
        return following, pruner.next_best(study)
    return following, None


def _start_next(
    study: optuna.Study, storage: Storage, plan: Plan, best: FrozenTrial | None
) -> optuna.trial.Trial | None:
    """Begin a trial; None if none has begun.

    That is where Optuna's own loop, which takes no lock, has begun the waiting one, and where the
    study's sampler raises: the trial then fails.

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
    # It imports torch, which only needs to be there where trials are run.
    from hpo_mab.search._recorder import failure_reason

    storage_of(study).set_trial_user_attr(trial_id, REASON_KEY, failure_reason(error))
    storage_of(study).set_trial_state_values(trial_id, TrialState.FAIL)
    raise_if_failing(study)


def _complete_plan(study: optuna.Study, target: Target, queue_twins: QueueTwins) -> Plan:
    """The study's plan, after trials that were cut off and twins that are due are queued."""
    promotions = study.pruner.k if isinstance(study.pruner, TopKPruner) else 0
    while True:
        trials = study.get_trials(deepcopy=False)
        plan = Plan(trials, target=target.trials, promotions=promotions)
        if not requeue(study, trials, plan) and not queue_twins(study, trials):
            return plan


def _begin_waiting(study: optuna.Study, waiting: Attempt, new_slot: int) -> int | None:
    """Begin a waiting trial, in a new slot if it has none; its id, or None if it waits no more."""
    trial = study.get_trials(deepcopy=False)[waiting.number]
    storage = storage_of(study)
    # Should this process die in between, the trial has no slot yet by which it is closed as lost.
    storage.set_trial_system_attr(id_of(trial), WORKER_KEY, this_process())
    # Before its slot: a trial that Optuna's own loop has begun must get none.
    if not begin_waiting(study, trial):
        with contextlib.suppress(UpdateFinishedTrialError):
            storage.set_trial_system_attr(id_of(trial), WORKER_KEY, None)
        return None
    if SLOT_KEY not in trial.user_attrs:
        # It was queued by `optuna.Study.enqueue_trial`, the dashboard, or an earlier version.
        for key, value in {SLOT_KEY: new_slot, **trial_attributes(trial)}.items():
            if key not in trial.user_attrs:
                storage.set_trial_user_attr(id_of(trial), key, value)
    return id_of(trial)


def _begin_promotion(study: optuna.Study, best: FrozenTrial, new_slot: int) -> int:
    """Begin a trial of a trial's configuration, in full, or in its slot to continue it; its id."""
    continues = isinstance(study.pruner, PromotionPruner)
    attrs = trial_attributes(best)
    # A trial that a user has added has no slot.
    slot = attrs.get(SLOT_KEY, new_slot) if continues else new_slot
    kept = {key: attrs[key] for key in (SAMPLER_KEY, LEARNED_KEY) if continues and key in attrs}
    if continues and best.state == TrialState.COMPLETE:
        kept[LENGTH_KEY] = budgets_of(attrs) + 1
    own = {SLOT_KEY: slot, PROMOTES_KEY: best.number, **kept}
    return add_running(study, own, params=best.params, distributions=best.distributions)
