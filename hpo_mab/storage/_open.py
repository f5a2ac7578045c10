"""Opening a study database by URL, and the folders of its files."""

from __future__ import annotations

import contextlib
import functools
import os
import sqlite3
import time
import warnings
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self

import optuna
import sqlalchemy as sa
from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial
from sqlalchemy.exc import SQLAlchemyError

from hpo_mab._errors import StorageError, hide_passwords, require
from hpo_mab._interrupts import interruptible
from hpo_mab._machine import expanded
from hpo_mab._plan import RETRIES
from hpo_mab.storage import DEFAULT_URL
from hpo_mab.storage._curves import CurveStore
from hpo_mab.storage._examples import ExampleStore
from hpo_mab.storage._lean import LeanStorage
from hpo_mab.storage._optuna import add_copy, retry_of
from hpo_mab.storage._process import diagnose, locker
from hpo_mab.storage._tables import STUDIES, prepare_tables


class WalConnection(sqlite3.Connection):
    """A connection in SQLite's WAL mode: commits go to a journal next to the database (``-wal``).

    A commit then waits neither for readers nor for the disk; without WAL it waits for the disk
    several times. A killed process loses no commit. A power failure may lose the last commits; the
    database stays consistent. SQLite merges the journal into the database when the last connection
    closes.

    In a folder that may not be written, where there can be no journal, the file is only read.
    """

    def __init__(self, database: str, *arguments: Any, **options: Any) -> None:
        path = Path(database).resolve()
        if not _may_be_written(path):
            # SQLite would make a journal even to read. If another process has made one, the last
            # commits are only in the journal, and the file may change.
            how = "mode=ro" if Path(f"{path}-wal").exists() else "immutable=1"
            database = f"{path.as_uri()}?{how}"
            super().__init__(database, *arguments, **{**options, "uri": True})
            return
        super().__init__(database, *arguments, **options)
        # Some file systems do not support WAL, and the file may be read-only: the mode then stays.
        with contextlib.suppress(sqlite3.Error):
            (mode,) = self.execute("PRAGMA journal_mode = WAL").fetchone()
            if mode == "wal":
                self.execute("PRAGMA synchronous = NORMAL")


#: Raised by Optuna's storage and by ours if the database cannot be reached, is full or locked.
STORAGE_ERRORS = (SQLAlchemyError, StorageInternalError)

_OPEN_ATTEMPTS = 4
#: Seconds between the heartbeats of a running trial, and without one until it counts as lost.
_HEARTBEAT, _GRACE = 30, 120
#: By the last four, a server that is gone is noticed after two minutes, not up to two hours.
_LIBPQ = {
    "connect_timeout": 10,
    "keepalives_idle": 60,
    "keepalives_interval": 20,
    "keepalives_count": 3,
    "tcp_user_timeout": 120_000,
}
#: By driver. PyMySQL has no keepalives; its timeout must exceed the wait for a study's lock.
_WAITS = {"psycopg": _LIBPQ, "psycopg2": _LIBPQ, "pymysql": {"read_timeout": 660}}
#: SQLAlchemy's defaults are older drivers, and Optuna supports MariaDB by MySQL's URL only.
_DRIVERS = {
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "mysql": "mysql+pymysql",
    "mariadb": "mysql+pymysql",
}


