"""Insert studies into a database directly, to measure how they are read."""

from __future__ import annotations

import dataclasses
import secrets

import optuna
import sqlalchemy as sa
from optuna.distributions import FloatDistribution

from hpo_mab._attributes import CURVE_KEY, EXAMPLES_KEY, PAIRED_KEY, SECONDS_KEY, SLOT_KEY
from hpo_mab.search._target import Target
from hpo_mab.storage import Storage, StoredDefinition
from hpo_mab.training import Evaluation

EVALUATIONS = 8


def make_study(url: str, name: str, *, trials: int, arm: str = "mab") -> None:
    """A study without trials, as the product makes one."""
    storage = Storage(url)
    study = optuna.create_study(study_name=name, storage=storage.optuna, direction="maximize")
    StoredDefinition(
        arm=arm, seed=0, trial_examples=8000, epoch_examples=1000, spec={}, environment={}
    ).save(study)
    Target(trials=trials, total=None, epoch_examples=1000).save(study)
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
    _copy_rows(storage, first[-1]._trial_id, len(first), trials)
    ids = [trial._trial_id for trial in study.get_trials(deepcopy=False)]
    numbers = {trial_id: secrets.randbits(62) for trial_id in ids}
    rows = [
        {"curve": number, **dataclasses.asdict(evaluation(index, slot / trials + lift))}
        for slot, number in enumerate(numbers.values())
        for index in range(1, EVALUATIONS + 1)
    ]
    keys = [
        {"trial_id": trial_id, "key": CURVE_KEY, "value_json": str(number)}
        for trial_id, number in numbers.items()
    ]
    with storage.optuna.engine.begin() as connection:
        for name, listed in (("trial_system_attributes", keys), ("hpo_mab_curves", rows)):
            table = sa.Table(name, sa.MetaData(), autoload_with=connection)
            connection.execute(table.insert(), listed)
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
    """Trials ``begin`` to ``end`` of a study, as copies of one, slots counted on."""
    with storage.optuna.engine.begin() as connection:
        meta = sa.MetaData()
        meta.reflect(connection)
        trials = meta.tables["trials"]
        template = dict(
            connection.execute(sa.select(trials).where(trials.c.trial_id == like)).mappings().one()
        )
        next_id = connection.scalar(sa.select(sa.func.max(trials.c.trial_id))) + 1
        ids = list(range(next_id, next_id + end - begin))
        connection.execute(
            trials.insert(),
            [{**template, "trial_id": i, "number": begin + k} for k, i in enumerate(ids)],
        )
        parts = ("params", "values", "user_attributes", "system_attributes")
        for name in (f"trial_{part}" for part in parts):
            _copy_parts(connection, meta.tables[name], like, ids, begin)


def _copy_parts(
    connection: sa.Connection, table: sa.Table, like: int, ids: list[int], begin: int
) -> None:
    (key,) = table.primary_key.columns.keys()
    rows = connection.execute(sa.select(table).where(table.c.trial_id == like)).mappings().all()
    copies = []
    for position, trial_id in enumerate(ids):
        for row in rows:
            copy = {**row, "trial_id": trial_id}
            del copy[key]
            if copy.get("key") == SLOT_KEY:
                copy["value_json"] = str(begin + position)
            copies.append(copy)
    if copies:
        connection.execute(table.insert(), copies)


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
