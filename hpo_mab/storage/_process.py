"""The processes of a study: their names, heartbeats and locks.

`diagnose` gives an error of the database in one line.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from urllib.parse import quote, quote_plus

import filelock
import sqlalchemy as sa
from optuna.storages import RDBStorage

from hpo_mab._errors import StorageError, hide_passwords


@functools.cache
def machine() -> str:
    """A name for the processes visible to this one: the same machine, boot and container.

    It is a digest, so that records hold no host names.
    """
    parts = [platform.node()]
    # Other systems than Linux give neither a boot id nor a container id: the name is the host's.
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return hashlib.blake2b("\x1f".join(parts).encode(), digest_size=8).hexdigest()


def this_process() -> str:
    """A unique name of this process: ``machine:pid:started``; process ids alone are reused."""
    pid = os.getpid()
    return f"{machine()}:{pid}:{_started(pid)}"


def is_local(process: str) -> bool:
    """Whether the process runs, or ran, on the `machine` of this one."""
    return process.startswith(f"{machine()}:")


def is_here(process: str) -> bool:
    """Whether it is local, and `is_gone` knows whether it has ended."""
    # Other systems than Linux reuse a process's number and do not say when it was started. There,
    # heartbeats say whether a worker still runs.
    return _HAS_PROC and is_local(process) and not _is_hidden(int(process.split(":")[1]))


def is_gone(process: str) -> bool:
    """Whether a process of this machine has ended."""
    _, pid, started = process.split(":")
    return _started(int(pid)) != started


def _is_hidden(pid: int) -> bool:
    """Whether a process runs that /proc does not show: another user's, under ``hidepid``."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return not _started(pid)
    except OSError:
        pass
    return False


_HAS_PROC = Path("/proc/self/stat").exists()


def _started(pid: int) -> str:
    """When a process was started; empty if there is none, and without /proc."""
    try:
        # The command's name may contain spaces and ")", so fields are counted after the last ")".
        # The state is field 3 of the line, the start time field 22.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        return ""


class _Heartbeats:
    """A thread that records Optuna's heartbeats of the trials this process runs on one database."""

    def __init__(self, interval: int | None) -> None:
        self.trials: dict[int, RDBStorage] = {}
        self._writing = threading.Lock()
        self._written: int | None = None  # The trial whose heartbeat is being written, or was last.
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=self._beat, args=(interval,), name="heartbeats", daemon=True
        )
        self._thread.start()

    def _beat(self, interval: int | None) -> None:
        # A database in memory has no interval: then this waits for the end.
        while not self._stop.wait(interval):
            for trial_id, storage in list(self.trials.items()):
                # Training continues without a database; the next heartbeat may be written.
                with self._writing, contextlib.suppress(Exception):
                    self._written = trial_id
                    if trial_id in self.trials:
                        storage.record_heartbeat(trial_id)
                storage.remove_session()

    def forget(self, trial_id: int) -> None:
        self.trials.pop(trial_id, None)
        if self._written == trial_id:
            with self._writing:  # No heartbeat may follow the release.
                pass

    def end(self) -> None:
        self._stop.set()
        self._thread.join()


_heartbeats: dict[str, _Heartbeats] = {}
#: Held while `_heartbeats` changes: threads of one process may train at the same time.
_changing = threading.Lock()


def hold(storage: RDBStorage, trial_id: int) -> None:
    """Record Optuna's heartbeats of a trial that this process runs, until `release`.

    Unlike Optuna's own thread it continues after a heartbeat that could not be written.
    """
    with _changing:
        beating = _heartbeats.get(_key(storage))
        if beating is None:
            beating = _heartbeats[_key(storage)] = _Heartbeats(storage.get_heartbeat_interval())
        beating.trials[trial_id] = storage


def release(storage: RDBStorage, trial_id: int) -> None:
    """End the heartbeats of a trial; without heartbeats nothing happens."""
    with _changing:
        beating = _heartbeats.get(_key(storage))
        if beating is None:
            return
        beating.forget(trial_id)
        if not beating.trials:
            _heartbeats.pop(_key(storage)).end()


def is_held(storage: RDBStorage, trial_id: int) -> bool:
    """Whether this process runs a trial."""
    beating = _heartbeats.get(_key(storage))
    return beating is not None and trial_id in beating.trials


def _key(storage: RDBStorage) -> str:
    """The database's URL: this process may have opened it several times."""
    return str(storage.engine.url)


