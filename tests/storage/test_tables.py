from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from optuna.trial import TrialState

from hpo_mab._errors import StorageError
from hpo_mab.storage import Storage, _tables

_FIGURES = (
    "seconds",
    "sampler_seconds",
    "accuracy",
    "loss",
    "train_loss",
    "learning_rate",
    "reward_rate",
    "concentration",
)


def _unversioned(url: str) -> list[int]:
    """A database without a version of its tables; returns its trials' ids.

    The first trial has a curve. The second has none. The third has never been run, and has the
    curve of a deleted trial of its id. A fourth curve is of no trial.
    """
    storage = Storage(url)
    study = optuna.create_study(study_name="old", storage=storage.optuna)
    for reports in ({1: 0.5, 2: 0.6}, {}, {}):
        done = TrialState.COMPLETE if reports else TrialState.WAITING
        value = 0.6 if reports else None
        study.add_trial(optuna.create_trial(state=done, value=value, intermediate_values=reports))
    ids = [trial._trial_id for trial in study.get_trials()]
    metadata = sa.MetaData()
    table = sa.Table(
        "hpo_mab_evaluations",
        metadata,
        sa.Column("trial_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("index", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("steps", sa.BigInteger, nullable=False),
        sa.Column("examples", sa.BigInteger, nullable=False),
        *(sa.Column(name, sa.Double, nullable=True) for name in _FIGURES),
    )
    locks = sa.Table("hpo_mab_locks", metadata, sa.Column("name", sa.String(32), primary_key=True))
    with storage.optuna.engine.begin() as connection:
        _tables._metadata.drop_all(connection)
        metadata.create_all(connection, tables=[table] if storage.is_sqlite else [table, locks])
        rows = [(ids[0], 1), (ids[0], 2), (ids[2], 1), (ids[2] + 50, 1)]
        connection.execute(table.insert(), [_row(*row) for row in rows])
    storage.close()
    return ids


def _row(trial_id: int, index: int) -> dict[str, Any]:
    figures = dict.fromkeys(_FIGURES, 0.25 * index) | {"concentration": None}
    key = {"trial_id": trial_id, "index": index}
    return key | {"steps": index, "examples": 10**10 * index} | figures


def _tables_of(url: str) -> dict[str, Any]:
    storage = Storage(url)
    found = sa.inspect(storage.optuna.engine)
    ours = [name for name in found.get_table_names() if name.startswith("hpo_mab")]
    tables = {
        name: [
            [(c["name"], str(c["type"]), c["nullable"]) for c in found.get_columns(name)],
            found.get_pk_constraint(name)["constrained_columns"],
        ]
        for name in ours
    }
    storage.close()
    return tables


def test_an_unversioned_database_keeps_its_curves(database_url: str) -> None:
    ids = _unversioned(database_url)
    storage = Storage(database_url)
    curves = storage.curves.load(ids)
    assert set(curves) == {ids[0]}
    assert [(e.index, e.examples, e.accuracy) for e in curves[ids[0]]] == [
        (1, 10**10, 0.25),
        (2, 2 * 10**10, 0.5),
    ]
    assert curves[ids[0]][0].concentration is None
    assert not curves[ids[0]][0].averaged
    study = optuna.load_study(study_name="old", storage=storage.optuna)
    assert storage.curves.spent(study._study_id) == (2 * 10**10, 0.5)
    with storage.optuna.engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM hpo_mab_curves")) == 2
    storage.close()


def test_an_upgraded_database_has_the_tables_of_a_new_one(database_url: str) -> None:
    new = _tables_of(database_url)
    assert set(new) == {"hpo_mab_curves", "hpo_mab_examples", "hpo_mab_schema"}
    _unversioned(database_url)
    assert _tables_of(database_url) == new


def test_a_database_of_the_second_schema_gets_the_table_of_examples(database_url: str) -> None:
    new = _tables_of(database_url)
    for there in (False, True):  # Also after an interrupted upgrade.
        storage = Storage(database_url)
        with storage.optuna.engine.begin() as connection:
            if not there:
                connection.execute(sa.text("DROP TABLE hpo_mab_examples"))
            connection.execute(sa.text("UPDATE hpo_mab_schema SET version_num = '2'"))
        storage.close()
        assert _tables_of(database_url) == new


@pytest.mark.parametrize("dropped", [False, True])
def test_an_upgrade_that_was_cut_off_is_done_again(
    database_url: str, monkeypatch: pytest.MonkeyPatch, dropped: bool
) -> None:
    from alembic.operations import Operations

    new = _tables_of(database_url)
    ids = _unversioned(database_url)
    drop = Operations.drop_table
    with monkeypatch.context() as broken:

        def die(op: Operations, name: str) -> None:
            if dropped:
                drop(op, name)
            raise KeyboardInterrupt

        broken.setattr(Operations, "drop_table", die)
        with pytest.raises(KeyboardInterrupt):
            Storage(database_url).curves  # noqa: B018
    storage = Storage(database_url)
    assert len(storage.curves.load(ids)[ids[0]]) == 2
    storage.close()
    assert _tables_of(database_url) == new


def test_processes_that_open_an_old_database_at_once_upgrade_it_once(database_url: str) -> None:
    ids = _unversioned(database_url)
    opened = [Storage(database_url) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        curves = list(pool.map(lambda storage: storage.curves.load(ids), opened))
    assert all(len(found[ids[0]]) == 2 for found in curves)
    for storage in opened:
        storage.close()


def test_a_later_schema_is_refused_in_one_line(database_url: str) -> None:
    storage = Storage(database_url)
    with storage.optuna.engine.begin() as connection:
        connection.execute(sa.text("UPDATE hpo_mab_schema SET version_num = '10'"))
    storage.close()
    with pytest.raises(StorageError, match=r"later hpo-mab \(schema 10; .* up to 3\)") as caught:
        Storage(database_url).curves  # noqa: B018
    assert "\n" not in str(caught.value)
