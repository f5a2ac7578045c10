"""Stored definitions as typed settings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import hpo_mab
from hpo_mab._attributes import DEFINITION_KEY
from hpo_mab._stored_settings import StudySettings
from hpo_mab.search import make_spec

_FULL = {
    "name": "all",
    "budget": {"epochs": 2, "evaluations": 4, "trials": 5, "total": "30m"},
    "model": {"name": "mlp", "width": {"low": 16, "high": 64}},
    "optimizer": {"name": "sgd", "lr": {"low": 0.01, "high": 1.0, "log": True}},
    "sampler": {"kind": "mab", "prior": [{"low": 0.5, "high": 5.0}, 1.0]},
    "pruner": {"kind": "advantage", "fidelity": False},
    "search": {"sampler": "random", "initial": 4},
}


def test_a_definition_is_read_whole() -> None:
    settings = StudySettings.of(make_spec(_FULL).model_dump(mode="json"))
    assert settings.name == "all"
    kinds = [
        section.kind
        for section in (settings.data, settings.model, settings.optimizer, settings.sampler)
    ]
    assert kinds == ["digits", "mlp", "sgd", "mab"]
    assert (settings.pruner.kind, settings.pruner.options) == ("advantage", {"fidelity": False})
    assert (settings.search.kind, settings.initial) == ("random", 4)
    assert (settings.epochs, settings.evaluations, settings.trials) == (2, 4, 5)
    assert (settings.total, settings.early_validation) == ("30m", "auto")
    assert (settings.average, settings.schedule) == (0.2, "linear")
    assert settings.reference == "uniform"
    assert settings.ranges.keys() == {"model.width", "lr", "sampler.prior_alpha"}


def test_a_trial_of_few_steps_has_an_evaluation_after_each() -> None:
    few = {**_FULL, "budget": {"steps": 4, "evaluations": 8, "trials": 5}}
    assert StudySettings.of(make_spec(few).model_dump(mode="json")).evaluations_of(800) == 4


#: What the first records hold: no average, no early validation.
_FIRST: dict[str, Any] = {
    "name": "old",
    "data": {"name": "digits"},
    "model": {"name": "mlp"},
    "training": {"batch_size": 64},
    "budget": {"epochs": 1.0, "evaluations": 8, "trials": 3},
}


def test_keys_that_a_record_lacks_have_the_values_they_stood_for() -> None:
    settings = StudySettings.of(_FIRST)
    assert (settings.average, settings.early_validation) == (0.0, "all")
    assert settings.schedule == "linear"
    assert (settings.data.kind, settings.data.options) == ("digits", {})
    assert (settings.pruner.kind, settings.total, settings.initial) == ("", None, 0)
    assert settings.reference == ""


@pytest.mark.parametrize("attrs", [{}, {"other": 1}, {DEFINITION_KEY: {"version": 1, "spec": {}}}])
def test_a_study_without_a_definition_has_empty_settings(attrs: dict[str, Any]) -> None:
    settings = StudySettings.stored_in(attrs)
    assert (settings.name, settings.pruner.kind, settings.evaluations) == ("", "", None)
    assert settings.ranges == {}


def test_nothing_else_reads_keys_of_a_stored_definition() -> None:
    package = Path(hpo_mab.__file__).parent
    reads = re.compile(r"""\bspec(\.get\(|\[)["']""")
    found = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if reads.search(path.read_text(encoding="utf-8"))
    }
    assert found == {"_stored_settings.py"}