_FREE = "Free some space, then run the same command again; what is stored is kept."
_MORE = "Raise the limit of connections, or use fewer workers: each holds up to three."
_RIGHTS = (
    "Writing needs SELECT, INSERT, UPDATE and DELETE on all tables, with PostgreSQL also USAGE on "
    "their sequences; reading needs SELECT."
)
_OWNER = (
    "Let the owner of the tables run 'hpo-mab studies' of this version once: it makes or upgrades "
    "them."
)
#: What the user can do, by a text that the database's message contains.
_HINTS = {
    "unable to open database file": "Its folder must exist, and you must be able to write to it.",
    "not a database": "Name another file; this one is not a database.",
    "no module named": "Install that driver, or name another in the URL: mysql+pymysql://...",
    "access denied": "Put the password into HPO_MAB_STORAGE: mysql://user:password@host/name.",
    "unknown database": "Make the database first: CREATE DATABASE NAME.",
    "can't connect to mysql": "Does the server run there, on that port?",
    "can't load plugin": "It should look like sqlite:///studies.db or postgresql://user@host/name.",
    "authentication failed": "Put the password into ~/.pgpass, PGPASSWORD or HPO_MAB_STORAGE.",
    "no password supplied": "Put the password into ~/.pgpass, PGPASSWORD or HPO_MAB_STORAGE.",
    "resolve host": "Check the host in the URL: postgresql://user@host/name.",
    "too many c": _MORE,  # Clients, connections.
    "connection slots": _MORE,
    "max_user_connections": _MORE,
    "connection refused": "Does the server run there, on that port?",
    'role "': "Check the user in the URL: postgresql://user@host/name.",
    "certificate file": "Check sslmode and sslrootcert in the URL.",
    "pg_hba.conf": "Let the server admit this host and user; some need sslmode=require in the URL.",
    "permission denied for schema": "GRANT USAGE ON SCHEMA ... TO ..., and CREATE to make tables.",
    "no schema has been selected": "Check search_path: its schema must grant USAGE and CREATE.",
    "permission denied for database": "Allow it to connect: GRANT CONNECT ON DATABASE ... TO ...",
    "permission denied for": _RIGHTS,
    "must be owner": _OWNER,
    "create command denied": _OWNER,
    "alter command denied": _OWNER,
    "references command denied": _OWNER,
    "index command denied": _OWNER,
    "command denied": _RIGHTS,
    "statement timeout": "Raise statement_timeout for this user.",
    "accepting c": "The server is starting, or this database is closed.",
    'database "': "Make the database first: createdb NAME.",
    "readonly database": "You must be able to write to it and to its folder.",
    "disk is full": _FREE,
    "no space left": _FREE,
    "disk i/o error": "Is the disk full, or gone? Correct that, then run the same command again.",
}
#: Server and extra by the module of its driver.
_DRIVER_EXTRAS = {"psycopg": ("PostgreSQL", "postgres"), "pymysql": ("MySQL", "mysql")}


def diagnose(error: BaseException, url: sa.URL | None = None) -> str:
    """Why a database failed, in one line; shows the URL without its password."""
    cause = error.__cause__ or error
    origin = getattr(cause, "orig", None) or cause
    # The arguments of a MySQL error are a number and the text.
    numbered = len(origin.args) == 2 and not isinstance(origin, OSError)
    lines = str(origin.args[1] if numbered else origin).strip().splitlines()
    text = (lines[0] if lines else f"{type(origin).__name__} without a message").rstrip(".")
    if isinstance(cause, ModuleNotFoundError) and cause.name in _DRIVER_EXTRAS:
        server, extra = _DRIVER_EXTRAS[cause.name]
        text = f"{server} needs its driver: pip install '.[{extra}]' in a clone of hpo-mab"
    for secret in _passwords(url):
        text = text.replace(secret, "***")
    hints = [hint for sign, hint in _HINTS.items() if sign in text.lower()]
    return hide_passwords(" ".join([f"{text}.", *hints[:1]]))


def _passwords(url: sa.URL | None) -> list[str]:
    if url is None or not url.password:
        return []
    plain = str(url.password)
    return [plain, quote(plain, safe=""), quote_plus(plain)]


#: Many workers may wait for the lock in turn.
_WAIT_SECONDS = 600


