"""Insert studies into a database directly, to measure how they are read."""

from __future__ import annotations

from typing import Any

import optuna
import sqlalchemy as sa
from optuna.distributions import FloatDistribution

from hpo_mab._attributes import EXAMPLES_KEY, PAIRED_KEY, SECONDS_KEY, SLOT_KEY
from hpo_mab.search._target import StudyTarget
from hpo_mab.storage import Storage
from hpo_mab.storage._definition import StoredDefinition
from hpo_mab.storage._tables import PARAMS, SYSTEM_ATTRIBUTES, TRIALS, USER_ATTRIBUTES, VALUES
from hpo_mab.training import Evaluation

EVALUATIONS = 8


def make_study(url: str, name: str, *, trials: int, arm: str = "mab") -> None:
    """A study without trials, as the product makes one."""
    storage = Storage(url)
    study = optuna.create_study(study_name=name, storage=storage.optuna, direction="maximize")
    StoredDefinition(
        arm=arm, seed=0, trial_examples=8000, epoch_examples=1000, spec={}, environment={}
    ).save(study)
    StudyTarget(trials=trials, total=None, epoch_examples=1000).save(study)
    storage.close()


def fill_study(url: str, arm: str, trials: int) -> None:
    """A study with a number of finished trials and their curves, named after its arm."""
    make_study(url, arm, trials=trials, arm=arm)
    storage = Storage(url)
    study = optuna.load_study(study_name=arm, storage=storage.optuna)
    lift = 0.01 if arm == "mab" else 0.0
    study.add_trials(_trial(slot, slot / trials + lift) for slot in range(min(trials, 50)))
    # Optuna takes tens of milliseconds to add a trial; the others are inserted into the tables.
    first = study.get_trials(deepcopy=False)
    if trials > len(first):
        _copy_rows(storage, first[-1]._trial_id, len(first), trials)
    ids = [trial._trial_id for trial in study.get_trials(deepcopy=False)]
    finals = {trial_id: slot / trials + lift for slot, trial_id in enumerate(ids)}
    storage.curves.extend(
        [
            (trial_id, [evaluation(index, final) for index in range(1, EVALUATIONS + 1)], False)
            for trial_id, final in finals.items()
        ]
    )
    storage.close()


def evaluation(index: int, final: float) -> Evaluation:
    """A point of a curve that rises to ``final``."""
    return Evaluation(
        index=index,
        steps=10 * index,
        examples=1000 * index,
        seconds=float(index),
        sampler_seconds=0.01 * index,
        accuracy=min(1.0, final * index / EVALUATIONS),
        loss=1.0,
        train_loss=1.0,
        learning_rate=0.1,
    )


def _copy_rows(storage: Storage, like: int, begin: int, end: int) -> None:
    """Insert trials ``begin`` to ``end`` - 1 as copies of one; each slot is the trial's number."""
    with storage.optuna.engine.begin() as connection:
        (template,) = _rows_of(connection, TRIALS, like)
        # The database gives the ids. If they were set here, PostgreSQL would give them again.
        insert = TRIALS.insert().returning(TRIALS.c.trial_id, sort_by_parameter_order=True)
        numbers = range(begin, end)
        made = connection.scalars(insert, [{**template, "number": number} for number in numbers])
        slots = dict(zip(made, numbers, strict=True))
        for table in (PARAMS, VALUES, USER_ATTRIBUTES, SYSTEM_ATTRIBUTES):
            rows = _rows_of(connection, table, like)
            copies = [{**row, "trial_id": trial_id} for trial_id in slots for row in rows]
            for copy in copies:
                if copy.get("key") == SLOT_KEY:
                    copy["value_json"] = str(slots[copy["trial_id"]])
            connection.execute(table.insert(), copies)


def _rows_of(connection: sa.Connection, table: sa.Table, trial_id: int) -> list[dict[str, Any]]:
    """A trial's rows, without their keys, which the database gives."""
    found = connection.execute(sa.select(table).where(table.c.trial_id == trial_id)).mappings()
    keys = table.primary_key.columns.keys()
    return [{name: one for name, one in row.items() if name not in keys} for row in found]


def _trial(slot: int, value: float) -> optuna.trial.FrozenTrial:
    return optuna.create_trial(
        value=value,
        params={"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4},
        distributions={
            "lr": FloatDistribution(0.01, 1.0, log=True),
            "momentum": FloatDistribution(0.5, 0.98),
            "weight_decay": FloatDistribution(1e-6, 1e-2, log=True),
        },
        user_attrs={SLOT_KEY: slot, PAIRED_KEY: slot < 10, EXAMPLES_KEY: 8000, SECONDS_KEY: 8.0},
        system_attrs={"completed_rung_0": value / 2},
    )
