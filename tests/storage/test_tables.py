from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa

from hpo_mab._errors import StorageError
from hpo_mab.storage import Storage, _tables


def _second(url: str) -> dict[str, Any]:
    """A database without the table of examples and a column of curves; returns a new one's."""
    new = _tables_of(url)
    storage = Storage(url)
    with storage.optuna.engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE hpo_mab_examples"))
        connection.execute(sa.text("ALTER TABLE hpo_mab_curves DROP COLUMN averaged"))
        connection.execute(sa.text("UPDATE hpo_mab_schema SET version_num = '2'"))
    storage.close()
    return new


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


def test_a_database_of_the_second_schema_gets_the_table_and_the_column(database_url: str) -> None:
    new = _second(database_url)
    assert set(new) == {"hpo_mab_curves", "hpo_mab_examples", "hpo_mab_schema"}
    assert _tables_of(database_url) == new


def test_an_upgrade_that_was_cut_off_is_done_again(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = _second(database_url)
    with monkeypatch.context() as broken:

        def die(connection: sa.Connection, version: int) -> None:
            connection.commit()
            raise KeyboardInterrupt

        broken.setattr(_tables, "_set_version", die)
        with pytest.raises(KeyboardInterrupt):
            Storage(database_url).curves  # noqa: B018
    assert _tables_of(database_url) == new


def test_processes_that_open_an_old_database_at_once_upgrade_it_once(database_url: str) -> None:
    new = _second(database_url)
    opened = [Storage(database_url) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda storage: storage.curves.load([]), opened)) == [{}] * 4
    for storage in opened:
        storage.close()
    assert _tables_of(database_url) == new


def test_a_later_schema_is_refused_in_one_line(storage: Storage) -> None:
    with storage.optuna.engine.begin() as connection:
        connection.execute(sa.text("UPDATE hpo_mab_schema SET version_num = '10'"))
    storage.close()
    with pytest.raises(StorageError, match=r"later hpo-mab \(schema 10; .* up to 3\)") as caught:
        Storage(storage.url.render_as_string()).curves  # noqa: B018
    assert "\n" not in str(caught.value)
