from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import optuna
import pytest

from hpo_mab.data import ImageSplits
from hpo_mab.search import StudySpec, load_spec, make_spec
from hpo_mab.search._prepare import load_splits


@pytest.fixture(scope="session")
def splits() -> ImageSplits:
    return load_splits(load_spec("digits"))


@pytest.fixture(scope="session")
def tiny() -> Callable[..., StudySpec]:
    """Makes a study on digits whose trials take a tenth of a second."""

    def make(**sections: Any) -> StudySpec:
        raw: dict[str, Any] = {
            "name": "tiny",
            "budget": {"epochs": 1, "evaluations": 3, "trials": 6},
            "model": {"name": "mlp"},
            "optimizer": {"name": "sgd", "lr": {"low": 0.01, "high": 1.0, "log": True}},
            "training": {"batch_size": 64},
            "search": {"sampler": "tpe", "initial": 2, "n_startup_trials": 3},
        }
        for section, values in sections.items():
            raw[section] = (
                {**raw.get(section, {}), **values} if isinstance(values, dict) else values
            )
        return make_spec(raw)

    return make


@pytest.fixture
def ctrl_c_at(
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[int, int], contextlib.AbstractContextManager[None]]:
    """Makes a context in which Ctrl-C interrupts a trial, given by number, at a step."""
    report = optuna.trial.Trial.report

    @contextlib.contextmanager
    def at(number: int, last: int) -> Iterator[None]:
        def interrupt(trial: optuna.trial.Trial, value: float, step: int) -> None:
            if (trial.number, step) == (number, last):
                raise KeyboardInterrupt
            report(trial, value, step)

        with monkeypatch.context() as patch:
            patch.setattr(optuna.trial.Trial, "report", interrupt)
            yield

    return at
