from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from hpo_mab._errors import StorageError
from hpo_mab.storage import Storage, _lock


@pytest.fixture
def pair(database_url: str) -> Iterator[tuple[Storage, Storage]]:
    """A database opened twice, as two processes do."""
    opened = Storage(database_url), Storage(database_url)
    yield opened
    for storage in opened:
        storage.close()


def test_one_holds_a_lock_and_the_other_waits(pair: tuple[Storage, Storage]) -> None:
    one, other = pair
    other.curves  # noqa: B018 - opened before the lock is held
    entered, events = threading.Event(), []

    def wait() -> None:
        with other.lock("study"):
            events.append("second")
            entered.set()

    with one.lock("study"):
        waiting = threading.Thread(target=wait)
        waiting.start()
        assert not entered.wait(0.3)
        events.append("first")
    assert entered.wait(30)
    waiting.join()
    assert events == ["first", "second"]


def test_too_long_a_wait_is_an_error(
    pair: tuple[Storage, Storage], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = pair
    monkeypatch.setattr(_lock, "_WAIT_SECONDS", 1)
    other.curves  # noqa: B018
    with (
        one.lock("study"),
        pytest.raises(StorageError, match="locked for 1 s"),
        other.lock("study"),
    ):
        pass
    with other.lock("study"):
        pass


def test_databases_of_one_server_have_their_own_locks(mariadb_url: str) -> None:
    one = Storage(mariadb_url)
    with one.optuna.engine.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {one.url.database}_too"))
    other = Storage(
        one.url.set(database=f"{one.url.database}_too").render_as_string(hide_password=False)
    )
    with one.lock("study"), other.lock("study"):
        pass
    one.close()
    other.close()
