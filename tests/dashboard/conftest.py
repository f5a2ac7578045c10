"""One small comparison that was run, and one large, made-up study."""

from __future__ import annotations

import collections
import dataclasses
import datetime
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import optuna
import pytest
import sqlalchemy as sa
from made_up import point
from optuna.distributions import FloatDistribution, distribution_to_json

from hpo_mab._attributes import CURVE_KEY
from hpo_mab.compare import ComparisonSummary, run_comparison
from hpo_mab.search import make_spec
from hpo_mab.storage import Storage, StudyRun
from hpo_mab.storage._definition import StoredDefinition

SPEC = {
    "name": "tiny",
    "budget": {"epochs": 1, "evaluations": 3, "trials": 12},
    "model": {"name": "mlp"},
    "optimizer": {"name": "sgd", "lr": {"low": 0.001, "high": 1.0, "log": True}},
    "training": {"batch_size": 64},
    "sampler": {"kind": "mab", "loss_decay": {"low": 0.9, "high": 0.999}},
    "search": {"initial": 5},
    "compare": {"retrain": 1},
}


class Compared(NamedTuple):
    storage: Storage
    runs: tuple[StudyRun, ...]
    summary: ComparisonSummary


@pytest.fixture(name="compared", scope="session")
def _compared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compared]:
    storage = Storage(f"sqlite:///{tmp_path_factory.mktemp('compared') / 'studies.db'}")
    found = run_comparison(make_spec(SPEC), storage)
    summary = found.summarise()
    yield Compared(storage, found.runs, summary)
    storage.close()


RANGES = {
    "lr": FloatDistribution(0.001, 1.0, log=True),
    "sampler.loss_decay": FloatDistribution(0.9, 0.999),
}
LARGE_TRIALS = 1_000
EVALUATIONS = 8


@pytest.fixture(name="large", scope="session")
def _large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Storage]:
    """A database with one study of 1,000 trials, half of them pruned."""
    storage = Storage(f"sqlite:///{tmp_path_factory.mktemp('large') / 'large.db'}")
    study = optuna.create_study(
        study_name="large-mab-seed0", storage=storage.optuna, direction="maximize"
    )
    StoredDefinition(
        arm="mab",
        seed=0,
        trial_examples=8_000,
        epoch_examples=1_000,
        spec={**make_spec(SPEC).model_dump(mode="json"), "name": "large"},
        environment={},
    ).save(study)
    assert storage.curves is not None  # Makes its table.
    _fill(storage.optuna.engine, study._study_id)
    yield storage
    storage.close()


def _fill(engine: sa.Engine, study_id: int) -> None:
    """Write the trials as Optuna does, but all at once: one by one they take minutes."""
    rng = np.random.default_rng(0)
    rows: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
    for number in range(LARGE_TRIALS):
        for table, row in _trial_rows(number, study_id, rng):
            rows[table].append(row)
    metadata = sa.MetaData()
    with engine.begin() as connection:
        for name, listed in rows.items():
            table = sa.Table(name, metadata, autoload_with=connection)
            connection.execute(table.insert(), listed)


def _trial_rows(
    number: int, study_id: int, rng: np.random.Generator
) -> Iterator[tuple[str, dict[str, Any]]]:
    now = datetime.datetime(2026, 1, 1)
    key = {"trial_id": number + 1}
    pruned = number >= 10 and number % 2 == 0
    accuracies = np.sort(rng.uniform(0.1, 0.99, EVALUATIONS))[: 3 if pruned else EVALUATIONS]
    yield (
        "trials",
        {
            **key,
            "number": number,
            "study_id": study_id,
            "state": "PRUNED" if pruned else "COMPLETE",
            "datetime_start": now,
            "datetime_complete": now + datetime.timedelta(seconds=9),
        },
    )
    if not pruned:
        value = float(accuracies[-1])
        yield "trial_values", {**key, "objective": 0, "value": value, "value_type": "FINITE"}
    for name, space in RANGES.items():
        distribution = distribution_to_json(space)
        row = {"param_name": name, "param_value": float(rng.uniform(space.low, space.high))}
        yield "trial_params", {**key, **row, "distribution_json": distribution}
    for name, attr in (("hpo_mab:slot", number), ("hpo_mab:examples", 1_000 * len(accuracies))):
        yield "trial_user_attributes", {**key, "key": name, "value_json": str(attr)}
    yield "trial_system_attributes", {**key, "key": CURVE_KEY, "value_json": str(number)}
    for index, accuracy in enumerate(accuracies, start=1):
        report = {"step": index, "intermediate_value": float(accuracy)}
        kind = {"intermediate_value_type": "FINITE"}
        yield "trial_intermediate_values", {**key, **report, **kind}
        figures = {"examples": 1_000 * index, "seconds": float(index), "concentration": 0.12}
        evaluation = point(index, accuracy=float(accuracy), **figures)
        yield "hpo_mab_curves", {"curve": number, **dataclasses.asdict(evaluation)}
