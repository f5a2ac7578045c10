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

_metadata = sa.MetaData()
_locks = sa.Table("hpo_mab_locks", _metadata, sa.Column("name", sa.String(32), primary_key=True))


class Locks:
    """Locks that all processes on one database share.

    On a server a lock is a locked row: it lasts as long as its transaction, and the server ends
    that when the connection breaks. SQLite has no such rows; there it is a lock file beside the
    database, which the operating system releases with the process.

    Args:
        engine: The database.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._file: Path | None = None
        if engine.dialect.name == "sqlite":
            database = engine.url.database
            # In memory nobody else can reach it.
            in_file = database and database != ":memory:"
            self._file = Path(f"{database}.lock").absolute() if in_file else None
        else:
            _metadata.create_all(engine, checkfirst=True)

    @contextlib.contextmanager
    def hold(self, name: str) -> Iterator[None]:
        """Wait for a lock and hold it; it must not be held already by this process.

        Args:
            name: What is locked.

        Raises:
            StorageError: Somebody has held it for two minutes.
        """
        if self._engine.dialect.name != "sqlite":
            with self._row(_digest(name)):
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
    def _row(self, key: str) -> Iterator[None]:
        with self._engine.begin() as connection:
            if self._engine.dialect.name == "postgresql":
                connection.execute(sa.text(f"SET LOCAL lock_timeout = '{_WAIT_SECONDS}s'"))
            row = sa.select(_locks.c.name).where(_locks.c.name == key).with_for_update()
            if connection.scalar(row) is None:
                self._make_row(key)
                connection.execute(row)
            yield

    def _make_row(self, key: str) -> None:
        # In a transaction of its own, for others are to see it.
        with contextlib.suppress(sa.exc.IntegrityError), self._engine.begin() as connection:
            connection.execute(_locks.insert().values(name=key))


def _digest(name: str) -> str:
    return hashlib.blake2b(name.encode(), digest_size=16).hexdigest()


def _too_long(what: str) -> str:
    return f"{what} has been locked for {_WAIT_SECONDS} s; is a stopped process holding it?"
