from __future__ import annotations

import contextlib
import datetime
import gc
import os
import pickle
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState
from small_studies import quick
from tools import statements_of

from hpo_mab._errors import ArgumentError, StorageError, UnknownNameError
from hpo_mab.search import TrialReporter
from hpo_mab.search._study import make_study
from hpo_mab.storage import Storage, open_study, read_run, study_names
from hpo_mab.storage._definition import StoredDefinition
from hpo_mab.storage._open import files_folder
from hpo_mab.storage._tables import HEARTBEATS


@pytest.mark.parametrize("kind", [str, Path])
def test_a_bare_path_is_an_sqlite_file(tmp_path: Path, kind: type) -> None:
    storage = Storage(kind(tmp_path / "studies.db"))
    assert not (tmp_path / "studies.db").exists()
    storage.curves  # noqa: B018 - opens it
    assert (tmp_path / "studies.db").exists()
    assert study_names(storage) == ()
    storage.close()


def test_a_study_in_memory_outlives_the_storage_it_was_made_with() -> None:
    storage = Storage(":memory:")
    kept = storage.optuna
    study = optuna.create_study(storage=kept)
    del storage
    gc.collect()
    # SQLAlchemy closes connections in memory once more than five threads have one.
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=12)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 12
    kept.remove_session()
    kept.engine.dispose()


@pytest.mark.parametrize("url", [None, 3, b"studies.db"])
def test_a_url_is_text_or_a_path(url: Any) -> None:
    with pytest.raises(ArgumentError, match=f"must be a URL or a path, got {type(url).__name__}"):
        Storage(url)


def test_a_block_closes_its_database_even_if_it_raises(tmp_path: Path) -> None:
    journal = tmp_path / "studies.db-wal"
    with contextlib.suppress(ZeroDivisionError), Storage(tmp_path / "studies.db") as storage:
        optuna.create_study(storage=storage.optuna)
        assert journal.exists()
        raise ZeroDivisionError
    # SQLite merges its journal where the last connection closes.
    assert not journal.exists()


def test_a_line_break_at_the_end_is_no_part_of_the_name(tmp_path: Path) -> None:
    assert Storage("postgresql://me@127.0.0.1:1/db\n").url.database == "db"
    assert Storage(f"{tmp_path / 'x.db'}\r\n").file == tmp_path / "x.db"


def test_a_uri_is_refused() -> None:
    with pytest.raises(StorageError, match=r"must name a file, sqlite:///studies\.db"):
        Storage("sqlite:///file:studies.db?uri=true")


def test_a_database_stays_the_same_in_another_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path)
    storage = Storage("studies.db")
    monkeypatch.chdir(tmp_path / "below")
    optuna.create_study(study_name="own", storage=storage.optuna)
    assert study_names(storage) == ("own",)
    assert files_folder(storage, "artifacts") == tmp_path / "studies_artifacts"
    with storage.lock("own"):
        assert (tmp_path / "studies.db.lock").exists()
    storage.close()
    assert not any((tmp_path / "below").iterdir())


def test_reading_makes_no_file(tmp_path: Path) -> None:
    path = tmp_path / "none.db"
    assert study_names(Storage(str(path))) == ()
    assert not path.exists()
    with pytest.raises(StorageError, match=r"no study database.*hpo-mab run"):
        Storage(f"sqlite:///{path}", create=False)
    assert not path.exists()


def test_an_unreachable_folder_is_an_error_of_one_line(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"Cannot open storage.*unable to open") as caught:
        Storage(f"sqlite:///{tmp_path / 'no' / 'such' / 'x.db'}").curves  # noqa: B018
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:hunter2@127.0.0.1:1/db",
        "postgresql+psycopg://me:hunter2@127.0.0.1:1/db",
        "mysql+nosuch://me:hunter2@127.0.0.1:1/db",
        "nosuch://me:hunter2@127.0.0.1/db",
        "https://me:hunter2@@@:::",
    ],
)
def test_a_database_that_cannot_be_reached_keeps_its_password(url: str) -> None:
    with pytest.raises(StorageError) as caught:
        Storage(url).optuna  # noqa: B018
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)
    # Not in the chain either: a traceback prints it.
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize("part", ["er2", "/er2", "?er2", "er2/", "er2?"])
def test_a_password_with_an_at_sign_is_refused_and_no_part_of_it_is_shown(part: str) -> None:
    with pytest.raises(StorageError, match="write %40") as caught:
        Storage(f"postgresql://me:hunt@{part}@127.0.0.1:1/db")
    assert "hunt" not in str(caught.value)
    assert "er2" not in str(caught.value)
    # A user's name may have one, which is no part of a password.
    assert Storage("postgresql://me@server:hunter2@127.0.0.1:1/db").url.host == "127.0.0.1"


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a database, certainly not one" * 40)
    with pytest.raises(StorageError, match="not a database"):
        Storage(f"sqlite:///{path}").optuna  # noqa: B018


