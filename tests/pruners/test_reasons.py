"""Each pruner stores with a trial why it was pruned."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import optuna
import pytest
from optuna.pruners import BasePruner
from optuna.trial import FrozenTrial, TrialState

from hpo_mab import AdvantagePruner, TrialReporter
from hpo_mab._attributes import PAIRED_KEY, SLOT_KEY
from hpo_mab.pruners import PromotionPruner, TopKPruner, why_pruned
from hpo_mab.pruners._reasons import WeakRung
from hpo_mab.search._trial_record import store_reason

pruners = optuna.pruners

pytestmark = [
    pytest.mark.filterwarnings("ignore:AdvantagePruner decides:hpo_mab.HpoMabWarning"),
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
    pytest.mark.filterwarnings("ignore:The budget in examples is"),
]


def run(pruner: BasePruner, *curves: Sequence[float], direction: str = "maximize") -> FrozenTrial:
    """Trials that report accuracies one after the other; returns the last of them."""
    study = optuna.create_study(direction=direction, pruner=pruner, study_name="reasons")
    remaining = itertools.chain(curves)

    def objective(trial: optuna.trial.Trial) -> float:
        curve = next(remaining)
        with TrialReporter(trial, budget_examples=len(curve), evaluations=len(curve)) as reporter:
            for accuracy in curve:
                reporter.step(1)
                reporter.report(accuracy=accuracy)
        return curve[-1]

    study.optimize(objective, n_trials=len(curves))
    return study.trials[-1]


def flat(value: float, length: int = 4) -> list[float]:
    return [value] * length


CASES: list[tuple[BasePruner, list[list[float]], dict[str, Any], str]] = [
    (
        pruners.MedianPruner(n_startup_trials=2),
        [flat(0.5), flat(0.9), flat(0.6)],
        {"step": 1, "value": 0.6, "threshold": 0.7, "competitors": 2, "percentile": 50.0},
        "60.00% was its best value up to evaluation 1; 70.00% was needed, which the best 50% of 2 "
        "complete trials had there.",
    ),
    (
        pruners.PercentilePruner(25.0, n_startup_trials=2, n_warmup_steps=2),
        [flat(0.5), flat(0.9), [0.3, 0.2, 0.1]],
        {"step": 2, "value": 0.3, "threshold": pytest.approx(0.8), "percentile": 25.0},
        "30.00% was its best value up to evaluation 2; 80.00% was needed",
    ),
    (
        pruners.SuccessiveHalvingPruner(min_resource=2, reduction_factor=2),
        [flat(0.9), flat(0.5)],
        {"step": 2, "rung": 0, "value": 0.5, "threshold": 0.9, "competitors": 2},
        "50.00% at rung 0 at evaluation 2, as one of 2 trials judged there so far; 90.00% was "
        "needed to continue.",
    ),
    (
        pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2),
        [flat(0.9), [0.95, 0.8, 0.8]],
        {"step": 2, "rung": 1, "value": 0.8, "threshold": 0.9, "competitors": 2},
        "80.00% at rung 1 at evaluation 2",
    ),
    (
        pruners.SuccessiveHalvingPruner(min_resource=1, bootstrap_count=1),
        [flat(0.9)],
        {"rung": 0, "value": 0.9, "threshold": None, "competitors": 1},
        "as one of 1 trials judged there so far; too few for one to continue.",
    ),
    (
        pruners.HyperbandPruner(min_resource=1, max_resource=1, reduction_factor=2),
        [flat(0.9), flat(0.5)],
        {"bracket": 0, "rung": 0, "step": 1, "value": 0.5, "threshold": 0.9, "competitors": 2},
        "50.00% at rung 0 of bracket 0 at evaluation 1",
    ),
    (
        AdvantagePruner(min_resource=2, reduction_factor=2),
        [flat(0.9), flat(0.5)],
        {"step": 2, "rung": 0, "value": 0.5, "threshold": 0.9, "competitors": 2},
        "50.00% at rung 0 at evaluation 2, as one of 2 trials judged there so far; 90.00% was "
        "needed to continue.",
    ),
    (
        PromotionPruner(max_resource=8, min_resource=2),
        [flat(0.9), flat(0.5)],
        {"step": 2, "rung": 0, "value": 0.5, "threshold": 0.9, "competitors": 2},
        "50.00% at rung 0 at evaluation 2, as one of 2 trials judged there so far; 90.00% was "
        "needed to continue. It may continue later.",
    ),
    (
        TopKPruner(max_resource=4, after=0.5, k=3),
        [flat(0.5)],
        {"step": 2, "value": 0.5, "threshold": None, "top_k": 3},
        "trials stop at evaluation 2, where this one had 50.00%; the best 3 are trained in full.",
    ),
    (
        pruners.ThresholdPruner(lower=0.3),
        [[0.5, 0.2, 0.2]],
        {"step": 2, "value": 0.2, "threshold": None},
        "ThresholdPruner stopped it at evaluation 2, where it had 20.00%.",
    ),
]


@pytest.mark.parametrize(("pruner", "curves", "because", "sentence"), CASES)
def test_the_reason_is_stored_and_can_be_read(
    pruner: BasePruner, curves: list[list[float]], because: dict[str, Any], sentence: str
) -> None:
    trial = run(pruner, *curves)
    assert trial.state == TrialState.PRUNED
    stored = trial.user_attrs["hpo_mab:pruned_because"]
    assert {key: stored[key] for key in because} == because
    assert sentence in why_pruned(trial.user_attrs)


def test_values_that_are_minimized_are_compared_so() -> None:
    pruner = pruners.MedianPruner(n_startup_trials=2)
    study = optuna.create_study(direction="minimize", pruner=pruner)
    for value in (1.0, 3.0):
        trial = study.ask()
        trial.report(value, step=1)
        study.tell(trial, value)
    trial = study.ask()
    trial.report(2.5, step=1)
    assert trial.should_prune()
    store_reason(trial)
    stored = study.trials[-1].user_attrs["hpo_mab:pruned_because"]
    assert (stored["value"], stored["threshold"], stored["competitors"]) == (2.5, 2.0, 2)


def test_a_value_that_is_not_a_number_is_named_so() -> None:
    study = optuna.create_study(direction="maximize", pruner=AdvantagePruner(min_resource=1))
    trial = study.ask()
    trial.report(math.nan, step=1)
    assert trial.should_prune()
    assert "evaluation 1 was not a number." in why_pruned(study.trials[0].user_attrs)


class _OfOnesOwn(BasePruner):
    def __init__(self, because: dict[str, Any] | None) -> None:
        self._because = because

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        if self._because is not None:
            study._storage.set_trial_user_attr(
                trial._trial_id, "hpo_mab:pruned_because", self._because
            )
        return True


def test_a_users_own_pruner_may_give_its_reason() -> None:
    known = {"pruner": "Mine", "step": 1, "value": 0.5, "threshold": 0.7}
    trial = run(_OfOnesOwn(known), flat(0.5))
    assert trial.user_attrs["hpo_mab:pruned_because"] == known
    assert why_pruned(trial.user_attrs) == "50.00% at evaluation 1; 70.00% was needed."
    trial = run(_OfOnesOwn(None), flat(0.5))
    assert (
        why_pruned(trial.user_attrs)
        == "_OfOnesOwn stopped it at evaluation 1, where it had 50.00%."
    )


def test_a_subclass_may_have_another_rule() -> None:
    class Other(pruners.MedianPruner):
        def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
            return True

    assert "percentile" not in run(Other(), flat(0.5)).user_attrs["hpo_mab:pruned_because"]


def test_no_reason_is_computed_for_a_trial_that_continues(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr("hpo_mab.search._trial_record.store_reason", asked.append)
    run(pruners.MedianPruner(n_startup_trials=1), flat(0.5), flat(0.6))
    assert asked == []
    run(pruners.MedianPruner(n_startup_trials=1), flat(0.5), flat(0.4))
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("attrs", "sentence"),
    [
        ({"hpo_mab:reason": "a loss is nan"}, "a loss is nan."),
        ({}, "the pruner stopped it; no reason is stored."),
    ],
)
def test_a_trial_without_a_stored_rule(attrs: dict[str, Any], sentence: str) -> None:
    assert why_pruned(attrs) == sentence


def _first_trials(early: Sequence[float]) -> list[FrozenTrial]:
    """Complete trials that no pruner could stop, with these values at evaluation 1."""
    trials = [
        optuna.create_trial(
            value=0.1 * n,
            intermediate_values={1: value, 2: 0.1 * n, 3: 0.1 * n, 4: 0.1 * n},
            user_attrs={PAIRED_KEY: True, SLOT_KEY: n},
        )
        for n, value in enumerate(early)
    ]
    for number, trial in enumerate(trials):
        trial.number = number
    return trials


@pytest.mark.parametrize(
    ("pruner", "step"),
    [
        (pruners.MedianPruner(), 1),
        (pruners.PercentilePruner(25.0, n_warmup_steps=1), 1),
        (pruners.SuccessiveHalvingPruner(min_resource=1), 1),
        # It begins where trials are ranked, or in some brackets.
        (pruners.MedianPruner(n_warmup_steps=2), None),
        (pruners.SuccessiveHalvingPruner(min_resource=2), None),
        (pruners.HyperbandPruner(min_resource=1, max_resource=4), None),
        (pruners.NopPruner(), None),
        (PromotionPruner(min_resource=1, max_resource=4), None),
    ],
)
def test_a_first_rung_that_does_not_rank_trials_is_named(
    pruner: BasePruner, step: int | None
) -> None:
    unranked = _first_trials([0.5, 0.1, 0.6, 0.2, 0.7, 0.3, 0.4, 0.2, 0.6, 0.1])
    found = WeakRung.find(pruner, unranked, full=4)
    assert (None if found is None else (found.step, found.full, found.trials)) == (
        None if step is None else (step, 4, 10)
    )
    assert WeakRung.find(pruner, _first_trials([0.1 * n for n in range(10)]), full=4) is None
    assert WeakRung.find(pruner, unranked[:7], full=4) is None
    # Without different values nothing can be said.
    assert WeakRung.find(pruner, _first_trials([0.5] * 10), full=4) is None


def test_the_first_rung_of_successive_halving_may_lie_later() -> None:
    unranked = _first_trials([0.5, 0.1, 0.6, 0.2, 0.7, 0.3, 0.4, 0.2, 0.6, 0.1])
    # Trials are ranked at 2, where it begins.
    later = pruners.SuccessiveHalvingPruner(
        min_resource=1, reduction_factor=2, min_early_stopping_rate=1
    )
    assert WeakRung.find(later, unranked, full=4) is None
