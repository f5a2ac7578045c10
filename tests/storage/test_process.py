"""Names of processes, heartbeats, and locks on every database."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import sqlalchemy as sa

from hpo_mab._errors import StorageError
from hpo_mab.storage import Storage, _open, _process
from hpo_mab.storage._open import files_folder
from hpo_mab.storage._process import (
    hold,
    is_gone,
    is_held,
    is_here,
    locker,
    release,
    this_process,
)

_HOLD = """
import sys, time
import sqlalchemy as sa
from hpo_mab.storage._process import locker
with locker(sa.create_engine(sys.argv[1]))("study"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_process_finds_itself_and_others_that_ended() -> None:
    assert is_here(this_process())
    assert not is_gone(this_process())
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        machine, _, started = this_process().split(":")
        # Another process with a number of ours, or ours with another start, is another process.
        assert is_gone(f"{machine}:{child.pid}:{started}")
        assert is_gone(f"{machine}:{os.getpid()}:0")
        child.communicate()
    assert not is_here(f"another:{child.pid}:0")


def test_a_process_that_proc_hides_may_run(monkeypatch: pytest.MonkeyPatch) -> None:
    machine, _, started = this_process().split(":")
    hidden = f"{machine}:{2**30}:{started}"
    assert is_here(hidden)
    # With hidepid /proc has no processes of other users.
    monkeypatch.setattr("os.kill", mock.Mock(side_effect=PermissionError))
    assert not is_here(hidden)
    assert is_here(this_process())


@pytest.mark.parametrize(("mode", "expected"), [(0o664, 0o664), (0o444, 0o644), (0o2660, 0o660)])
def test_the_lock_file_has_the_rights_of_its_database(
    tmp_path: Path, mode: int, expected: int
) -> None:
    storage = Storage(str(tmp_path / "studies.db"))
    storage.curves  # noqa: B018 - makes the file
    (tmp_path / "studies.db").chmod(mode)
    with storage.lock("study"):
        assert (tmp_path / "studies.db.lock").stat().st_mode & 0o777 == expected
    storage.close()


def test_the_lock_file_is_made_with_the_rights_of_its_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(str(tmp_path / "studies.db"))
    storage.curves  # noqa: B018 - makes the file
    (tmp_path / "studies.db").chmod(0o664)
    (tmp_path / "studies.db.lock").unlink()
    # A member of the group may open it before its owner could change it.
    monkeypatch.setattr(Path, "chmod", mock.Mock(side_effect=PermissionError))
    with storage.lock("study"):
        assert (tmp_path / "studies.db.lock").stat().st_mode & 0o777 == 0o664
    storage.close()


def test_a_lock_is_given_back_by_a_process_that_is_killed(database_url: str) -> None:
    url = Storage(database_url).secret_url
    engine = sa.create_engine(url)
    got = threading.Event()

    def wait() -> None:
        with locker(engine)("study"):
            got.set()

    with subprocess.Popen(
        [sys.executable, "-c", _HOLD, url], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        waiting = threading.Thread(target=wait)
        waiting.start()
        assert not got.wait(0.5)
        holder.kill()
        assert got.wait(120)
        waiting.join()
    engine.dispose()


def test_held_trials_have_heartbeats_of_one_thread_until_they_are_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_open, "_HEARTBEAT", 1)
    storage = Storage(str(tmp_path / "x.db")).optuna
    beats: list[int] = []
    failed: list[int] = []
    again = threading.Event()

    def beat(trial_id: int) -> None:
        beats.append(trial_id)
        if not failed:
            failed.append(trial_id)
            raise OSError("the database does not answer")
        again.set()

    monkeypatch.setattr(storage, "record_heartbeat", beat)
    before = set(threading.enumerate())
    hold(storage, 987654)
    hold(storage, 987655)
    assert is_held(storage, 987654)
    (thread,) = set(threading.enumerate()) - before
    assert thread.name == "heartbeats"
    assert again.wait(60)
    release(storage, 987654)
    assert not is_held(storage, 987654)
    assert is_held(storage, 987655)
    beats.clear()
    again.clear()
    assert again.wait(60)
    release(storage, 987655)
    assert set(beats) == {987655}
    assert not thread.is_alive()
    # As at the end of a worker that never claimed it.
    release(storage, 987654)


def test_a_release_waits_for_the_heartbeat_of_its_own_trial_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_open, "_HEARTBEAT", 1)
    storage = Storage(str(tmp_path / "x.db")).optuna
    writing, answers = threading.Event(), threading.Event()

    def beat(trial_id: int) -> None:
        writing.set()
        answers.wait()

    monkeypatch.setattr(storage, "record_heartbeat", beat)
    own, other = (threading.Thread(target=release, args=(storage, one)) for one in (1, 2))
    # The thread continues for the last one.
    for trial_id in (1, 2, 3):
        hold(storage, trial_id)
    assert writing.wait(60)
    other.start()
    other.join(60)
    own.start()
    own.join(0.5)
    waited = [other.is_alive(), own.is_alive()]
    answers.set()
    own.join()
    release(storage, 3)
    assert waited == [False, True]


