"""One process at a time: a lock that a process gives back even when it is killed."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path

import filelock
import sqlalchemy as sa

from hpo_mab._errors import StorageError
from hpo_mab.storage._diagnosis import diagnose

_WAIT_SECONDS = 120


class Locks:
    """Locks that all processes on one database share.

    On PostgreSQL, MySQL and MariaDB a lock is one of the server's advisory locks, which lasts at
    most as long as the connection. SQLite has none; there it is a lock file beside the database,
    which the operating system releases with the process.

    Args:
        engine: The database.

    Raises:
        StorageError: A database of another kind.
    """

    def __init__(self, engine: sa.Engine) -> None:
        if engine.dialect.name not in ("sqlite", "postgresql", "mysql"):
            raise StorageError(
                "Studies are kept in SQLite, PostgreSQL, MySQL or MariaDB, "
                f"got a database of kind '{engine.dialect.name}'."
            )
        self._engine = engine
        self._file: Path | None = None
        if engine.dialect.name == "sqlite":
            database = engine.url.database
            # In memory nobody else can reach it.
            in_file = database and database != ":memory:"
            self._file = Path(f"{database}.lock").absolute() if in_file else None

    @contextlib.contextmanager
    def hold(self, name: str) -> Iterator[None]:
        """Wait for a lock and hold it; it must not be held already by this process.

        Args:
            name: What is locked.

        Raises:
            StorageError: Somebody has held it for two minutes.
        """
        if self._engine.dialect.name == "postgresql":
            with self._postgresql(name):
                yield
        elif self._engine.dialect.name == "mysql":
            with self._mysql(name):
                yield
        elif self._file is None:
            yield
        else:
            # Not thread-local: a signal handler or callback must not get in a second time.
            lock = filelock.FileLock(self._file, thread_local=False)
            try:
                lock.acquire(timeout=_WAIT_SECONDS, poll_interval=0.01)
            except filelock.Timeout:
                raise StorageError(_too_long(str(self._file))) from None
            except OSError as error:
                raise StorageError(
                    f"{self._file} cannot be made: {diagnose(error)} The study's lock is kept in "
                    "it; its folder must be one to write to."
                ) from None
            try:
                yield
            finally:
                lock.release()

    @contextlib.contextmanager
    def _postgresql(self, name: str) -> Iterator[None]:
        # Ends with the transaction, so that poolers between us and the server keep it.
        with self._engine.begin() as connection:
            connection.execute(sa.text(f"SET LOCAL lock_timeout = '{_WAIT_SECONDS}s'"))
            number = int.from_bytes(_digest(name)[:8], "big", signed=True)
            try:
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(number)))
            except sa.exc.OperationalError as error:
                # SQLSTATE of a lock that was not available in time.
                if getattr(error.orig, "sqlstate", "") != "55P03":
                    raise
                raise StorageError(_too_long(f"'{name}'")) from None
            yield

    @contextlib.contextmanager
    def _mysql(self, name: str) -> Iterator[None]:
        # Of the whole server, not of the database.
        key = _digest(f"{self._engine.url.database}\x1f{name}").hex()
        with self._engine.connect() as connection:
            if connection.scalar(sa.select(sa.func.get_lock(key, _WAIT_SECONDS))) != 1:
                raise StorageError(_too_long(f"'{name}'"))
            try:
                # An open transaction would keep old versions of every row.
                connection.commit()
                yield
            finally:
                # With a broken connection the server has released it already.
                with contextlib.suppress(sa.exc.SQLAlchemyError):
                    connection.execute(sa.select(sa.func.release_lock(key)))


def _digest(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=16).digest()


def _too_long(what: str) -> str:
    return f"{what} has been locked for {_WAIT_SECONDS} s; is a stopped process holding it?"
