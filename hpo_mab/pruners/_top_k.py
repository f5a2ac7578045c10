"""A single rung: all trials stop at one share of the budget, and the best are trained in full."""

from __future__ import annotations

import math

import optuna
from optuna.pruners import BasePruner
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from hpo_mab._errors import ArgumentError, check_integer, plain_arguments
from hpo_mab._plan import Attempt, Plan


class TopKPruner(BasePruner):
    """Stops every trial at one share of the budget; the best ``k`` are to be trained in full.

    The control that multi-fidelity searches find hard to beat: "one epoch, then the top k". In a
    study of this product the last ``k`` of ``budget.trials`` train the ``k`` best stopped
    configurations in full. They start from zero, with new seeds. All that they spend counts. The
    best of them is the study's result. The first ``search.initial`` trials are never stopped, as
    under any pruner.

    In any other Optuna study trials stop in the same way, and the user queues the best ones::

        best = pruner.next_best(study)
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
        if not 0 < after < 1:
            raise ArgumentError(f"after must be in (0, 1), got {after}.")
        check_integer("k", k, 1)
        self.k = int(k)
        # Rounding may put a third of nine evaluations just above 3; the slack keeps it at the 3rd.
        self.stop_step = math.ceil(after * max_resource - 1e-9)
        if self.stop_step >= max_resource:
            raise ArgumentError(
                f"after must be at most {(max_resource - 1) / max_resource:g}, the last of "
                f"{max_resource} evaluations but one, got {after}."
            )

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """See `optuna.pruners.BasePruner`."""
        if trial.last_step is None or Attempt.of(trial).promotion:
            return False
        return trial.last_step >= self.stop_step

    def next_best(self, study: optuna.Study) -> FrozenTrial | None:
        """The best stopped trial whose configuration is not yet queued for full training.

        The earliest of equal ones; None if there is none.

        Args:
            study: A study with this pruner.
        """
        trials = study.get_trials(deepcopy=False)
        plan = Plan(trials)
        numbers = plan.stopped - plan.promoted()
        stopped = [
            trial
            for trial in trials
            if trial.number in numbers and not math.isnan(first_report(trial, self.stop_step))
        ]
        sign = 1.0 if study.direction == StudyDirection.MINIMIZE else -1.0
        return min(
            stopped, key=lambda trial: sign * first_report(trial, self.stop_step), default=None
        )


def first_report(trial: FrozenTrial, step: int) -> float:
    """The first value that a trial has reported at or after a step; NaN without one."""
    steps = (reported for reported in trial.intermediate_values if reported >= step)
    return trial.intermediate_values.get(min(steps, default=-1), math.nan)
