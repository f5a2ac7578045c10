"""Studies copied or moved, whole."""

from __future__ import annotations

import datetime
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import optuna
import pytest
from optuna.artifacts import get_all_artifact_meta, upload_artifact
from optuna.exceptions import StorageInternalError
from optuna_dashboard import get_note
from small_studies import tiny
from tools import refreshed

from hpo_mab import HpoMabWarning
from hpo_mab._errors import ArgumentError, StorageError, UnknownNameError
from hpo_mab.dashboard._files import Artifacts
from hpo_mab.dashboard._publish import publish_study
from hpo_mab.data import ImageSplits
from hpo_mab.search import StudyRunner, copy_study
from hpo_mab.storage import Storage, _open, open_study, read_run, study_names
from hpo_mab.storage._curves import CurveStore
from hpo_mab.storage._open import files_folder
from hpo_mab.storage._tables import HEARTBEATS


@pytest.fixture
def target(database_url: str, tmp_path: Path) -> Iterator[Storage]:
    """Another database than ``storage``, of each kind."""
    url = f"sqlite:///{tmp_path / 'other.db'}" if "sqlite" in database_url else database_url
    opened = Storage(url)
    yield opened
    opened.close()


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Storage]:
    """Another database in a file."""
    opened = Storage(str(tmp_path / "other.db"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def _made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a study of three trials, its pages and their files."""
    folder = tmp_path_factory.mktemp("made")
    storage = Storage(str(folder / "studies.db"))
    outcome = StudyRunner(tiny(budget={"trials": 3}), storage).run("study", score=False)
    assert not publish_study(storage, outcome.run)
    storage.close()
    return folder


@pytest.fixture
def published(_made: Path, tmp_path: Path) -> Iterator[Storage]:
    """A database of the test's own with that study."""
    shutil.copytree(_made, tmp_path, dirs_exist_ok=True)
    opened = Storage(str(tmp_path / "studies.db"))
    yield opened
    opened.close()


def test_a_copy_is_the_study(published: Storage, target: Storage) -> None:
    # So that ids differ.
    optuna.create_study(storage=target.optuna).add_trial(optuna.create_trial(value=1.0))
    before = read_run(published, "study")
    assert copy_study(published, "study", target) == 3
    assert read_run(target, "study") == before
    assert read_run(published, "study") == before
    # And continues as the study would.
    spec = tiny(budget={"trials": 4})
    ours, theirs = (StudyRunner(spec, s).run("study", score=False) for s in (published, target))
    assert ours.run.trials[3].params == theirs.run.trials[3].params
    assert ours.run.examples == theirs.run.examples


def test_a_moved_study_is_in_one_place(published: Storage, target: Storage) -> None:
    before = read_run(published, "study")
    copy_study(published, "study", target, to_name="moved", move=True)
    assert study_names(published) == ()
    assert read_run(target, "moved").trials == before.trials
    # The copy holds what the study has left, and nothing is left.
    copy_study(target, "moved", published, to_name="back")
    assert read_run(published, "back").trials == before.trials


def test_a_copy_has_what_its_database_can_store(
    published: Storage, other: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storable = CurveStore._storable

    def without_losses(self: CurveStore, row: Any) -> dict[str, Any]:
        row = storable(self, row)
        return {**row, "loss": None} if self is other.curves else row

    monkeypatch.setattr(CurveStore, "_storable", without_losses)
    copy_study(published, "study", other, to_name="copied")
    for own, copied in zip(
        read_run(published, "study").trials, read_run(other, "copied").trials, strict=True
    ):
        assert [math.isnan(point.loss) for point in copied.curve] == [True] * len(own.curve)


def test_a_copy_in_the_same_database_remains_without_the_study(
    published: Storage, splits: ImageSplits
) -> None:
    before = read_run(published, "study")
    assert not publish_study(published, before, images=splits.train)
    copy_study(published, "study", published, to_name="copy", move=True)
    assert study_names(published) == ("copy",)
    assert read_run(published, "copy").trials == before.trials
    # Its note is written again, with the picture, which needs no data.
    assert refreshed(published) == (["copy"], "")
    assert get_note(open_study(published, "copy")).count("](/artifacts/2/") == 1


def test_notes_on_trials_are_on_the_same_trials(storage: Storage, other: Storage) -> None:
    from optuna_dashboard import save_note

    optuna.create_study(storage=other.optuna).add_trial(optuna.create_trial(value=1.0))
    study = optuna.create_study(study_name="noted", storage=storage.optuna)
    study.add_trials([optuna.create_trial(value=1.0), optuna.create_trial(value=2.0)])
    save_note(study, "on the study")
    trial = study.trials[1]._trial_id
    study._storage.set_study_system_attr(study._study_id, f"dashboard:{trial}:note_ver", 1)
    copy_study(storage, "noted", other)
    copy = optuna.load_study(study_name="noted", storage=other.optuna)
    attrs = copy._storage.get_study_system_attrs(copy._study_id)
    assert attrs["dashboard:note_str:0"] == "on the study"
    assert f"dashboard:{copy.trials[1]._trial_id}:note_ver" in attrs


def test_a_copy_has_no_figures_of_a_verdict(storage: Storage, other: Storage) -> None:
    study = optuna.create_study(study_name="study", storage=storage.optuna)
    for name in ("00-incumbent-examples", "02-advantage-examples", "07-of-my-own"):
        storage.optuna.set_study_system_attr(study._study_id, f"dashboard:plot_data:{name}:0", "{}")
    copy_study(storage, "study", other)
    copy = optuna.load_study(study_name="study", storage=other.optuna)
    attrs = other.optuna.get_study_system_attrs(copy._study_id)
    figures = {key.split(":")[2] for key in attrs if key.startswith("dashboard:plot_data:")}
    assert figures == {"00-incumbent-examples", "07-of-my-own"}


def _upload(storage: Storage, owner: Any, file: Path, text: str) -> None:
    file.write_text(text)
    store = Artifacts(storage)
    upload_artifact(
        study_or_trial=owner, storage=storage.optuna, file_path=str(file), artifact_store=store
    )


@pytest.mark.filterwarnings("ignore:Heartbeat")
def test_a_copy_has_the_artifacts(
    storage: Storage, target: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    study = optuna.create_study(study_name="study", storage=storage.optuna)
    trial = study.ask()
    for owner, text in ((study, "of the study"), (trial, "of the trial")):
        _upload(storage, owner, tmp_path / "note.txt", text)
    study.tell(trial, 1.0)
    copy_study(storage, "study", target)
    copy = optuna.load_study(study_name="study", storage=target.optuna)
    for owner, text in ((copy, "of the study"), (copy.trials[0], "of the trial")):
        (found,) = get_all_artifact_meta(owner, storage=target.optuna)
        assert (files_folder(target, "artifacts") / found.artifact_id).read_text() == text


@pytest.mark.parametrize("folder", ["..", "{tmp_path}"])
def test_a_copy_takes_only_files_of_the_artifacts(
    storage: Storage, other: Storage, tmp_path: Path, folder: str
) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    files_folder(storage, "artifacts").mkdir()
    study = optuna.create_study(study_name="study", storage=storage.optuna)
    key = f"artifacts:{folder.format(tmp_path=tmp_path)}/secret.txt"
    storage.optuna.set_study_system_attr(study._study_id, key, json.dumps({"filename": "a.txt"}))
    copy_study(storage, "study", other)
    assert not files_folder(other, "artifacts").exists()


def test_a_copy_within_one_database_takes_its_artifacts_however_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    one, other = Storage("studies.db"), Storage("../here/studies.db")
    study = optuna.create_study(study_name="study", storage=one.optuna)
    _upload(one, study, tmp_path / "note.txt", "kept")
    copy_study(one, "study", other, to_name="copy")
    copy = optuna.load_study(study_name="copy", storage=other.optuna)
    (found,) = get_all_artifact_meta(copy, storage=other.optuna)
    assert (files_folder(other, "artifacts") / found.artifact_id).read_text() == "kept"
    # A file of the study may be replaced in place.
    (own,) = get_all_artifact_meta(study, storage=one.optuna)
    assert own.artifact_id != found.artifact_id
    files = sorted(files_folder(one, "artifacts").iterdir())
    assert len(files) == 2
    # A copy that fails leaves no file, and a study that is renamed keeps its own.
    with monkeypatch.context() as patch:
        patch.setattr("hpo_mab.search._copy._renumbered", mock.Mock(side_effect=OSError("full")))
        with pytest.raises(OSError, match="full"):
            copy_study(one, "study", other, to_name="third")
    copy_study(one, "study", other, to_name="renamed", move=True)
    assert sorted(files_folder(one, "artifacts").iterdir()) == files
    one.close()
    other.close()


def test_a_study_is_copied_out_of_a_folder_that_may_not_be_written(
    published: Storage, other: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "studies.db.lock").unlink()
    may_be_written = _open._may_be_written
    monkeypatch.setattr(
        _open, "_may_be_written", lambda file: file != published.file and may_be_written(file)
    )
    with pytest.raises(StorageError, match="may only be read: 'study' can be copied, not moved"):
        copy_study(published, "study", other, move=True)
    assert copy_study(published, "study", other) == 3
    assert not (tmp_path / "studies.db.lock").exists()


def test_a_copy_that_cannot_be_finished_leaves_nothing(
    published: Storage, other: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:

    def die(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(CurveStore, "copy", die)
    with pytest.raises(KeyboardInterrupt):
        copy_study(published, "study", other, move=True)
    assert study_names(other) == ()
    assert study_names(published) == ("study",)


def test_a_study_that_cannot_be_deleted_has_a_whole_copy(
    published: Storage, other: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = mock.Mock(side_effect=StorageInternalError("permission denied for table trials"))
    monkeypatch.setattr(optuna, "delete_study", refused)
    with pytest.raises(StorageError, match=r"'new' in .*other.db is complete, but 'study' could"):
        copy_study(published, "study", other, to_name="new", move=True)
    assert read_run(other, "new").trials == read_run(published, "study").trials


def test_databases_in_memory_are_different_ones() -> None:
    source, target = Storage("sqlite://"), Storage("sqlite://")
    optuna.create_study(study_name="study", storage=source.optuna)
    copy_study(source, "study", target)
    assert study_names(target) == ("study",)
    with pytest.raises(ArgumentError, match="needs another name"):
        copy_study(source, "study", source)


def test_what_cannot_be_copied_is_said(storage: Storage, other: Storage) -> None:
    study = optuna.create_study(study_name="study", storage=storage.optuna)
    words = r"needs another name\. Give one, or another database\.$"
    with pytest.raises(ArgumentError, match=words):
        copy_study(storage, "study", storage)
    with pytest.raises(UnknownNameError, match="Did you mean 'study'"):
        copy_study(storage, "studi", other)
    optuna.create_study(study_name="study", storage=other.optuna)
    with pytest.raises(StorageError, match=r"'study' in .*other.db already"):
        copy_study(storage, "study", other)
    study.add_trial(optuna.create_trial(state=optuna.trial.TrialState.RUNNING))
    with pytest.raises(StorageError, match=r"1 running trials .0.; .*: study\.tell\(NUMBER"):
        copy_study(storage, "study", other, to_name="copy")


def test_optunas_copy_has_no_cost_and_says_so(published: Storage, other: Storage) -> None:
    optuna.copy_study(
        from_study_name="study", from_storage=published.optuna, to_storage=other.optuna
    )
    with pytest.warns(HpoMabWarning, match="3 of 3 trials of 'study' .*hpo-mab copy"):
        run = read_run(other, "study")
    assert (run.examples, run.seconds, run.saved_examples) == (None, None, None)
    assert run.best is not None


def test_a_copy_does_not_end_a_trial_of_a_loop_of_your_own(
    storage: Storage, other: Storage
) -> None:
    study = optuna.create_study(study_name="own", storage=storage.optuna, direction="maximize")
    trial = optuna.create_trial(
        state=optuna.trial.TrialState.RUNNING, user_attrs={"hpo_mab:slot": 0}
    )
    study.add_trial(trial)
    with pytest.raises(StorageError, match="running"):
        copy_study(storage, "own", other, to_name="copy")
    assert study.trials[0].state == optuna.trial.TrialState.RUNNING


@pytest.mark.filterwarnings("ignore:Heartbeat")
def test_a_copy_of_a_loop_of_your_own_has_the_retry_of_a_killed_trial(
    storage: Storage, other: Storage
) -> None:
    study = optuna.create_study(study_name="own", storage=storage.optuna, direction="maximize")
    storage.optuna.record_heartbeat(study.ask()._trial_id)
    with storage.optuna.engine.begin() as connection:
        long_ago = datetime.datetime(2000, 1, 1)
        connection.execute(HEARTBEATS.update().values(heartbeat=long_ago))
    copy_study(storage, "own", other)
    for one in (study, optuna.load_study(study_name="own", storage=other.optuna)):
        assert [trial.state.name for trial in one.trials] == ["FAIL", "WAITING"]