def test_an_unknown_study_offers_the_nearest(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "studies.db"))
    with pytest.raises(StorageError, match="There is no study"):
        open_study(storage, "digits")
    optuna.create_study(study_name="digits-mab-seed0", storage=storage.optuna)
    with pytest.raises(UnknownNameError, match="Did you mean 'digits-mab-seed0'"):
        open_study(storage, "digits-mab-seed1")
    with pytest.raises(StorageError, match="has no definition: only"):
        read_run(storage, "digits-mab-seed0")
    storage.close()


def test_names_that_differ_in_capitals_only_are_other_names(anywhere: Storage) -> None:
    spec, name = quick(), "Digits"
    definition = StoredDefinition(
        arm="uniform", seed=0, trial_examples=1, epoch_examples=1, spec={}, environment={}
    )
    made = make_study(anywhere, name, spec, definition)
    assert open_study(anywhere, name).study_name == made.study_name
    with pytest.raises(UnknownNameError, match="Did you mean 'Digits'"):
        open_study(anywhere, "digits")
    if anywhere.optuna.engine.dialect.name == "mysql":
        with pytest.raises(StorageError, match="differs from 'digits' in capitals or accents only"):
            make_study(anywhere, "digits", spec, definition)


def test_names_are_read_by_one_statement_without_attributes(storage: Storage) -> None:
    for name in ("two", "one"):
        optuna.create_study(study_name=name, storage=storage.optuna).set_user_attr("a", 1)
    statements = statements_of(storage.optuna.engine)
    assert study_names(storage) == ("two", "one")
    (statement,) = statements
    assert "attributes" not in statement


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        ("odd {name} 50%.db", "sqlite:///"),
        ("odd {name} 50%20.db", ""),
        ("odd?mode=ro", ""),
    ],
)
def test_odd_signs_in_a_path_are_plain_letters(tmp_path: Path, name: str, prefix: str) -> None:
    storage = Storage(f"{prefix}{tmp_path / name}")
    assert storage.curves.load([1]) == {}
    assert (tmp_path / name).exists()
    storage.close()


@pytest.mark.parametrize(
    ("query", "seconds"),
    [("", ("10", "60")), ("&connect_timeout=30&keepalives_idle=5", ("30", "5"))],
)
def test_a_server_is_waited_for_not_long_or_as_the_url_says(
    postgres_url: str, query: str, seconds: tuple[str, str]
) -> None:
    storage = Storage(postgres_url + query)
    with storage.optuna.engine.connect() as connection:
        driver: Any = connection.connection.dbapi_connection
        given = driver.info.get_parameters()
        assert (given["connect_timeout"], given["keepalives_idle"]) == seconds
    storage.close()


@pytest.mark.parametrize(("query", "seconds"), [("", 660), ("&read_timeout=30", 30)])
def test_an_answer_of_mysql_is_waited_for_longer_than_a_lock(
    mariadb_url: str, query: str, seconds: int
) -> None:
    storage = Storage(mariadb_url + query)
    with storage.optuna.engine.connect() as connection:
        driver: Any = connection.connection.dbapi_connection
        assert driver._read_timeout == seconds
    storage.close()


def test_files_of_a_database_lie_next_to_it_or_where_the_user_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = Storage(str(tmp_path / "studies.db"))
    server = Storage("postgresql://me@127.0.0.1:1/db")
    assert files_folder(file, "checkpoints") == tmp_path / "studies_checkpoints"
    assert files_folder(server, "checkpoints") == Path("hpo_mab_checkpoints")
    monkeypatch.setenv("HPO_MAB_CHECKPOINTS", "~/kept")
    assert files_folder(file, "checkpoints") == files_folder(server, "checkpoints")
    assert files_folder(server, "checkpoints") == Path.home() / "kept"
    assert files_folder(file, "artifacts") == tmp_path / "studies_artifacts"


