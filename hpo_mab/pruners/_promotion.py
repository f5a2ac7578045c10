"""Pruners that stop trials at rungs and train the best of them further.

One rung and the best in full, or successive halving whose paused trials continue.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import optuna
from optuna.pruners import BasePruner
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hpo_mab._attributes import PROMOTES_KEY, REASON_KEY, TWIN_KEY
from hpo_mab._errors import ArgumentError, check_integer, plain_arguments, require
from hpo_mab._plan import Attempt
from hpo_mab._results import Results

#: Checkpoints of a rung that are kept beyond those of trials that are likely to continue: in small
#: studies all of them.
_SPARE_FILES = 8


class TopKPruner(BasePruner):
    """Stops every trial at one share of the budget; the best ``k`` are to be trained in full.

    The control that multi-fidelity searches find hard to beat: "one epoch, then the top k". In a
    study of this product the last ``k`` of ``budget.trials`` train the ``k`` best stopped
    configurations in full. They start from zero, with new seeds. All that they spend counts. The
    best of them is the study's result. The first ``search.initial`` trials are never stopped, as
    under any pruner.

    In any other Optuna study trials stop in the same way, and the user queues the best ones::

        if (best := pruner.next_best(study)) is not None:
            study.enqueue_trial(best.params, user_attrs={"hpo_mab:promotes": best.number})

    Source: Egele, Guyon, Sun, Balaprakash, "Is One Epoch All You Need For Multi-Fidelity
    Hyperparameter Optimization?", ESANN 2023, arXiv:2307.15422.

    Args:
        max_resource: Step that a full trial reports last, at least 2.
        after: Share of the budget after which trials are stopped, in (0, 1); the first step at or
            after it decides.
        k: How many are trained in full, at least 1.

    Raises:
        ArgumentError: An argument outside its bound, or an ``after`` that leaves nothing to stop.

    Examples:
        >>> import optuna
        >>> from hpo_mab.pruners import TopKPruner
        >>> pruner = TopKPruner(max_resource=8, after=0.25, k=3)
        >>> study = optuna.create_study(direction="maximize", pruner=pruner)
    """

    @plain_arguments
    def __init__(self, *, max_resource: int, after: float = 0.25, k: int = 3) -> None:
        check_integer("max_resource", max_resource, 2)
        require(0 < after < 1, "after", "in (0, 1)", after)
        check_integer("k", k, 1)
        self.k = int(k)
        # A third of nine may be rounded to just above 3, which must not become the 4th evaluation.
        self.stop_step = math.ceil(after * max_resource - 1e-9)
        if self.stop_step >= max_resource:
            raise ArgumentError(
                f"after must be at most {(max_resource - 1) / max_resource:g}, the last of "
                f"{max_resource} evaluations but one, got {after}."
            )

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """See `optuna.pruners.BasePruner`."""
        if trial.last_step is None or Attempt.of(trial).promotes is not None:
            return False
        return trial.last_step >= self.stop_step

    def next_best(self, study: optuna.Study) -> FrozenTrial | None:
        """The best stopped trial whose configuration is not yet queued for full training.

        The earliest of equal ones; None if there is none.

        Args:
            study: A study with this pruner.
        """
        trials = study.get_trials(deepcopy=False)
        results = Results.of(study)
        numbers = results.numbers_stopped - results.numbers_promoted
        stopped = [
            trial
            for trial in trials
            if trial.number in numbers and not math.isnan(first_report(trial, self.stop_step))
        ]
        sign = 1.0 if study.direction == StudyDirection.MINIMIZE else -1.0
        return min(
            stopped, key=lambda trial: sign * first_report(trial, self.stop_step), default=None
        )


class PromotionPruner(BasePruner):
    """Pauses trials at rungs; the best ``1 / reduction_factor`` of a rung continue to the next.

    Rungs lie at ``min_resource * reduction_factor**i``. A trial that reaches one and is not among
    the best there pauses. When more trials have reached the rung it may be among the best. Then it
    continues before any new configuration starts, the highest rung first. So a trial paused too
    early is not lost. Rungs may lie earlier than under Optuna's ``SuccessiveHalvingPruner``, which
    decides once.

    In a study of this product a paused trial has the state ``PRUNED``: Optuna would treat a running
    trial without heartbeats as lost. Optuna refuses to change a finished trial, so a new trial of
    the same slot continues the paused one, with its reports, curve, checkpoint and seed. Only the
    examples of the new trial's own training count. Without a checkpoint it trains from the start.

    An ``unlimited`` pruner has rungs beyond ``max_resource``, too, for trials whose learning rate
    does not decay. In a study of this product the best complete trials then continue, as long as
    its total budget lasts. Each continuation adds ``max_resource`` and is complete again.

    In any other Optuna study trials pause in the same way, and the user queues the best ones::

        if (best := pruner.next_best(study)) is not None:
            study.enqueue_trial(best.params, user_attrs={"hpo_mab:promotes": best.number})

    Source: Li, Jamieson, Rostamizadeh, Gonina, Ben-Tzur, Hardt, Recht, Talwalkar, "A System for
    Massively Parallel Hyperparameter Tuning", MLSys 2020, arXiv:1810.05934 (algorithm 2).

    Args:
        max_resource: Step that a full trial reports last, at least 2.
        min_resource: Step of the first rung, from 1 to ``max_resource - 1``.
        reduction_factor: At least 2.
        unlimited: Whether there are rungs beyond ``max_resource``.

    Raises:
        ArgumentError: An argument outside its bound.

    Examples:
        >>> import optuna
        >>> from hpo_mab.pruners import PromotionPruner
        >>> pruner = PromotionPruner(max_resource=8)
        >>> study = optuna.create_study(direction="maximize", pruner=pruner)
    """

    @plain_arguments
    def __init__(
        self,
        *,
        max_resource: int,
        min_resource: int = 1,
        reduction_factor: int = 2,
        unlimited: bool = False,
    ) -> None:
        check_integer("max_resource", max_resource, 2)
        check_integer("min_resource", min_resource, 1)
        check_integer("reduction_factor", reduction_factor, 2)
        if min_resource >= max_resource:
            raise ArgumentError(
                f"min_resource must be below max_resource = {max_resource}, got {min_resource}."
            )
        self.max_resource = max_resource
        self.reduction_factor = reduction_factor
        self.unlimited = unlimited
        steps, step = [], min_resource
        while step < max_resource:
            steps.append(step)
            step *= self.reduction_factor
        #: Steps of the rungs below ``max_resource``, at which trials pause.
        self.rungs = tuple(steps)

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """See `optuna.pruners.BasePruner`."""
        rung = self.entered(study, trial)
        if rung is None:
            return False
        entries = self._entries(study, rung, own=trial)
        return all(one.number != trial.number for one in entries[: self._promoted_count(entries)])

    def entered(self, study: optuna.Study, trial: FrozenTrial) -> int | None:
        """Step of the highest rung that the trial's last report newly reached; None if none.

        Args:
            study: The trial's study.
            trial: A trial; one that continues another does not enter that one's rungs again.
        """
        if trial.last_step is None:
            return None
        origin = trial.user_attrs.get(PROMOTES_KEY)
        before = [step for step in trial.intermediate_values if step < trial.last_step]
        if origin is not None:
            # A continuation has been compared at the rungs of the trial that it continues.
            paused = study.get_trials(deepcopy=False)[origin]
            before.append(paused.last_step or 0)
        known = max(before, default=0)
        rungs = [step for step in self.rungs if known < step <= trial.last_step]
        return rungs[-1] if rungs else None

    def judge(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, float | int | None]:
        """The comparison at the rung that a trial has just entered.

        Args:
            study: The trial's study.
            trial: A trial for which `prune` was true.

        Returns:
            ``rung`` (its number from 0), ``threshold`` (the value of the last that may continue;
            None if none may) and ``competitors`` (configurations there so far, this one included).
        """
        rung = self.entered(study, trial)
        if rung is None:
            return {}
        entries = self._entries(study, rung, own=trial)
        count = self._promoted_count(entries)
        return {
            "rung": self.rungs.index(rung),
            "threshold": first_report(entries[count - 1], rung) if count else None,
            "competitors": len(entries),
        }

    def next_best(
        self,
        study: optuna.Study,
        *,
        every: bool = False,
        is_saved: Callable[[FrozenTrial], bool] | None = None,
    ) -> FrozenTrial | None:
        """The trial that continues next; None if no more may.

        Args:
            study: A study with this pruner.
            every: Whether trials that are not among the best of their rung may continue, too.
            is_saved: Whether a complete trial's state is saved, so that it can continue; None: no
                complete trial continues.
        """
        taken = Results.of(study).numbers_promoted
        for trial in self.continuable(study, every=every):
            if trial.number in taken:
                continue
            if trial.state == TrialState.PRUNED or (is_saved is not None and is_saved(trial)):
                return trial
        return None

    def continuable(self, study: optuna.Study, *, every: bool = False) -> Iterator[FrozenTrial]:
        """The trials that may continue, the highest rung first, the best of each first.

        Args:
            study: A study with this pruner.
            every: Whether to include trials that are not among the best of their rung. Complete
                trials then come first, ordered by their rank divided by the size of their rung.
                Those that their last ``max_resource`` steps did not improve come last.
        """
        paused: list[FrozenTrial] = []
        better: list[tuple[float, int, FrozenTrial]] = []
        others: list[tuple[float, int, FrozenTrial]] = []
        for rung, following in reversed(self._all_rungs(study)):
            entries = self._entries(study, rung)
            best = entries if every else entries[: self._promoted_count(entries)]
            for place, one in enumerate(best, start=1):
                if not self._may_continue(one, following):
                    continue
                if every and rung >= self.max_resource:
                    complete = better if self._became_better(study, one) else others
                    complete.append((place / len(entries), rung, one))
                else:
                    paused.append(one)
        for complete in (better, others):
            # The sort is stable: of one rung the best stays first.
            complete.sort(key=lambda each: each[:2])
        yield from (one for *_, one in better)
        yield from paused
        yield from (one for *_, one in others)

    def worth_keeping(self, study: optuna.Study) -> list[FrozenTrial]:
        """Trials whose checkpoints are kept: the best of each rung, and the next best.

        Any other paused trial that continues is trained again from the start.

        Args:
            study: A study with this pruner.
        """
        kept = []
        for rung, following in self._all_rungs(study):
            entries = self._entries(study, rung)
            count = self._promoted_count(entries)
            # As many more as later trials make room for, or overtake. A complete trial is a result
            # already, so fewer are kept.
            spare = count // 4 + _SPARE_FILES if rung < self.max_resource else self.reduction_factor
            best = entries[: count + spare]
            kept += [one for one in best if self._may_continue(one, following)]
        return kept

    def _all_rungs(self, study: optuna.Study) -> list[tuple[int, int]]:
        """Each rung and the following one, from the lowest to the highest that was reached."""
        steps = [*self.rungs, self.max_resource]
        if self.unlimited:
            trials = study.get_trials(deepcopy=False)
            longest = max((trial.last_step or 0 for trial in trials), default=0)
            while steps[-1] <= longest:
                steps.append(steps[-1] * self.reduction_factor)
        return list(itertools.pairwise(steps))

    def _became_better(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether the last ``max_resource`` steps of a complete trial made it better."""
        last = trial.last_step or 0
        before = trial.intermediate_values.get(last - self.max_resource)
        if before is None:
            return True
        gain = trial.intermediate_values[last] - before
        return gain < 0 if study.direction == StudyDirection.MINIMIZE else gain > 0

    def _may_continue(self, trial: FrozenTrial, following: int) -> bool:
        """Whether a trial is paused, or complete, before the rung that follows its last one."""
        state = TrialState.PRUNED if following <= self.max_resource else TrialState.COMPLETE
        diverged = REASON_KEY in trial.user_attrs
        # A trial that has reached the following rung is ranked there.
        return trial.state == state and not diverged and (trial.last_step or 0) < following

    def _promoted_count(self, entries: Sequence[FrozenTrial]) -> int:
        """How many configurations of a rung may continue."""
        return len(entries) // self.reduction_factor

    def _entries(
        self, study: optuna.Study, rung: int, *, own: FrozenTrial | None = None
    ) -> list[FrozenTrial]:
        """Latest trial of each configuration at a rung, the best first, equal ones by number."""
        found: dict[int, tuple[float, FrozenTrial]] = {}
        roots: dict[int, int] = {}
        for stored in study.get_trials(deepcopy=False):
            # The database may not have all reports of the running trial yet.
            trial = own if own is not None and own.number == stored.number else stored
            attrs = trial.user_attrs
            origin = attrs.get(PROMOTES_KEY)
            # Trials that continue one another are one configuration, of which the last counts.
            root = trial.number if origin is None else roots.get(origin, trial.number)
            roots[trial.number] = root
            value = first_report(trial, rung)
            reached = not math.isnan(value)
            if reached and TWIN_KEY not in attrs and trial.state != TrialState.FAIL:
                found[root] = value, trial
        sign = 1.0 if study.direction == StudyDirection.MINIMIZE else -1.0
        return [trial for _, trial in sorted(found.values(), key=lambda one: sign * one[0])]


def first_report(trial: FrozenTrial, step: int) -> float:
    """The first value that a trial has reported at or after a step; NaN without one."""
    values = trial.intermediate_values
    if step in values:
        return values[step]
    steps = (reported for reported in values if reported >= step)
    return values.get(min(steps, default=-1), math.nan)
