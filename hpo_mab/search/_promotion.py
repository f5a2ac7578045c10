"""The last trials of a study under `TopKPruner`: its best stopped configurations, in full."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from hpo_mab._attributes import PROMOTES_KEY, SLOT_KEY, trial_attributes
from hpo_mab._errors import SpecError
from hpo_mab.pruners import TopKPruner
from hpo_mab.search._spec import StudySpec
from hpo_mab.search._stopping import Target

_TAKEN = (TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED)


def promotion_attrs(trial: FrozenTrial) -> dict[str, Any]:
    """What makes a trial a promotion, for its retry; nothing for others."""
    key = PROMOTES_KEY
    attrs = trial_attributes(trial)
    return {key: attrs[key]} if key in attrs else {}


def is_promotion_due(study: optuna.Study, trials: Sequence[FrozenTrial], target: Target) -> bool:
    """Whether the next new trial is to train one of the best stopped configurations in full."""
    pruner = study.pruner
    if not isinstance(pruner, TopKPruner):
        return False
    return sum(trial.state in _TAKEN for trial in trials) >= target.trials - pruner.k


def is_open(trials: Sequence[FrozenTrial]) -> bool:
    """Whether trials are still running that may be among the best."""
    running = (trial for trial in trials if trial.state == TrialState.RUNNING)
    return any(PROMOTES_KEY not in trial_attributes(trial) for trial in running)


def queue_promotion(study: optuna.Study, slot: int) -> bool:
    """Queue the best stopped configuration that has not been; whether there was one.

    Args:
        study: A study under `TopKPruner`, whose lock is held.
        slot: The slot it is to have.
    """
    pruner = study.pruner
    best = pruner.next_best(study) if isinstance(pruner, TopKPruner) else None
    if best is None:
        return False
    study.add_trial(
        optuna.create_trial(
            state=TrialState.WAITING,
            params=best.params,
            distributions=best.distributions,
            user_attrs={SLOT_KEY: slot, PROMOTES_KEY: best.number},
        )
    )
    return True


def check_top_k(spec: StudySpec, pruner: TopKPruner) -> None:
    """Refuse a definition under which the best could not be told or trained.

    Raises:
        SpecError: Too few trials, or a limit in another currency than trials.
    """
    fewest = spec.search.initial + 2 * pruner.k
    if spec.budget.trials < fewest:
        raise SpecError(
            f"budget.trials must be at least {fewest} for pruner 'top_k': search.initial = "
            f"{spec.search.initial} are never stopped, {pruner.k} or more are, and the best "
            f"{pruner.k} of them are trained in full; got {spec.budget.trials}."
        )
    if spec.budget.total is not None:
        raise SpecError(
            "budget.total cannot be used with pruner 'top_k', which must know from budget.trials "
            f"when to train the best in full; got {spec.budget.total!r}."
        )
