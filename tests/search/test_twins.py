"""Twins: the pilot of the advantage pruner, and what is in a pair."""

from __future__ import annotations

from typing import Any

import pytest
from small_studies import tiny

from hpo_mab._attributes import EVIDENCE_KEY
from hpo_mab._errors import SpecError
from hpo_mab.advantage import Evidence
from hpo_mab.search import StudyRunner
from hpo_mab.search._twins import queue_twin
from hpo_mab.storage import Storage, StudyRun, open_study

pytestmark = pytest.mark.filterwarnings("ignore:AdvantagePruner decides:hpo_mab.HpoMabWarning")

_PILOT = {"search": {"initial": 4}, "budget": {"trials": 7, "epochs": 1, "evaluations": 3}}


def _twins(run: StudyRun) -> list[Any]:
    return [trial for trial in run.trials if "hpo_mab:twin_of" in trial.attrs]


def test_the_first_configurations_are_trained_with_both_samplers(storage: Storage) -> None:
    spec = tiny(**_PILOT, pruner={"kind": "advantage"})
    run = StudyRunner(spec, storage).run(score=False).run
    twins = _twins(run)
    assert [twin.attrs["hpo_mab:twin_of"] for twin in twins] == [0, 1, 2, 3]
    assert [trial.slot for trial in run.trials] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 5, 6]
    # The same batches, weights and accuracies as in a uniform study of the seed.
    uniform = StudyRunner(
        tiny(**_PILOT, sampler={"kind": "uniform"}, pruner={"kind": "none"}), storage
    ).run(score=False)
    for twin in twins:
        original = run.trials[twin.number - 1]
        alone = uniform.run.trials[twin.slot]
        assert twin.params == original.params == alone.params
        assert [e.accuracy for e in twin.curve] == [e.accuracy for e in alone.curve]
        assert [e.train_loss for e in twin.curve] != [e.train_loss for e in original.curve]
        assert (twin.state, twin.attrs["hpo_mab:sampler"]) == ("complete", "uniform")
        assert original.attrs["hpo_mab:sampler"] == "mab"
        assert twin.paired
    stored = open_study(storage, run.name).user_attrs
    assert Evidence.from_json(stored[EVIDENCE_KEY]).pairs == 4
    assert run.examples == sum(trial.examples for trial in run.trials)


def test_a_twin_beyond_the_first_configurations_is_in_no_pair(storage: Storage) -> None:
    spec = tiny(search={"initial": 1}, pruner={"kind": "none"})
    runner = StudyRunner(spec, storage)
    study = open_study(storage, runner.run(score=False).run.name)
    for trial in study.trials[:2]:
        queue_twin(study, trial)
    twins = _twins(runner.run(score=False).run)
    assert [(twin.slot, twin.paired) for twin in twins] == [(0, True), (1, False)]


def test_twins_cost_what_the_total_budget_allows(storage: Storage) -> None:
    spec = tiny(
        budget={"trials": 50, "total": "6epochs", "epochs": 1, "evaluations": 3},
        search={"initial": 4},
        pruner={"kind": "advantage"},
    )
    run = StudyRunner(spec, storage).run(score=False).run
    assert len(run.trials) in (6, 7)
    assert len(_twins(run)) == 3


def test_an_interrupted_pilot_resumes_to_the_same(resumes: Any) -> None:
    resumes(tiny(**_PILOT, pruner={"kind": "advantage"}), (3, 1), (4, 2), (9, 1))


def test_uniform_studies_have_no_pilot(storage: Storage) -> None:
    spec = tiny(**_PILOT, sampler={"kind": "uniform"}, pruner={"kind": "advantage"})
    runner = StudyRunner(spec, storage)
    run = runner.run(score=False).run
    assert len(run.trials) == 7
    assert _twins(run) == []


def test_saved_evidence_needs_no_pilot() -> None:
    spec = tiny(**_PILOT, pruner={"kind": "advantage", "reference": "tiny-uniform-seed0"})
    assert not spec.has_pilot
    assert tiny(**_PILOT, pruner={"kind": "advantage"}).has_pilot


def test_a_pilot_of_too_few_is_refused() -> None:
    with pytest.raises(SpecError, match=r"search.initial must be at least 4 .* got 2"):
        tiny(search={"initial": 2}, pruner={"kind": "advantage"})
