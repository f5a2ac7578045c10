"""The record of a comparison: JSON without paths, from which its statistics follow."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from hpo_mab._machine import environment
from hpo_mab.compare import ComparisonRuns, comparison_record, read_record, summarise


def _comparison(runs):
    return ComparisonRuns(reference="uniform", runs=tuple(runs))


def test_environment_is_json_without_names_or_paths(monkeypatch):
    monkeypatch.setattr("platform.node", lambda: "secret-host")
    found = environment()
    text = json.dumps(found)
    assert found["packages"]["numpy"]
    assert found["cpu_cores"] >= 1
    assert "secret-host" not in text
    assert "/" not in "".join(str(v) for k, v in found.items() if k != "gpus" and k != "cpu")


def test_a_record_has_no_paths_of_the_machine(runs):
    spec = {
        "data": {"name": "digits", "root": "/home/me/data", "exclude": "/home/me/exclude.json"},
        "sampler": {"kind": "auto", "evidence": "/home/me/choice.json"},
        "pruner": {"kind": "advantage", "evidence": r"C:\home\me\pairs.json"},
        "compare": {"arms": {"a": {"sampler": None, "pruner": {"evidence": "/home/me/arm.json"}}}},
    }
    changed = (dataclasses.replace(runs[0], spec=spec), *runs[1:])
    comparison = _comparison(changed)
    text = comparison_record(comparison, summarise(changed))
    assert "home" not in text
    assert all(name in text for name in ("exclude.json", "choice.json", "pairs.json", "arm.json"))


def test_a_record_with_unknown_losses_is_json_and_is_read_again(tmp_path, runs):
    curve = tuple(dataclasses.replace(one, loss=math.nan) for one in runs[0].trials[0].curve)
    trials = (dataclasses.replace(runs[0].trials[0], curve=curve), *runs[0].trials[1:])
    changed = (dataclasses.replace(runs[0], trials=trials), *runs[1:])
    comparison = _comparison(changed)
    text = comparison_record(comparison, summarise(changed))
    json.loads(text, parse_constant=pytest.fail)
    path = tmp_path / "record.json"
    path.write_text(text)
    (first, *_), (same, *_) = read_record(path).runs[0].trials[0].curve, curve
    assert math.isnan(first.loss)
    assert first.reward_rate is same.reward_rate


def test_the_statistics_of_a_record_are_those_of_its_studies(tmp_path, runs):
    known = {"cpu": "a", "gpus": []}
    runs = tuple(
        dataclasses.replace(run, retrained=(0.9, 0.8 + run.seed / 100), environment=known)
        for run in runs
    )
    comparison = _comparison(runs)
    path = tmp_path / "record.json"
    path.write_text(comparison_record(comparison, comparison.summarise()))
    for one, other in zip(read_record(path).runs, runs, strict=True):
        assert (one.retrained, one.environment) == (other.retrained, other.environment)
    # As texts: NaN is not equal to itself.
    assert repr(read_record(str(path)).summarise()) == repr(comparison.summarise())
