from __future__ import annotations

import math

import numpy as np
import optuna
import pytest

from hpo_mab._errors import ArgumentError
from hpo_mab.pruners import TopKPruner

VALUES = [0.3, 0.9, math.nan, 0.7, 0.8]


def _study(direction: str, **settings: float) -> optuna.Study:
    pruner = TopKPruner(max_resource=8, **settings)
    study = optuna.create_study(direction=direction, pruner=pruner)

    def objective(trial: optuna.Trial) -> float:
        trial.suggest_float("x", 0, 1)
        value = VALUES[trial.number] if trial.number < len(VALUES) else 0.5
        for step in range(1, 9):
            trial.report(value + 0.001 * step, step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return value

    study.optimize(objective, n_trials=len(VALUES))
    for _ in range(2):
        best = pruner.next_best(study)
        assert best is not None
        study.enqueue_trial(best.params, user_attrs={"hpo_mab:promotes": best.number})
        study.optimize(objective, n_trials=1)
    return study


@pytest.mark.parametrize(("direction", "best"), [("maximize", [1, 4]), ("minimize", [0, 3])])
def test_all_are_stopped_at_the_share_and_the_best_trained_in_full(
    direction: str, best: list[int]
) -> None:
    study = _study(direction, after=0.25, k=2)
    stopped, promoted = study.trials[:5], study.trials[5:]
    assert [trial.state.name for trial in stopped] == ["PRUNED"] * 5
    assert [trial.last_step for trial in stopped] == [2] * 5
    assert [trial.state.name for trial in promoted] == ["COMPLETE"] * 2
    assert [trial.user_attrs["hpo_mab:promotes"] for trial in promoted] == best
    assert [trial.params for trial in promoted] == [study.trials[i].params for i in best]


@pytest.mark.parametrize(
    ("after", "resource", "step"), [(0.25, 8, 2), (0.3, 8, 3), (1 / 3, 9, 3), (0.01, 4, 1)]
)
def test_the_first_evaluation_at_or_after_the_share_decides(
    after: float, resource: int, step: int
) -> None:
    assert TopKPruner(max_resource=resource, after=after).stop_step == step


def test_nothing_left_is_none() -> None:
    study = optuna.create_study(pruner=TopKPruner(max_resource=2, after=0.5))
    assert study.pruner.next_best(study) is None


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"after": 0.0}, r"after must be in \(0, 1\), got 0.0"),
        ({"after": 0.9}, "after must be at most 0.875, .* got 0.9"),
        ({"k": 0}, "k must be an integer of at least 1, got 0"),
        ({"max_resource": 1}, "max_resource must be an integer of at least 2, got 1"),
    ],
)
def test_arguments_outside_their_bounds(settings: dict[str, float], words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        TopKPruner(**{"max_resource": 8, **settings})


def test_reports_may_miss_the_step_at_which_trials_are_stopped() -> None:
    pruner = TopKPruner(max_resource=np.int64(9), after=0.25, k=np.int64(2))
    study = optuna.create_study(direction="maximize", pruner=pruner)
    assert pruner.stop_step == 3
    for value in (0.3, 0.9, 0.5):
        trial = study.ask()
        for step in (2, 4):
            trial.report(value + step, step)
        assert trial.should_prune()
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    best = pruner.next_best(study)
    assert best is not None
    assert best.number == 1


def test_a_user_attribute_of_the_users_own_is_no_promotion() -> None:
    study = optuna.create_study(direction="maximize", pruner=TopKPruner(max_resource=8))
    study.enqueue_trial({}, user_attrs={"promotes": "the cause"})
    trial = study.ask()
    trial.report(0.5, 2)
    assert trial.should_prune()