def test_a_database_that_does_not_answer_is_waited_for(
    anywhere: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = anywhere
    storage.curves  # noqa: B018 - makes the tables
    assert storage.wait_until_back(seconds=0)
    connect, failures = type(storage.optuna.engine).connect, iter([1, 2])

    def fail(engine: sa.Engine) -> sa.Connection:
        for _ in failures:
            raise sa.exc.OperationalError("SELECT 1", {}, Exception("no server"))
        return connect(engine)

    monkeypatch.setattr(type(storage.optuna.engine), "connect", fail)
    assert not storage.wait_until_back(seconds=0)
    assert storage.wait_until_back(seconds=60)


def test_a_server_that_may_only_be_read_is_waited_for(postgres_url: str) -> None:
    def refuse_writes(connection: sa.Connection) -> None:
        connection.exec_driver_sql("SET TRANSACTION READ ONLY")

    storage = Storage(postgres_url)
    # As of a standby that becomes the primary; there is no study yet.
    sa.event.listen(storage.optuna.engine, "begin", refuse_writes)
    assert not storage.wait_until_back(seconds=0)
    sa.event.remove(storage.optuna.engine, "begin", refuse_writes)
    assert storage.wait_until_back(seconds=0)
    storage.close()


def test_a_file_that_is_gone_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "studies.db"
    storage = Storage(str(path))
    storage.curves  # noqa: B018 - makes the file
    storage.close()
    path.rename(tmp_path / "elsewhere.db")
    assert not storage.wait_until_back(seconds=0)
    assert not path.exists()
    path.touch()
    assert not storage.wait_until_back(seconds=0)
    storage.close()
    (tmp_path / "elsewhere.db").replace(path)
    assert storage.wait_until_back(seconds=0)
    storage.close()


@pytest.mark.filterwarnings("ignore:Heartbeat")
def test_a_retry_in_optunas_own_loop_has_no_results(storage: Storage) -> None:
    study = optuna.create_study(storage=storage.optuna)
    study.enqueue_trial(queued := {"x": 5.0})
    trial = study.ask()
    with pytest.warns(UserWarning, match="out of range"):
        trial.suggest_float("x", 0, 1)
    trial.set_constraint("size", 1.0)
    kept = {"hpo_mab:slot": 3, "note": "mine"}
    results = {"hpo_mab:examples": 400, "hpo_mab:interrupted": True, "hpo_mab:paired": True}
    for key, value in (kept | results).items():
        trial.set_user_attr(key, value)
    for key in ("completed_rung_0", "hpo_mab:worker", "cma:optimizer:0"):
        storage.optuna.set_trial_system_attr(trial._trial_id, key, 0.5)
    storage.optuna.record_heartbeat(trial._trial_id)
    with storage.optuna.engine.begin() as connection:
        long_ago = datetime.datetime(2000, 1, 1)
        connection.execute(HEARTBEATS.update().values(heartbeat=long_ago))
    optuna.storages.fail_stale_trials(study)
    lost, retry = study.trials
    assert (lost.state, retry.state) == (TrialState.FAIL, TrialState.WAITING)
    assert (retry.params, retry.user_attrs) == (queued, kept)
    known = {"fixed_params": queued, "failed_trial": 0, "retry_history": [0]}
    assert retry.system_attrs == known


@pytest.mark.filterwarnings("ignore:Heartbeat")
@pytest.mark.parametrize("open_elsewhere", [False, True])
def test_a_database_in_a_folder_that_may_not_be_written_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, open_elsewhere: bool
) -> None:
    storage = Storage(str(tmp_path / "studies.db"))
    study = optuna.create_study(study_name="own", storage=storage.optuna, direction="maximize")
    trial = study.ask()
    with TrialReporter(trial, budget_examples=10, evaluations=1, curves=storage.curves) as reporter:
        reporter.step(10)
        reporter.report(accuracy=0.5)
    study.tell(trial, reporter.accuracy)
    written = read_run(storage, "own")
    if not open_elsewhere:
        # The commits are then in the file, otherwise in its journal.
        storage.close()
    files = sorted(tmp_path.iterdir())
    with monkeypatch.context() as patch:
        # Root may write everywhere.
        patch.setattr("os.access", lambda path, mode: mode != os.W_OK)
        shared = Storage(str(tmp_path / "studies.db"), create=False)
        assert study_names(shared) == ("own",)
        assert read_run(shared, "own") == written
        assert len(written.trials[0].curve) == 1
        with pytest.raises(StorageInternalError):
            open_study(shared, "own").set_user_attr("a", 1)
        assert sorted(tmp_path.iterdir()) == files
    # Who may write there does so later.
    optuna.create_study(study_name="later", storage=storage.optuna)
    storage.close()
    with monkeypatch.context() as patch:
        patch.setattr("os.access", lambda path, mode: mode != os.W_OK)
        assert study_names(shared) == ("own", "later")
    shared.close()


@pytest.mark.filterwarnings("ignore:Heartbeat")
@pytest.mark.parametrize("made_by", ["earlier", "optuna"])
def test_an_old_database_that_may_not_be_written_is_refused_with_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made_by: str
) -> None:
    file = tmp_path / "studies.db"
    if made_by == "optuna":
        optuna.create_study(storage=f"sqlite:///{file}")
    else:
        made = Storage(file)
        with made.optuna.engine.begin() as connection:
            connection.execute(sa.text("UPDATE hpo_mab_schema SET version_num = '2'"))
        made.close()
    files = sorted(tmp_path.iterdir())
    # Root may write everywhere.
    monkeypatch.setattr("os.access", lambda path, mode: mode != os.W_OK)
    with pytest.raises(StorageError, match=r"earlier hpo-mab, or none, .* and open the copy\.$"):
        study_names(Storage(file, create=False))
    assert sorted(tmp_path.iterdir()) == files


def test_a_storage_that_was_used_can_be_sent_to_another_process(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "own.db"))
    optuna.create_study(study_name="own", storage=storage.optuna)
    assert storage.curves
    assert storage.examples
    assert storage.lock
    sent = pickle.loads(pickle.dumps(storage))
    assert study_names(sent) == ("own",)
    sent.close()
    storage.close()
