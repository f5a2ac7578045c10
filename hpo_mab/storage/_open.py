"""Opening a study database by URL, with errors that tell the user what to do."""

from __future__ import annotations

import functools
import warnings
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy as sa
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from sqlalchemy.exc import SQLAlchemyError

from hpo_mab._errors import StorageError
from hpo_mab.storage._curves import CurveStore

DEFAULT_URL = "sqlite:///hpo_mab.db"

_HEARTBEAT_SECONDS = 30
_GRACE_SECONDS = 120
_RETRIES = 3


class Storage:
    """A database of studies: Optuna's own tables and the learning curves beside them.

    It is opened, and its tables made, on first use: what fails before leaves nothing behind.

    Args:
        url: Any SQLAlchemy URL that Optuna takes; a bare path means SQLite.
        create: Whether a missing SQLite file is made; reading commands do not make one.

    Raises:
        StorageError: The URL cannot be read or, on first use, the database cannot be reached or
            is not one of studies. The message never holds a password.
    """

    def __init__(self, url: str = DEFAULT_URL, *, create: bool = True) -> None:
        self.url = _normalise(url)
        self.shown_url = self.url.render_as_string(hide_password=True)
        if not create:
            self._refuse_missing_file()

    @functools.cached_property
    def optuna(self) -> RDBStorage:
        """Optuna's storage."""
        return self._opened[0]

    @functools.cached_property
    def curves(self) -> CurveStore:
        """The learning curves."""
        return self._opened[1]

    def close(self) -> None:
        """Give back every connection."""
        if "_opened" in self.__dict__:
            self.optuna.remove_session()
            self.optuna.engine.dispose()

    @functools.cached_property
    def _opened(self) -> tuple[RDBStorage, CurveStore]:
        try:
            with warnings.catch_warnings():
                # Heartbeats are marked experimental; they are what makes lost trials come back.
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                storage = _connect(self.url)
            return storage, CurveStore(storage.engine)
        except (SQLAlchemyError, ImportError, RuntimeError) as error:
            raise StorageError(
                f"Cannot open storage {self.shown_url}: {_reason(error, self.url)}"
            ) from None

    def _refuse_missing_file(self) -> None:
        database = self.url.database
        if self.url.get_backend_name() == "sqlite" and database and not Path(database).exists():
            raise StorageError(
                f"There is no study database at {self.shown_url}. "
                "Run 'hpo-mab run' first, or name another with --storage."
            )


@functools.cache
def retry_callback() -> RetryHeartbeatStaleTrialCallback:
    """Puts a lost or interrupted trial back in the queue, with its slot, at most three times."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return RetryHeartbeatStaleTrialCallback(max_retry=_RETRIES)


def _connect(url: sa.URL) -> RDBStorage:
    # Optuna fills the URL in as a format string.
    template = url.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")
    return RDBStorage(
        template,
        engine_kwargs=_engine_options(url),
        heartbeat_interval=_HEARTBEAT_SECONDS,
        grace_period=_GRACE_SECONDS,
        heartbeat_stale_trial_callback=retry_callback(),
    )


def _engine_options(url: sa.URL) -> dict[str, Any]:
    if url.get_backend_name() == "sqlite":
        # Writers wait for one another instead of failing with "database is locked".
        return {"connect_args": {"timeout": 60}}
    return {"pool_pre_ping": True}


def _normalise(url: str) -> sa.URL:
    try:
        return sa.make_url(url if "://" in url else f"sqlite:///{url}")
    except (SQLAlchemyError, ValueError):
        raise StorageError(
            "The storage URL cannot be read; it should look like sqlite:///studies.db "
            "or postgresql+psycopg://user@host/database."
        ) from None


def _reason(error: Exception, url: sa.URL) -> str:
    cause = error.__cause__ or error
    text = str(getattr(cause, "orig", None) or cause).strip().splitlines()[0].rstrip(".")
    if url.password:
        text = text.replace(str(url.password), "***")
    return f"{text}."
