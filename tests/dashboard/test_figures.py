from __future__ import annotations

import dataclasses
from typing import Any

import optuna
import pytest

from hpo_mab.compare.figures import colours
from hpo_mab.dashboard import _figures
from hpo_mab.dashboard._figures import importances
from hpo_mab.storage import Storage, StudyRun, read_run


def _first(large: Storage) -> StudyRun:
    """A study's first trials; importances of all of them take long."""
    run = read_run(large, "large-mab-seed0")
    return dataclasses.replace(run, trials=run.trials[:60])


def test_names_and_files_of_a_definition_need_not_exist(large: Storage) -> None:
    run = _first(large)
    spec = {
        **run.spec,
        "model": {"name": "somebodys_own"},
        "pruner": {"kind": "advantage", "evidence": "gone.json"},
    }
    assert importances(dataclasses.replace(run, spec=spec)) == importances(run) != {}


def test_values_beyond_one_budget_have_no_part_in_importances(large: Storage) -> None:
    run = _first(large)
    longer = [
        dataclasses.replace(trial, value=0.0, attrs={**trial.attrs, "hpo_mab:length": 2})
        for trial in run.trials[:20]
    ]
    more = dataclasses.replace(run, trials=(*run.trials, *longer))
    assert importances(more) == importances(run)


def test_values_outside_their_range_have_no_part_in_importances(large: Storage) -> None:
    run = _first(large)
    before = importances(run)
    name = next(iter(before))
    outside = dataclasses.replace(run.trials[0], params={**run.trials[0].params, name: 1e9})
    assert importances(dataclasses.replace(run, trials=(*run.trials, outside))) == before


def test_the_choice_of_none_has_its_part_in_importances(
    large: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _first(large)
    spec = {**run.spec, "sampler": {"kind": "mab", "memory": {"choices": ["none", 50, 100]}}}
    trials = tuple(
        dataclasses.replace(trial, params={"sampler.memory": (None, 50, 100)[trial.number % 3]})
        for trial in run.trials
    )
    seen: list[int] = []

    def watch(study: optuna.Study, **_: Any) -> dict[str, float]:
        seen.append(len(study.trials))
        return {}

    monkeypatch.setattr(_figures, "get_param_importances", watch)
    importances(dataclasses.replace(run, spec=spec, trials=trials))
    assert seen == [sum(trial.is_comparable for trial in run.trials)]


def test_importances_are_means_over_the_studies_of_an_arm(
    large: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = read_run(large, "large-mab-seed0")
    shares = [{"lr": 0.2, "x": 0.8}, {"lr": 0.6, "x": 0.4}, {}]
    monkeypatch.setattr(_figures, "importances", lambda run: shares[run.seed])
    runs = [dataclasses.replace(run, seed=seed) for seed in range(3)]
    (figure,) = [f for name, f in _figures.study_figures(runs).items() if "importance" in name]
    assert dict(zip(figure.data[0].y, figure.data[0].x, strict=True)) == pytest.approx(
        {"lr": 40.0, "x": 60.0}
    )


def test_an_arm_has_its_colour_next_to_arms_without_importances(
    large: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = dataclasses.replace(read_run(large, "large-mab-seed0"), trials=())
    runs = [dataclasses.replace(run, arm=f"arm{number}") for number in range(6)]
    chosen = colours(run.arm for run in runs)
    # Of six unknown names, one at least has another colour alone.
    arm = next(name for name in chosen if colours([name])[name] != chosen[name])
    monkeypatch.setattr(_figures, "importances", lambda run: {"lr": 1.0} if run.arm == arm else {})
    (bar,) = _figures.study_figures(runs)["08-importance"].data
    assert bar.marker.color == chosen[arm]
