"""Pruners that definitions name."""

from __future__ import annotations

from typing import Any

import optuna
import pytest
from optuna.pruners import SuccessiveHalvingPruner

from hpo_mab._attributes import completed_spec
from hpo_mab.pruners import AdvantagePruner
from hpo_mab.search import make_spec
from hpo_mab.search._components import study_pruner


def first_rung(definition: dict[str, Any]) -> int | None:
    """Evaluation of the first rung that a definition's pruner has."""
    pruner = study_pruner(make_spec(definition), {})
    if isinstance(pruner, AdvantagePruner):
        return pruner.uniform_step(0, full=None)
    assert isinstance(pruner, SuccessiveHalvingPruner)
    return pruner._min_resource


@pytest.mark.parametrize(
    ("sampler", "kind"),
    [("mab", "advantage"), ("uniform", "advantage"), ("mab", "successive_halving")],
)
@pytest.mark.parametrize(
    ("training", "evaluation"),
    [
        ({}, 2),
        ({"average": 0.05}, 2),
        ({"average": {"low": 0.05, "high": 0.4}}, 2),
        ({"average": 0}, 3),
        # Some trials would be judged by their trained weights.
        ({"average": {"low": 0.0, "high": 0.4}}, 3),
        ({"average": {"choices": [0.2, 0.0]}}, 3),
    ],
)
def test_the_first_rung_is_earlier_where_all_trials_report_averaged_weights(
    sampler: str, kind: str, training: dict[str, Any], evaluation: int
) -> None:
    definition = {
        "name": "rungs",
        "budget": {"epochs": 1, "evaluations": 8},
        "sampler": {"kind": sampler},
        "training": training,
    }
    assert first_rung({**definition, "pruner": {"kind": kind}}) == evaluation
    assert first_rung({**definition, "pruner": {"kind": kind, "min_resource": 5}}) == 5


@pytest.mark.parametrize("kind", ["median", "percentile"])
@pytest.mark.parametrize(("average", "evaluation"), [(0.2, 1), (0, 2)])
def test_the_median_decides_at_once_where_all_trials_report_averaged_weights(
    kind: str, average: float, evaluation: int
) -> None:
    definition = {
        "name": "median",
        "budget": {"epochs": 1, "evaluations": 8},
        "training": {"average": average},
        "pruner": {"kind": kind},
    }
    pruner = study_pruner(make_spec(definition), {})
    study = optuna.create_study(direction="maximize", pruner=pruner)
    for _ in range(5):
        trial = study.ask()
        for step in range(1, 9):
            trial.report(0.9, step)
        study.tell(trial, 0.9)
    worse = study.ask()
    pruned = []
    for step in range(1, 9):
        worse.report(0.1, step)
        pruned.append(worse.should_prune())
    assert pruned.index(True) + 1 == evaluation


def test_a_study_from_before_averaged_weights_keeps_its_first_rung() -> None:
    definition = {
        "name": "rungs",
        "budget": {"epochs": 1, "evaluations": 8},
        "pruner": {"kind": "advantage"},
    }
    stored = make_spec(definition).model_dump(mode="json")
    del stored["training"]["average"]
    assert first_rung(completed_spec(stored)) == 3