def locker(engine: sa.Engine) -> Callable[[str], AbstractContextManager[None]]:
    """A function that holds the lock of a name, which all processes on one database share.

    On PostgreSQL, MySQL and MariaDB a lock is an advisory lock of the server. It ends with the
    connection at the latest. SQLite has none: there it is a lock file next to the database. The
    operating system releases it when the process ends. The empty file is not removed: a process
    that has it open would then lock the removed file, and another one a new file.

    Returns:
        A function that waits for the lock of a name and holds it. This process must not hold it
        already. It raises a `StorageError` if another process has held it for ten minutes.
    """
    kind, database = engine.dialect.name, engine.url.database
    if kind == "postgresql":
        return functools.partial(_postgresql_lock, engine)
    if kind == "mysql":
        return functools.partial(_mysql_lock, engine)
    if kind != "sqlite":
        raise StorageError(
            "Studies are kept in SQLite, PostgreSQL, MySQL or MariaDB, "
            f"got a database of kind '{kind}'."
        )
    if not database or database == ":memory:":
        # No other process can reach a database in memory, so it needs no lock.
        return lambda name: contextlib.nullcontext()
    # Of the file itself: another process may use it through a symbolic link.
    real = Path(os.path.realpath(database))
    return lambda name: _file_lock(real)


@contextlib.contextmanager
def _file_lock(database: Path) -> Iterator[None]:
    file, rights = Path(f"{database}.lock"), 0o644
    # The rights of the database, which a group may share. filelock 3 sets them at each attempt.
    with contextlib.suppress(OSError):
        rights = 0o600 | (database.stat().st_mode & 0o777)
    # Not thread-local: otherwise a signal handler or callback would get the lock again.
    lock = filelock.FileLock(file, mode=rights, thread_local=False)
    try:
        lock.acquire(timeout=_WAIT_SECONDS, poll_interval=0.01)
    except filelock.Timeout:
        raise StorageError(_timeout_text(str(file))) from None
    except OSError as error:
        raise StorageError(
            f"{file} cannot be opened: {diagnose(error)} The study's lock is kept in it: you must "
            "be able to write to it and to its folder."
        ) from None
    try:
        # Only the owner may. filelock itself leaves out the bits of the umask.
        with contextlib.suppress(OSError):
            file.chmod(rights)
        yield
    finally:
        lock.release()


#: Settings of the transaction that waits for the lock and then holds it. The server may have other
#: limits. If a machine is gone, it releases the lock after two minutes.
_OF_LOCK = {
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "tcp_keepalives_idle": "60",
    "tcp_keepalives_interval": "20",
    "tcp_keepalives_count": "3",
}


@contextlib.contextmanager
def _postgresql_lock(engine: sa.Engine, name: str) -> Iterator[None]:
    # A lock of the transaction, not of the session. A connection pooler may run the session's next
    # transaction on another connection, without the lock.
    with engine.begin() as connection:
        settings = {"lock_timeout": f"{_WAIT_SECONDS}s", **_OF_LOCK}
        if (engine.dialect.server_version_info or ()) >= (17,):
            settings["transaction_timeout"] = "0"
        chosen = (sa.func.set_config(*setting, True) for setting in settings.items())
        connection.execute(sa.select(*chosen))
        number = int.from_bytes(_digest(name)[:8], "big", signed=True)
        try:
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(number)))
        except sa.exc.OperationalError as error:
            # SQLSTATE 55P03, lock_not_available: the timeout has passed.
            code = getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", "")
            if code != "55P03":
                raise
            raise StorageError(_timeout_text(f"'{name}'")) from None
        yield


@contextlib.contextmanager
def _mysql_lock(engine: sa.Engine, name: str) -> Iterator[None]:
    # Locks of MySQL are those of the whole server, so the name includes the database.
    key = _digest(f"{engine.url.database}\x1f{name}").hex()
    with engine.connect() as connection:
        # The server's limits would end the wait for the lock, or the idle connection that holds it.
        is_mariadb = getattr(engine.dialect, "is_mariadb", False)
        limit = "max_statement_time" if is_mariadb else "max_execution_time"
        before = f"@wait = @@wait_timeout, @limit = @@{limit}"
        connection.exec_driver_sql(f"SET {before}, SESSION wait_timeout = 28800, {limit} = 0")
        try:
            if connection.scalar(sa.select(sa.func.get_lock(key, _WAIT_SECONDS))) != 1:
                raise StorageError(_timeout_text(f"'{name}'"))
            # An open transaction would keep the server from removing old versions of rows.
            connection.commit()
            yield
        finally:
            # If the connection is broken, the server has released the lock already.
            with contextlib.suppress(sa.exc.SQLAlchemyError):
                connection.execute(sa.select(sa.func.release_lock(key)))
                connection.exec_driver_sql(f"SET SESSION wait_timeout = @wait, {limit} = @limit")


def _digest(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=16).digest()


def _timeout_text(what: str) -> str:
    return (
        f"{what} has been locked for {_WAIT_SECONDS} s; does a suspended process, or a machine "
        "that is gone, hold it?"
    )