class Storage:
    """A database of studies: Optuna's own tables and the learning curves.

    It is opened, and its tables are made, on first use: an earlier error leaves no file. Functions
    of this package take a `Storage`, not a URL; Optuna's take ``storage.optuna``.

    Args:
        url: Any SQLAlchemy URL that Optuna takes; a path means SQLite.
        create: Whether a missing SQLite file is made; reading commands do not make one.

    Attributes:
        file: The file of an SQLite database; None on a server and in memory.

    Raises:
        ArgumentError: ``url`` is neither text nor a path.
        StorageError: The URL cannot be read. On first use: the database cannot be reached or does
            not hold studies. The message never holds a password.

    Examples:
        >>> from hpo_mab.storage import Storage
        >>> with Storage("sqlite:///studies.db") as storage:  # closes it at the end
        ...     storage.is_sqlite
        True
    """

    def __init__(self, url: str | Path = DEFAULT_URL, *, create: bool = True) -> None:
        # The type alone is shown: the value may hold a password.
        require(isinstance(url, str | Path), "url", "a URL or a path", type(url).__name__)
        self.url = _normalise(str(url))
        self.shown_url = hide_passwords(self.url.render_as_string(hide_password=True))
        database = self.url.database
        is_path = self.is_sqlite and database and database != ":memory:"
        # Resolved here: the working directory may change later.
        try:
            self.file = Path(str(database)).absolute() if is_path else None
        except FileNotFoundError:
            raise StorageError(
                "The working directory is gone; name the database by its whole path."
            ) from None
        if not create and not self.exists:
            raise StorageError(
                f"There is no study database at {self.shown_url}. "
                "Run 'hpo-mab run' first, or name another with --storage."
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        """All but what is opened again on first use."""
        opened = {"optuna", "curves", "examples", "lock"}
        return {name: value for name, value in vars(self).items() if name not in opened}

    @functools.cached_property
    def optuna(self) -> LeanStorage:
        """Optuna's storage; opening it makes our tables, or upgrades them."""
        for attempt in range(_OPEN_ATTEMPTS):
            try:
                opened = self._open()
                if not self.in_memory:  # There, the study may outlive this object.
                    # SQLite merges its journal into the database when the last connection closes.
                    weakref.finalize(self, opened.engine.dispose)
                return opened
            except (SQLAlchemyError, ImportError, RuntimeError) as error:
                # If two processes make the tables at once, one fails; it then finds them made.
                if _is_tables_race(error) and attempt < _OPEN_ATTEMPTS - 1:
                    time.sleep(0.3 * (attempt + 1))
                    continue
                raise StorageError(
                    f"Cannot open storage {self.shown_url}: {diagnose(error, self.url)}"
                ) from None
        raise AssertionError("unreachable")

    @functools.cached_property
    def curves(self) -> CurveStore:
        """The learning curves; ``load`` returns those of trials, by their ids in the database."""
        return CurveStore(self.optuna.engine)

    @functools.cached_property
    def examples(self) -> ExampleStore:
        """The records of examples."""
        return ExampleStore(self.optuna.engine)

    @property
    def is_sqlite(self) -> bool:
        """Whether it is an SQLite database: one file, one writer at a time."""
        return self.url.get_backend_name() == "sqlite"

    @property
    def in_memory(self) -> bool:
        """Whether the database ends with the process."""
        return self.is_sqlite and self.file is None

    @property
    def is_archive(self) -> bool:
        """Whether it is an SQLite file in a folder that may not be written."""
        return self.file is not None and not _may_be_written(self.file)

    @property
    def exists(self) -> bool:
        """Whether there is a database to read; a missing SQLite file is made on first use."""
        return self.file is None or self.file.exists()

    @property
    def secret_url(self) -> str:
        """The URL with its password, to pass to another process; it must never be shown."""
        url = self.url if self.file is None else self.url.set(database=str(self.file))
        return url.render_as_string(hide_password=False)

    @functools.cached_property
    def lock(self) -> Callable[[str], AbstractContextManager[None]]:
        """Holds the lock of a name; only one process that uses the database can hold it at a time.

        An SQLite file has one lock for all names. Raises a `StorageError` on entering where another
        process has held it for ten minutes.
        """
        if self.is_archive:  # It is only read, and a lock file could not be made.
            return lambda name: contextlib.nullcontext()
        return locker(self.optuna.engine)

    def wait_until_back(self, *, seconds: float) -> bool:
        """Wait until the database can be written, at most ``seconds``; returns whether it can."""
        deadline = time.monotonic() + seconds
        pause = 0.1
        while True:
            # SQLite would make a missing file. One that is empty answers ``SELECT 1``.
            with contextlib.suppress(*STORAGE_ERRORS, StorageError, OSError):
                if self.exists:
                    # PostgreSQL refuses such a row lock while it may only be read.
                    known = sa.select(STUDIES.c.study_id).limit(1)
                    with self.optuna.engine.connect() as connection:
                        connection.execute(known.with_for_update(key_share=True))
                    return True
            if time.monotonic() + pause > deadline:
                return False
            with interruptible():
                time.sleep(pause)
            pause = min(2 * pause, 5.0)

    def remove_orphans(self) -> None:
        """Remove the curves and records of examples of trials and studies that are deleted."""
        self.curves.remove_orphans()
        self.examples.remove_orphans()

    def error(self, error: BaseException) -> StorageError:
        """The error for a failure of the database: one line, without its password."""
        return StorageError(f"Storage {self.shown_url} failed: {diagnose(error, self.url)}")

    def close(self) -> None:
        """Close every connection."""
        # A storage that was never used has no connection, and must not open one here.
        if "optuna" in self.__dict__:
            self.optuna.remove_session()
            self.optuna.engine.dispose()

    def _open(self) -> LeanStorage:
        with warnings.catch_warnings():
            # Optuna marks heartbeats as experimental; lost trials are found by them.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            storage = LeanStorage(
                # Optuna calls str.format on the URL, so braces of a password must be doubled.
                self.secret_url.replace("{", "{{").replace("}", "}}"),
                engine_kwargs=_engine_options(self.url, is_archive=self.is_archive),
                # In memory each thread opens another database, and no process is ever lost.
                heartbeat_interval=None if self.in_memory else _HEARTBEAT,
                grace_period=_GRACE,
                heartbeat_stale_trial_callback=_retry,
            )
        try:
            prepare_tables(storage.engine, is_archive=self.is_archive)
        except BaseException:
            storage.remove_session()
            storage.engine.dispose()
            raise
        return storage


