from __future__ import annotations

import os
from pathlib import Path

import optuna
import pytest
import sqlalchemy as sa
from optuna.exceptions import StorageInternalError

from hpo_mab._errors import StorageError, UnknownNameError
from hpo_mab.search import TrialReporter
from hpo_mab.storage import Storage, files_folder, open_study, read_run, study_names


@pytest.mark.parametrize("kind", [str, Path])
def test_a_bare_path_is_an_sqlite_file(tmp_path: Path, kind: type) -> None:
    storage = Storage(kind(tmp_path / "studies.db"))
    assert not (tmp_path / "studies.db").exists()
    storage.curves  # noqa: B018 - opens it
    assert (tmp_path / "studies.db").exists()
    assert study_names(storage) == ()
    storage.close()


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


def test_braces_and_percent_signs_in_a_path_are_plain_letters(tmp_path: Path) -> None:
    path = tmp_path / "odd {name} 50%.db"
    storage = Storage(f"sqlite:///{path}")
    assert storage.curves.load([1]) == {}
    assert path.exists()
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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(str(tmp_path / "studies.db"))
    assert storage.wait_until_back(seconds=0)
    connect, failures = type(storage.optuna.engine).connect, iter([1, 2])

    def fail(engine: sa.Engine) -> sa.Connection:
        for _ in failures:
            raise sa.exc.OperationalError("SELECT 1", {}, Exception("no server"))
        return connect(engine)

    monkeypatch.setattr(type(storage.optuna.engine), "connect", fail)
    assert not storage.wait_until_back(seconds=0)
    assert storage.wait_until_back(seconds=60)
    storage.close()


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
    # Root may write everywhere.
    monkeypatch.setattr("os.access", lambda path, mode: mode != os.W_OK)
    shared = Storage(str(tmp_path / "studies.db"), create=False)
    assert study_names(shared) == ("own",)
    assert read_run(shared, "own") == written
    assert len(written.trials[0].curve) == 1
    with pytest.raises(StorageInternalError):
        open_study(shared, "own").set_user_attr("a", 1)
    assert sorted(tmp_path.iterdir()) == files
    shared.close()
