from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from hpo_mab.search import StudySpec, make_spec


@pytest.fixture
def tiny() -> Callable[..., StudySpec]:
    """Makes a study on digits whose trials take a few hundredths of a second."""

    def make(**budget: Any) -> StudySpec:
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

    return make
