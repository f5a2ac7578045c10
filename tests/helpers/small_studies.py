"""Studies on digits that are soon done, and what is the same in two runs of one."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import optuna

from hpo_mab._attributes import SAMPLER_KEY
from hpo_mab.search import StudySpec, make_spec
from hpo_mab.storage import StudyRun
from hpo_mab.storage._definition import StoredDefinition
from hpo_mab.training import Evaluation


def tiny(**sections: Any) -> StudySpec:
    """A study on digits whose trials take a tenth of a second."""
    raw: dict[str, Any] = {
        "name": "tiny",
        "budget": {"epochs": 1, "evaluations": 3, "trials": 6},
        "model": {"name": "mlp"},
        "optimizer": {"name": "sgd", "lr": {"low": 0.01, "high": 1.0, "log": True}},
        "training": {"batch_size": 64},
        "search": {"sampler": "tpe", "initial": 2, "n_startup_trials": 3},
    }
    for section, values in sections.items():
        raw[section] = {**raw.get(section, {}), **values} if isinstance(values, dict) else values
    return make_spec(raw)


def quick(**budget: Any) -> StudySpec:
    """A study on digits whose trials take a few hundredths of a second."""
    return make_spec(
        {
            "name": "tiny",
            "budget": {"steps": 12, "evaluations": 3, "trials": 10, **budget},
            "model": {"name": "mlp"},
            "optimizer": {"name": "sgd", "lr": {"low": 0.01, "high": 1.0, "log": True}},
            "training": {"batch_size": 64},
            "sampler": {"kind": "uniform"},
            "search": {"sampler": "random", "initial": 4},
        }
    )


def define(study: optuna.Study, spec: Mapping[str, Any]) -> None:
    """Store a definition with a study whose trials train 100 examples, an epoch."""
    StoredDefinition(
        arm="uniform",
        seed=0,
        trial_examples=100,
        epoch_examples=100,
        spec=spec,
        environment={},
    ).save(study)


def timeless(curve: Iterable[Evaluation]) -> list[dict[str, Any]]:
    """Records of evaluations, without the seconds."""
    points = map(dataclasses.asdict, curve)
    return [{k: v for k, v in point.items() if "seconds" not in k} for point in points]


def essence(run: StudyRun) -> list[tuple[Any, ...]]:
    """What is the same if a study is run again: parameters, results and curves without seconds."""
    return [
        (
            trial.slot,
            trial.state,
            dict(trial.params),
            trial.value,
            trial.attrs.get(SAMPLER_KEY),
            timeless(trial.curve),
        )
        for trial in run.trials
        if trial.state != "fail"
    ]
