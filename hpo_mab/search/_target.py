"""A study's target, and what its trials have spent of its total budget."""

from __future__ import annotations

import dataclasses
import itertools
import weakref
from collections.abc import Sequence
from typing import Self

import optuna
from optuna.trial import FrozenTrial, TrialState

from hpo_mab._attributes import CURVE_KEY, RESUMED_KEY, SLOT_KEY, TARGET_KEY
from hpo_mab._plan import budgets_of
from hpo_mab._results import Results
from hpo_mab._stored_settings import TotalBudget
from hpo_mab.pruners import PromotionPruner
from hpo_mab.storage._curves import CurveStore
from hpo_mab.storage._definition import StoredDefinition
from hpo_mab.storage._optuna import id_of


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StudyTarget:
    """What a study is to reach; stored with it for all its workers.

    Attributes:
        trials: Trials that must be complete or pruned, twins not counted.
        total: What all trials together may spend, as written; None is no limit.
        epoch_examples: Examples of one epoch.
    """

    trials: int
    total: str | None
    epoch_examples: int

    def at_least(self, stored: StudyTarget) -> StudyTarget:
        """The higher of this target and a stored one, separately for ``trials`` and ``total``.

        If only one of them has a total budget, that budget is kept. If the units of both differ,
        this target's budget is kept.
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
            definition = StoredDefinition.load(study)
            settings = definition.settings
            return cls(
                trials=settings.trials,
                total=settings.total,
                epoch_examples=definition.epoch_examples,
            )
        return cls(**stored)

    def share_spent(self, study: optuna.Study, curves: CurveStore) -> float:
        """Share of the total budget spent, lost and running trials included; 0 without limit.

        Evaluations, and the free slots of a stack, count when the trials end; those of a lost
        trial never do.
        """
        return 0.0 if self.total is None else self.share_of_total(*self.spent(study, curves))

    def spent(self, study: optuna.Study, curves: CurveStore) -> tuple[int, float]:
        """Training examples and seconds of all trials, those of evaluations included."""
        examples, seconds = _trained(study, curves)
        results = Results.of(study)
        more, more_seconds = results.unreported
        return examples + more, seconds + more_seconds + results.evaluation_seconds

    def share_of_total(self, examples: int, seconds: float) -> float:
        """These examples and seconds as a share of the total budget; 0 without limit."""
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
            done: Trials trained after ``spent_before`` was read; running ones by their share.
            spent_before: An earlier value of `share_spent`.
        """
        results = Results.of(study)
        left = self.trials - results.finished
        if self.continues(study):
            paused = results.numbers_not_continued & results.numbers_that_count
            left += len(paused - results.numbers_diverged)
        share = self.share_spent(study, curves)
        spent = share - spent_before
        if spent > 0:
            # `done` trials took the share `spent` of the budget. What is left of it is enough for
            # this number of trials of the same mean cost.
            paid_for = int(done * (1 - share) / spent)
            left = paid_for if self.spends_all(study) else min(left, paid_for)
        return max(0, left)

    def continues(self, study: optuna.Study) -> bool:
        """Whether paused trials continue after the last new one, within the total budget."""
        return isinstance(study.pruner, PromotionPruner) and self.total is not None

    def spends_all(self, study: optuna.Study) -> bool:
        """Whether complete trials continue, too, until the total budget is spent."""
        pruner = study.pruner
        return isinstance(pruner, PromotionPruner) and pruner.unlimited and self.total is not None


@dataclasses.dataclass(frozen=True, slots=True)
class _CostRead:
    """Cost of a study's trials before the first that has not ended, from their curves.

    A worker that was taken for lost may add points later. They do not count in a process that has
    read the curve before.
    """

    trials: int = 0
    last_id: int = -1
    curves: frozenset[int] = frozenset()
    examples: int = 0
    seconds: float = 0.0


_COSTS_READ: weakref.WeakKeyDictionary[optuna.Study, _CostRead] = weakref.WeakKeyDictionary()


def _trained(study: optuna.Study, curves: CurveStore) -> tuple[int, float]:
    """Training examples and seconds of all curves.

    Those before the first trial that has not ended are read once.
    """
    read = _COSTS_READ.get(study, _CostRead())
    new = study.get_trials(deepcopy=False)[read.trials :]
    numbers = _curve_numbers(new)
    if len(set(numbers)) < len(numbers) or not read.curves.isdisjoint(numbers):
        # Of trials that share a curve, as in a copy by Optuna, it counts once.
        return curves.spent(id_of(study))
    ended = [*itertools.takewhile(lambda one: one.state.is_finished(), new)]
    if ended:
        last_id = id_of(ended[-1])
        examples, seconds = curves.spent(id_of(study), after=read.last_id, until=last_id)
        read = _CostRead(
            read.trials + len(ended),
            last_id,
            read.curves.union(_curve_numbers(ended)),
            read.examples + examples,
            read.seconds + seconds,
        )
        _COSTS_READ[study] = read
    examples, seconds = curves.spent(id_of(study), after=read.last_id)
    return read.examples + examples, read.seconds + seconds


def _curve_numbers(trials: Sequence[FrozenTrial]) -> list[int]:
    return [trial.system_attrs[CURVE_KEY] for trial in trials if CURVE_KEY in trial.system_attrs]


class Spending:
    """What the trials of a study have spent of its total budget, read once."""

    def __init__(self, study: optuna.Study, target: StudyTarget, curves: CurveStore) -> None:
        self._study, self._target = study, target
        # Read first: an evaluation stored in between then counts twice instead of not at all.
        self._reached = {
            trial_id: points[-1].index
            for trial_id, points in curves.load([id_of(one) for one in self._running]).items()
        }
        self._examples, self._seconds = target.spent(study, curves)
        self._definition = StoredDefinition.load(study)

    @property
    def _running(self) -> list[FrozenTrial]:
        running = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return [trial for trial in running if SLOT_KEY in trial.user_attrs]

    @property
    def share(self) -> float:
        """Share of the total budget that is spent; 0 without limit."""
        return self._target.share_of_total(self._examples, self._seconds)

    @property
    def share_when_done(self) -> float:
        """Share of the total budget that is spent, or that running trials will spend.

        Seconds are estimated at the study's mean cost of an example so far.
        """
        settings, longest = self._definition.settings, self._definition.trial_examples
        per_budget = settings.evaluations_of(longest) or 1
        left = 0
        for trial in self._running:
            attrs = trial.user_attrs
            # A trial that continues from a checkpoint has this attribute once it has begun.
            reached = max(self._reached.get(id_of(trial), 0), attrs.get(RESUMED_KEY, 0))
            whole = settings.examples_of(trial.params, longest=longest)
            left += (per_budget * budgets_of(attrs) - reached) * whole // per_budget
        more = self._seconds * (1 + left / max(self._examples, 1))
        return self._target.share_of_total(self._examples + left, more)