def _retry(study: optuna.Study, trial: FrozenTrial) -> None:
    """Queue a lost trial of a user's own loop again, as Optuna does, but without its results."""
    history = [*trial.system_attrs.get("retry_history", []), trial.number]
    if len(history) <= RETRIES:
        add_copy(study, retry_of(trial, history))


def _engine_options(url: sa.URL, *, is_archive: bool) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if url.get_backend_name() == "sqlite":
        # Writers then wait for each other instead of raising "database is locked".
        options["connect_args"] = {"timeout": 60, "factory": WalConnection}
        if is_archive:
            # An open connection would not see what another process writes.
            options["poolclass"] = sa.NullPool
        return options
    waits = _WAITS.get(url.get_driver_name(), {})
    # `connect_args` would replace the options of the URL.
    given = {name: value for name, value in waits.items() if name not in url.query}
    return {"pool_pre_ping": True, "connect_args": given}


def _may_be_written(file: Path) -> bool:
    """Whether a database, or a link to it, is in a folder that may be written."""
    # The journal is next to the file itself, also if it is opened by a symbolic link.
    return not file.is_file() or os.access(file.resolve().parent, os.W_OK)


def _normalise(url: str) -> sa.URL:
    if not url.strip():
        # SQLite would take it for a database in memory.
        raise StorageError("The storage URL is empty; name a file or the URL of a database.")
    url = url.rstrip("\r\n")  # A secret that was made of a file ends with one.
    try:
        path = str(expanded(url)) if url.startswith("~") else url
        # A path is not parsed: `make_url` would unquote percent signs and cut it at a question
        # mark.
        made = sa.make_url(url) if "://" in url else sa.URL.create("sqlite", database=path)
    except (SQLAlchemyError, ValueError):
        raise StorageError(
            "The storage URL cannot be read; it should look like sqlite:///studies.db "
            "or postgresql://user@host/database."
        ) from None
    # SQLAlchemy ends the password at its first @, and errors would show the rest of it.
    if made.password is not None and url.partition("://")[2].partition(":")[2].count("@") > 1:
        raise StorageError(
            "The storage URL has more than one @: write %40 for those in the password and options."
        )
    if made.query.get("uri"):
        # The lock and the checkpoints are kept next to the file.
        raise StorageError("The storage URL must name a file, sqlite:///studies.db, without uri=.")
    name = made.drivername
    return made.set(drivername=_DRIVERS.get(name, name.replace("mariadb+", "mysql+")))


def _is_tables_race(error: BaseException) -> bool:
    texts = [str(error), str(error.__cause__)]
    signs = ("already exists", "UniqueViolation", "UNIQUE", "Duplicate entry")
    return any(sign in text for text in texts for sign in signs)


def files_folder(storage: Storage, what: str) -> Path:
    """The folder of a storage's files of one kind; it need not exist.

    ``HPO_MAB_<WHAT>`` if that is set. Else, for an SQLite file, a folder next to it that is named
    after it. Else ``hpo_mab_<what>`` in the working directory.

    Args:
        storage: The database.
        what: The kind of files, e.g. ``"artifacts"``.
    """
    chosen = os.environ.get(f"HPO_MAB_{what.upper()}")
    if chosen:
        return expanded(chosen)
    if storage.file is not None:
        # Of the file itself, like its lock: it may be opened through a symbolic link.
        file = storage.file.resolve()
        return file.with_name(f"{file.stem}_{what}")
    return Path(f"hpo_mab_{what}")
