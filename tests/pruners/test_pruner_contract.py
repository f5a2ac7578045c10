"""Optuna's tests of successive halving, run on both pruners."""

from __future__ import annotations

import math
from typing import Any

import optuna
import pytest
from optuna.pruners import BasePruner, SuccessiveHalvingPruner

from hpo_mab.pruners import AdvantagePruner

pytestmark = [
    pytest.mark.filterwarnings("ignore::hpo_mab.pruners.AdvantageWarning"),
    pytest.mark.parametrize(
        ("kind", "key"),
        [(AdvantagePruner, "hpo_mab:rung_"), (SuccessiveHalvingPruner, "completed_rung_")],
    ),
]


def _study(kind: type[BasePruner], direction: str = "minimize", **settings: Any) -> optuna.Study:
    settings = {"min_resource": 1, "reduction_factor": 2, **settings}
    return optuna.create_study(direction=direction, pruner=kind(**settings))


def _rungs(trial: optuna.trial.Trial, key: str) -> int:
    """Rungs that a trial has reached: 0 to n - 1, none left out."""
    attrs = trial.storage.get_trial_system_attrs(trial._trial_id)
    rungs = sorted(int(name.removeprefix(key)) for name in attrs if name.startswith(key))
    assert rungs == list(range(len(rungs)))
    return len(rungs)


def _report(study: optuna.Study, *points: tuple[float, int]) -> tuple[optuna.trial.Trial, bool]:
    trial = study.ask()
    pruned = False
    for value, step in points:
        trial.report(value, step)
        pruned = trial.should_prune()
    return trial, pruned


@pytest.mark.parametrize(("direction", "worse"), [("minimize", 2.0), ("maximize", 0.5)])
def test_the_first_continues_and_a_worse_one_does_not(
    kind: type[BasePruner], key: str, direction: str, worse: float
) -> None:
    study = _study(kind, direction)
    assert not _report(study, (1.0, 1))[1]
    assert not study.ask().should_prune()
    assert _report(study, (worse, 1))[1]


def test_one_report_may_pass_several_rungs(kind: type[BasePruner], key: str) -> None:
    study = _study(kind)
    for value in range(1, 8):
        _report(study, (0.1 * value, 7))
    assert _rungs(_report(study, (0.75, 7))[0], key) == 1
    assert _rungs(_report(study, (0.25, 7))[0], key) == 2
    assert _rungs(_report(study, (0.05, 7))[0], key) == 3


def test_a_trial_alone_is_never_pruned(kind: type[BasePruner], key: str) -> None:
    trial, pruned = _report(_study(kind), *((1.0, step) for step in range(10)))
    assert not pruned
    assert _rungs(trial, key) == 4


def test_nan_prunes_at_a_rung_and_only_there(kind: type[BasePruner], key: str) -> None:
    study = _study(kind, min_resource=2)
    assert not _report(study, (math.nan, 1))[1]
    trial, pruned = _report(study, (math.nan, 2))
    assert pruned
    assert _rungs(trial, key) == 0


@pytest.mark.parametrize(
    ("settings", "rungs"),
    [
        ({}, [1, 2, 2, 3, 3]),
        ({"min_resource": 2}, [0, 1, 1, 2, 2]),
        ({"reduction_factor": 3}, [1, 1, 2, 2, 2]),
        ({"min_early_stopping_rate": 1}, [0, 1, 1, 2, 2]),
        ({"min_resource": 5}, [0, 0, 0, 0, 1]),
    ],
)
def test_settings_place_the_rungs(
    kind: type[BasePruner], key: str, settings: dict[str, int], rungs: list[int]
) -> None:
    study = _study(kind, **settings)
    trial = study.ask()
    found = []
    for step in range(1, 6):
        trial.report(1.0, step)
        assert not trial.should_prune()
        found.append(_rungs(trial, key))
    assert found == rungs


def test_bootstrap_needs_other_trials_first(kind: type[BasePruner], key: str) -> None:
    study = _study(kind, bootstrap_count=1)
    assert _report(study, (1.0, 1))[1]
    assert not _report(study, (1.0, 1))[1]


def test_it_works_from_a_database_and_across_processes(
    kind: type[BasePruner], key: str, tmp_path: Any
) -> None:
    import pickle

    url = f"sqlite:///{tmp_path / 'pruned.db'}"
    pruner = pickle.loads(pickle.dumps(kind(min_resource=1, reduction_factor=2)))
    first = optuna.create_study(study_name="s", storage=url, pruner=pruner)
    assert not _report(first, (1.0, 1))[1]
    second = optuna.load_study(
        study_name="s", storage=url, pruner=pickle.loads(pickle.dumps(pruner))
    )
    assert _report(second, (2.0, 1))[1]
    assert not _report(second, (0.5, 1))[1]