@pytest.fixture
def pair(database_url: str) -> Iterator[tuple[Storage, Storage]]:
    """A database opened twice, as two processes do."""
    opened = Storage(database_url), Storage(database_url)
    yield opened
    for storage in opened:
        storage.close()


def test_too_long_a_wait_is_an_error(
    pair: tuple[Storage, Storage], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = pair
    monkeypatch.setattr(_process, "_WAIT_SECONDS", 1)
    other.curves  # noqa: B018
    with (
        one.lock("study"),
        pytest.raises(StorageError, match="locked for 1 s"),
        other.lock("study"),
    ):
        pass
    with other.lock("study"):
        pass


_LIMITS = {
    "postgresql": {
        "options": "-c statement_timeout=1000 -c idle_in_transaction_session_timeout=1000 "
        "-c transaction_timeout=1000"
    },
    "mariadb": {"init_command": "SET SESSION wait_timeout = 1, max_statement_time = 1"},
}


@pytest.mark.parametrize(
    ("database_url", "limits"), _LIMITS.items(), indirect=["database_url"], ids=_LIMITS
)
def test_limits_of_a_server_end_neither_the_wait_for_a_lock_nor_its_hold(
    database_url: str, limits: dict[str, str]
) -> None:
    url = Storage(database_url).secret_url
    engine = sa.create_engine(url, connect_args=limits)
    got = threading.Event()

    def wait() -> None:
        with locker(engine)("study"):
            got.set()

    waiting = threading.Thread(target=wait)
    with locker(engine)("study"):
        waiting.start()
        assert not got.wait(1.5)
    waiting.join()
    assert got.is_set()
    engine.dispose()


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


@pytest.mark.parametrize(
    ("message", "hint"),
    [
        ('FATAL:  role "me" does not exist', "Check the user in the URL"),
        ('root certificate file "/root/.postgresql/root.crt" does not exist', "sslrootcert"),
        ('FATAL:  database "mine" does not exist', "createdb"),
        ('no pg_hba.conf entry for host "::1", user "me", database "mine"', "sslmode"),
        ('permission denied for database "mine"', "GRANT CONNECT"),
        ("permission denied for schema public", "GRANT USAGE ON SCHEMA"),
        ("no schema has been selected to create in", "search_path"),
        ("permission denied for sequence trials_trial_id_seq", "reading needs SELECT"),
        ("INSERT command denied to user 'me'", "reading needs SELECT"),
        ("ALTER command denied to user 'me'", "owner"),
        ("REFERENCES command denied to user 'me'", "owner"),
        ("must be owner of table hpo_mab_curves", "hpo-mab studies"),
        ('FATAL:  database "mine" is not currently accepting connections', "is closed"),
        ("User 'me' has exceeded the 'max_user_connections' resource", "fewer workers"),
        ("canceling statement due to statement timeout", "Raise statement_timeout"),
        ("database or disk is full", "Free some space"),
    ],
)
def test_a_message_of_the_server_gets_its_own_hint(message: str, hint: str) -> None:
    said = _process.diagnose(Exception(message))
    assert said.startswith(f"{message}. ")
    assert hint in said.removeprefix(message)


def test_an_error_without_a_hint_is_shown_alone() -> None:
    missing = 'relation "trials" does not exist'
    assert _process.diagnose(Exception(missing)) == f"{missing}."
    # As of a MySQL connection that the server has closed.
    assert _process.diagnose(ConnectionError(0, "")).endswith(".")
    assert _process.diagnose(RuntimeError(0, "")) == "RuntimeError without a message."


def test_a_link_to_a_database_has_its_lock_and_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = Storage(str(tmp_path / "studies.db"))
    assert file.examples.load(1) is None
    link = tmp_path / "elsewhere" / "link.db"
    link.parent.mkdir()
    link.symlink_to(tmp_path / "studies.db")
    linked = Storage(str(link))
    assert files_folder(linked, "checkpoints") == files_folder(file, "checkpoints")
    monkeypatch.setattr(_process, "_WAIT_SECONDS", 0)
    with file.lock("a"), pytest.raises(StorageError, match=r"studies\.db\.lock"), linked.lock("a"):
        pass
    file.close()
    linked.close()
