"""Pruners by name, and where their rungs lie by default."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.pruners import SuccessiveHalvingPruner
from optuna.trial import TrialState
from small_studies import tiny

from hpo_mab._attributes import EVIDENCE_KEY, WORKER_KEY
from hpo_mab._errors import ArgumentError, SpecError
from hpo_mab.advantage import Evidence
from hpo_mab.pruners import AdvantagePruner, PromotionPruner
from hpo_mab.search import make_spec
from hpo_mab.search._pruners import study_pruner
from hpo_mab.search._retries import close_lost
from hpo_mab.search._target import StudyTarget
from hpo_mab.storage import Storage, open_study
from hpo_mab.storage._process import this_process


def first_rung(definition: dict[str, Any]) -> int | None:
    """Evaluation of the first rung that a definition's pruner has."""
    pruner = study_pruner(make_spec(definition), {})
    if isinstance(pruner, AdvantagePruner):
        return pruner.uniform_step(0)
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


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pruner": {"kind": "hyperband", "min_resource": 0}}, "pruner.min_resource .* 1, got 0"),
        ({"pruner": {"kind": "hyperband", "max_resource": 0}}, "pruner.max_resource .* 1, got 0"),
        ({"pruner": {"kind": "successive_halving", "min_resource": 9}}, "min_resource .* got 9"),
        ({"pruner": {"kind": "advantage", "min_resource": 4}}, "min_resource .* got 4"),
        ({"pruner": {"kind": "top_k"}, "budget": {"evaluations": 1}}, "budget.evaluations .* 2"),
        ({"pruner": {"kind": "hyperband", "reduction_factor": 1}}, "reduction_factor .* 2, got 1"),
        ({"search": {"n_ei_candidates": 0}}, "search.n_ei_candidates .* 1, got 0"),
        ({"search": {"n_startup_trials": -5}}, "search.n_startup_trials .* 0, got -5"),
        ({"search": {"prior_weight": -1.0}}, r"search.prior_weight .* 0, got -1\.0"),
    ],
)
def test_options_with_which_no_trial_would_be_stopped_or_begin_are_refused(
    change: dict[str, Any], words: str
) -> None:
    with pytest.raises((ArgumentError, SpecError), match=words):
        tiny(**change)


@pytest.mark.parametrize(
    ("change", "unlimited"),
    [
        ({}, True),
        ({"pruner": {"kind": "promotion", "max_resource": 3}}, True),
        ({"pruner": {"kind": "promotion", "max_resource": 2}}, False),
        ({"pruner": {"kind": "promotion", "unlimited": False}}, False),
        ({"training": {"schedule": "linear"}}, False),
        ({"sampler": {"kind": "auto"}}, False),
    ],
)
def test_which_complete_trials_continue_beyond_their_budget(
    change: dict[str, Any], unlimited: bool
) -> None:
    constant = {"training": {"schedule": "constant"}, "pruner": {"kind": "promotion"}}
    pruner = study_pruner(tiny(**{**constant, **change}), {})
    assert isinstance(pruner, PromotionPruner)
    assert pruner.unlimited is unlimited


def test_only_trials_that_can_continue_may_be_unlimited() -> None:
    with pytest.raises(SpecError, match=r"pruner.unlimited needs .* got 'linear'"):
        tiny(pruner={"kind": "promotion", "unlimited": True})


@pytest.mark.filterwarnings("ignore:AdvantagePruner decides:hpo_mab.HpoMabWarning")
def test_without_given_evidence_the_pruner_measures_its_own() -> None:
    spec = tiny(
        pruner={"kind": "advantage", "evidence": "none", "reference": "none"},
        search={"initial": 4, "n_startup_trials": 4},
    )
    assert spec.has_pilot
    path = Path(__file__).parents[2] / "studies/fashion_mnist/evidence.json"
    stored = Evidence.load(path).to_json()
    pruner = study_pruner(spec, {EVIDENCE_KEY: stored})
    assert isinstance(pruner, AdvantagePruner)
    # What an earlier process has measured is measured again when trials are added.
    assert pruner.keeper(optuna.create_study(direction="maximize")).evidence is None


@pytest.mark.parametrize(("schedule", "spends_all"), [("constant", True), ("linear", False)])
def test_only_complete_trials_that_continue_spend_all_of_a_total_budget(
    schedule: str, spends_all: bool
) -> None:
    spec = tiny(pruner={"kind": "promotion"}, training={"schedule": schedule})
    study = optuna.create_study(direction="maximize", pruner=study_pruner(spec, {}))
    target = StudyTarget(trials=6, total="1h", epoch_examples=100)
    assert target.continues(study)
    assert target.spends_all(study) == spends_all
    assert not StudyTarget(trials=6, total=None, epoch_examples=100).continues(study)


def test_an_interrupted_attempt_is_no_competitor_of_its_retry(
    storage: Storage, resumes: Any
) -> None:
    spec = tiny(
        pruner={"kind": "successive_halving", "min_resource": 1},
        search={"initial": 0},
        budget={"trials": 8},
    )
    resumes(spec, (0, 2))
    trials = open_study(storage, "parts0").trials
    assert trials[0].state == TrialState.FAIL
    assert "completed_rung_0" not in trials[0].system_attrs
    assert any("completed_rung_0" in trial.system_attrs for trial in trials)


@pytest.mark.filterwarnings("ignore:Heartbeat")
def test_a_lost_attempt_is_no_competitor_of_its_retry(storage: Storage) -> None:
    study = optuna.create_study(study_name="lost", storage=storage.optuna)
    StudyTarget(trials=1, total=None, epoch_examples=100).save(study)
    trial = study.ask()
    held = {"completed_rung_0": 0.5, WORKER_KEY: this_process(), "other": 1}
    for key, value in held.items():
        storage.optuna.set_trial_system_attr(trial._trial_id, key, value)
    with storage.lock(study.study_name):
        close_lost(study, storage)
    (lost,) = study.trials
    assert lost.state == TrialState.FAIL
    assert "completed_rung_0" not in lost.system_attrs
    assert lost.system_attrs["other"] == 1
