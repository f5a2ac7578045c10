from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
import re
import runpy
import socket
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import optuna
import pytest
import sqlalchemy as sa
import torch
from optuna.artifacts import get_all_artifact_meta, upload_artifact
from optuna_dashboard import get_note, save_note
from optuna_dashboard._custom_plot_data import get_plotly_graph_objects
from PIL import Image
from tools import answer, refreshed

from hpo_mab._attributes import CONFIRMED_KEY, PUBLISHED_KEY
from hpo_mab.dashboard import _publish as publishing
from hpo_mab.dashboard import _serve
from hpo_mab.dashboard._files import (
    CURVES_FILE,
    Artifacts,
    listed_examples,
    pictures_path,
    save_pictures,
)
from hpo_mab.dashboard._publish import publish_comparison, publish_study, refresh
from hpo_mab.dashboard._serve import application, make_server
from hpo_mab.data import ImageData
from hpo_mab.search import StudySpec, TrialReporter
from hpo_mab.search._prepare import load_splits
from hpo_mab.storage import Storage, open_study, read_run
from hpo_mab.storage._lean import LeanStorage
from hpo_mab.storage._open import files_folder

COMPARED = {
    "advantage-examples",
    "advantage-seconds",
    "acceleration-examples",
    "acceleration-seconds",
    "fidelity",
    "cost-to-target",
}
OWN = {
    "incumbent-examples",
    "incumbent-seconds",
    "importance",
    "knobs",
    "reward-rate",
    "concentration",
}


def figures_of(study: optuna.Study) -> dict[str, dict]:
    attrs = study._storage.get_study_system_attrs(study._study_id)
    found = {name: json.loads(text) for name, text in get_plotly_graph_objects(attrs).items()}
    assert sorted(found) == sorted(found, key=lambda name: int(name.split("-")[0]))
    return {name.split("-", 1)[1]: figure for name, figure in found.items()}


def test_every_study_of_a_comparison_gets_note_figures_and_verdict(compared) -> None:
    assert publish_comparison(*compared) == ""
    for run in compared.runs:
        study = open_study(compared.storage, run.name)
        figures = figures_of(study)
        assert figures.keys() >= COMPARED | (OWN - {"importance"})
        for name, figure in figures.items():
            assert any(len(trace["x"]) for trace in figure["data"]), name
            assert figure["layout"]["title"]["text"], name
        note = get_note(study)
        assert note.startswith(f"# {run.name}")
        assert f"{run.best.value:.2%} validation accuracy" in note
        verdict = note.split("## Verdict")[1].split("## What was searched")[0]
        assert "- mab: same configuration" in verdict
        # Its definition has a path, which is not stored.
        assert "hpo-mab run" not in note
        assert f"repeat the command that made it with `--trials {2 * len(run.trials)}`" in note
        # By names, because a copy of the database may have other ids.
        both = "study=tiny-mab-seed0&study=tiny-uniform-seed0"
        assert f"/hpo-mab/compare?{both}&reference={compared.summary.reference}" in note
        words = "averaged weights up to evaluation 2, trained weights after it"
        assert f"| weights evaluated\N{EN SPACE} | {words} |" in note
        assert f"{len(run.trials)} trials saw 1,149 training examples " in note
        assert study.metric_names == ["validation accuracy"]


def test_a_comparison_without_pairs_leaves_no_figures_of_pairs(compared) -> None:
    publish_comparison(*compared)
    (contrast,) = compared.summary.contrasts
    without = dataclasses.replace(contrast, pairs=0, paired=())
    summary = dataclasses.replace(compared.summary, contrasts=(without,))
    assert publish_comparison(compared.storage, compared.runs, summary) == ""
    figures = figures_of(open_study(compared.storage, compared.runs[0].name))
    assert figures.keys() & COMPARED == {"cost-to-target"}


def test_pictures_stay_while_the_same_labels_are_the_most_suspicious(
    compared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPO_MAB_ARTIFACTS", str(tmp_path / "files"))
    run, storage = compared.runs[0], compared.storage
    images = load_splits(StudySpec.model_validate(run.spec)).train

    def note(**options: Any) -> str:
        assert publish_study(storage, run, **options) == ""
        return get_note(open_study(storage, run.name))

    assert "](/artifacts/" not in note()
    text = note(images=images)
    assert text.count("](/artifacts/1/") == 1
    first = listed_examples(storage.examples.load(1))[0]
    (row,) = [line for line in text.splitlines() if line.startswith(f"| {first}\N{EN SPACE}")]
    assert row.split(" | ")[1].strip() == images.classes[images.labels[first]]
    assert note().count("](/artifacts/1/") == 1
    with monkeypatch.context() as patch:
        # As if the dashboard had deleted the picture.
        patch.setattr("hpo_mab.dashboard._files._stored_file", lambda study, name: None)
        assert "]()" not in note()
    other = images.subset(torch.arange(len(images)).flip(0))
    assert "](/artifacts/" not in note(images=other)
    (png,) = (tmp_path / "files").iterdir()
    with Image.open(png) as picture:
        assert picture.size == (8 * 104 - 8, 96)
        shown = np.asarray(picture)[:, :96, 0]
    assert (shown[::12, ::12] == images.gather(torch.tensor([first]))[0, 0].numpy()).all()
    # All names together may be too long for a database.
    names = tuple(f"{number}-{'x' * 75}" for number in range(900))
    note(images=ImageData(images=images.images, labels=images.labels, classes=names))
    stored = storage.optuna.get_study_system_attrs(1)[PUBLISHED_KEY]["pictured"]
    assert len(json.dumps(stored)) < 2_000
    (tmp_path / "taken").write_text("")
    monkeypatch.setenv("HPO_MAB_ARTIFACTS", str(tmp_path / "taken" / "in"))
    assert publish_study(storage, run, images=images) == ""


def test_pruned_trials_say_why(compared) -> None:
    publish_comparison(*compared)
    pruned = [(run, t) for run in compared.runs for t in run.trials if t.state == "pruned"]
    assert pruned
    for run, trial in pruned:
        study = open_study(compared.storage, run.name)
        note = shown_notes(compared.storage, study)[trial.number]["body"]
        assert note.startswith("**Pruned**: ")
        assert f"best value up to evaluation {trial.curve[-1].index}; " in note
        assert "best 50% of" in note
        assert "hpo_mab:reason" not in trial.attrs
        # Each stored note would make the page of the study slower.
        attrs = study._storage.get_study_system_attrs(study._study_id)
        assert [key for key in attrs if "note_ver" in key] == ["dashboard:note_ver"]


def test_a_users_note_replaces_the_reason(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "own.db"))
    study = optuna.create_study(study_name="own", storage=storage.optuna)
    attrs = {"hpo_mab:reason": "diverged"}
    # JSON of this length is cut off.
    long = {"hpo_mab:pruned_because": {"step": 1, "evidence": "x" * 2_000}}
    for state, each in (("PRUNED", attrs), ("FAIL", attrs), ("PRUNED", {}), ("PRUNED", long)):
        study.add_trial(optuna.create_trial(state=optuna.trial.TrialState[state], user_attrs=each))
    shown = shown_notes(storage, study)
    assert [note["body"] for note in shown] == ["**Pruned**: diverged.", "", "", ""]
    trial = study.trials[0]._trial_id
    for number, text in enumerate(("**Pruned**: diverged. I lowered lr.", "", "Mine."), start=1):
        # The page requests the version after the one that it shows.
        sent = {"version": shown_notes(storage, study)[0]["version"] + 1, "body": text}
        path = f"/api/studies/{study._study_id}/{trial}/note"
        answer(application(storage), path, start=(start := mock.Mock()), method="PUT", body=sent)
        assert start.call_args.args[0].startswith("204")
        assert refresh(storage) == ""
        expected = {"version": number, "body": text or "**Pruned**: diverged."}
        assert shown_notes(storage, study)[0] == expected
    storage.close()


def test_the_note_says_all_that_was_searched(large: Storage) -> None:
    run = read_run(large, "large-mab-seed0")
    publish_study(large, run)
    note = get_note(open_study(large, run.name))
    _, _, below = note.partition("## What was searched")
    searched = below.split("## ")[0]
    assert set(run.best.params) == set(re.findall(r"^\| `(\S+)`", searched, re.MULTILINE))
    for name, value in run.best.params.items():
        (row,) = [line for line in searched.splitlines() if f"`{name}`" in line]
        assert f"{value:.4g}" in row or str(value) in row


def shown_notes(storage: Storage, study: optuna.Study) -> list[dict[str, Any]]:
    """The notes of a study's trials, as the dashboard sends them."""
    body = json.loads(answer(application(storage), f"/api/studies/{study._study_id}"))
    return [trial["note"] for trial in body["trials"]]


def test_text_that_users_write_is_kept(compared) -> None:
    run = compared.runs[0]
    study = open_study(compared.storage, run.name)
    publish_study(compared.storage, run)
    save_note(study, get_note(study) + "\nMy own words, *kept*.")
    publish_study(compared.storage, run)
    publish_study(compared.storage, run)
    note = get_note(study)
    assert note.count("My own words, *kept*.") == 1
    assert note.count(f"# {run.name}") == 1
    save_note(study, "Only mine.")
    publish_study(compared.storage, run)
    assert get_note(study).startswith(f"# {run.name}")
    assert get_note(study).rstrip().endswith("Only mine.")


def test_a_verdict_is_kept_when_one_study_continues(compared) -> None:
    publish_comparison(*compared)
    publish_study(compared.storage, compared.runs[0])
    note = get_note(open_study(compared.storage, compared.runs[0].name))
    assert "## Verdict" in note


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (RuntimeError("disk\nfull"), "RuntimeError: disk full"),
        # Without its statement.
        (sa.exc.OperationalError("DELETE", {}, Exception("deadlock\nof two")), "deadlock."),
    ],
)
def test_a_failure_is_reported_not_raised(
    compared, monkeypatch: pytest.MonkeyPatch, error: Exception, text: str
) -> None:
    monkeypatch.setattr(publishing, "study_figures", mock.Mock(side_effect=error))
    before = get_note(open_study(compared.storage, compared.runs[0].name))
    problem = publish_study(compared.storage, compared.runs[0])
    assert problem == f"'{compared.runs[0].name}': {text}"
    assert get_note(open_study(compared.storage, compared.runs[0].name)) == before


def test_a_thousand_trials_take_less_than_two_seconds(large: Storage) -> None:
    run = read_run(large, "large-mab-seed0")
    publish_study(large, run)  # Imports and first use are not what grows with trials.
    seconds = []
    while not seconds or (min(seconds) >= 2.0 and len(seconds) < 5):
        # Processor time: other programs count only as far as they take caches away.
        began = time.process_time()
        problem = publish_study(large, run)
        seconds.append(time.process_time() - began)
        assert problem == ""
    assert min(seconds) < 2.0
    study = open_study(large, run.name)
    figures = figures_of(study)
    assert figures.keys() >= OWN
    assert max(len(json.dumps(figure)) for figure in figures.values()) < 20_000


def test_large_curves_are_an_artifact_replaced_in_place(large: Storage) -> None:
    run = read_run(large, "large-mab-seed0")
    publish_study(large, run)
    publish_study(large, run)
    study = open_study(large, run.name)
    (meta,) = get_all_artifact_meta(study)
    folder = files_folder(large, "artifacts")
    assert folder == Path(str(large.url.database)).with_name("large_artifacts")
    with (folder / meta.artifact_id).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(len(trial.curve) for trial in run.trials)
    last = run.trials[-1]
    assert float(rows[-1]["accuracy"]) == last.curve[-1].accuracy
    assert rows[-1]["trial"] == str(last.number)


def test_an_artifact_that_the_dashboard_has_deleted_is_made_again(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "own.db"))
    study = optuna.create_study(study_name="own", storage=storage.optuna)
    store = Artifacts(storage)
    save_pictures(study, [torch.zeros(1, 8, 8, dtype=torch.uint8)], store)
    (meta,) = get_all_artifact_meta(study)
    # As the dashboard does; the file may be in another folder, too.
    (files_folder(storage, "artifacts") / meta.artifact_id).unlink()
    store.remove(meta.artifact_id)
    key = f"artifacts:{meta.artifact_id}"
    storage.optuna.set_study_system_attr(study._study_id, key, json.dumps(None))
    assert pictures_path(study) == ""
    save_pictures(study, [torch.zeros(1, 8, 8, dtype=torch.uint8)], store)
    assert pictures_path(study).startswith(f"/artifacts/{study._study_id}/")
    storage.close()


def test_a_copy_by_optuna_writes_files_of_its_own(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "own.db"))
    study, store = optuna.create_study(study_name="own", storage=storage.optuna), Artifacts(storage)
    black = torch.zeros(1, 8, 8, dtype=torch.uint8)
    save_pictures(study, [black], store)
    (file,) = files_folder(storage, "artifacts").iterdir()
    before = file.read_bytes()
    optuna.copy_study(
        from_study_name="own",
        from_storage=storage.optuna,
        to_storage=storage.optuna,
        to_study_name="copy",
    )
    # As the dashboard does when it deletes one of them.
    store.remove(file.name)
    copy = open_study(storage, "copy")
    for _ in range(2):
        save_pictures(copy, [black + 255], store)
        assert file.read_bytes() == before
    # Both then replace their own file.
    save_pictures(study, [black + 127], store)
    assert pictures_path(study).endswith(file.name)
    assert len(list(files_folder(storage, "artifacts").iterdir())) == 2
    storage.close()


def test_a_database_that_may_only_be_read_keeps_its_files(storage: Storage) -> None:
    study, store = optuna.create_study(study_name="own", storage=storage.optuna), Artifacts(storage)
    save_pictures(study, [torch.zeros(1, 8, 8, dtype=torch.uint8)], store)
    (file,) = files_folder(storage, "artifacts").iterdir()
    engine = storage.optuna.engine
    engine.dispose()
    sa.event.listen(engine, "connect", lambda made, _: made.execute("PRAGMA query_only = 1"))
    with pytest.raises(sa.exc.OperationalError, match="readonly"):
        store.remove(file.name)
    assert file.exists()


def test_an_html_file_among_the_artifacts_stays_as_it_is(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "own.db"))
    study = optuna.create_study(study_name="own", storage=storage.optuna)
    path = tmp_path / "page.html"
    path.write_bytes("<head></head>é".encode("latin-1"))
    known = upload_artifact(
        artifact_store=Artifacts(storage),
        file_path=str(path),
        study_or_trial=study,
        mimetype="text/html",
    )
    served = application(storage)
    file = answer(served, f"/artifacts/{study._study_id}/{known}", start=(start := mock.Mock()))
    assert file == path.read_bytes()
    # Its scripts cannot delete studies.
    (policy,) = (value for name, value in start.call_args.args[1] if name.endswith("-Policy"))
    assert policy.startswith("sandbox ")
    assert "same-origin" not in policy
    assert b"user-defined-plot" in answer(served, "/dashboard")
    storage.close()


def test_small_studies_have_no_file_of_curves(compared) -> None:
    publish_study(compared.storage, compared.runs[0])
    artifacts = get_all_artifact_meta(open_study(compared.storage, compared.runs[0].name))
    assert CURVES_FILE not in [artifact.filename for artifact in artifacts]


def test_refresh_publishes_studies_with_new_trials_only(
    compared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy.db"  # Other tests must not see the trials added here.
    with (
        contextlib.closing(sqlite3.connect(str(compared.storage.url.database))) as source,
        contextlib.closing(sqlite3.connect(copy)) as target,
    ):
        source.backup(target)  # The journal next to the file belongs to it.
    compared = compared._replace(storage=Storage(f"sqlite:///{copy}"))
    publish_comparison(*compared)
    assert refreshed(compared.storage) == ([], "")
    name = compared.runs[0].name
    study = open_study(compared.storage, name)
    drawn = figures_of(study)
    study.set_user_attr(CONFIRMED_KEY, {str(compared.runs[0].best.number): [0.5]})
    assert refreshed(compared.storage) == ([name], "")
    # Those of both arms.
    assert figures_of(study) == drawn
    assert f"**trial {compared.runs[0].best.number}** has the highest" in get_note(study)
    assert "Trials have ended since" not in get_note(study)
    assert refreshed(compared.storage) == ([], "")
    optuna.create_study(study_name="someone else's", storage=compared.storage.optuna)
    study.add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState.WAITING))
    assert refreshed(compared.storage) == ([], "")  # A waiting trial is no news.
    with monkeypatch.context() as patch:
        # It takes seconds in a large database.
        patch.setattr(LeanStorage, "get_all_trials", mock.Mock(side_effect=AssertionError))
        assert refreshed(compared.storage) == ([], "")
    study.add_trial(optuna.trial.create_trial(value=0.999))
    assert refreshed(compared.storage) == ([name], "")
    assert "99.90% validation accuracy" in get_note(study)
    assert "Trials have ended since: the verdict" in get_note(study)
    assert refreshed(compared.storage) == ([], "")
    compared.storage.close()


def test_an_error_in_one_study_hides_no_other(compared) -> None:
    names = [run.name for run in compared.runs]
    for name in names:
        study = open_study(compared.storage, name)
        study._storage.set_study_system_attr(study._study_id, PUBLISHED_KEY, {})
    study = open_study(compared.storage, names[0])
    stored = study.user_attrs["hpo_mab:definition"]
    study.set_user_attr("hpo_mab:definition", {**stored, "version": 99})
    written, problem = refreshed(compared.storage)
    study.set_user_attr("hpo_mab:definition", stored)
    assert set(names[1:]) <= set(written)
    assert names[0] not in written
    assert problem.startswith(f"'{names[0]}': ")


def test_a_study_of_own_loops_gets_its_page_however_many_trials_are_complete(
    tmp_path: Path,
) -> None:
    storage = Storage(str(tmp_path / "own.db"))

    def objective(trial: optuna.Trial) -> float:
        trial.suggest_float("lr", 0.1, 1.0)
        with TrialReporter(
            trial, budget_examples=100, evaluations=1, curves=storage.curves
        ) as reporter:
            reporter.step(100)
            reporter.report(accuracy=0.5)
        return reporter.accuracy

    study = optuna.create_study(study_name="own", storage=storage.optuna, direction="maximize")
    # One whose loop ended before it had a reporter.
    study.add_trial(optuna.create_trial(state=optuna.trial.TrialState.FAIL))
    study.optimize(objective, n_trials=11)
    assert refreshed(storage) == (["own"], "")
    storage.close()


def test_the_server_listens_on_ipv6(compared) -> None:
    with contextlib.closing(socket.socket(socket.AF_INET6)) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            pytest.skip("this machine has no IPv6")
    server = make_server(application(compared.storage), host="::1", port=0)
    assert server.server_address[0] == "::1"
    server.server_close()


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("127.0.0.1:8080", "200 OK"),
        ("localhost", "200 OK"),
        ("[::1]:1", "200 OK"),
        ("other.example:8080", "403 Forbidden"),
        ("[", "403 Forbidden"),
        ("", "403 Forbidden"),
    ],
)
def test_only_this_machines_own_names_are_answered(compared, name: str, status: str) -> None:
    server = make_server(application(compared.storage), host="127.0.0.1", port=0)
    server.server_close()
    answer(server.get_app(), "/api/meta", start=(start := mock.Mock()), host=name)
    assert start.call_args.args[0] == status


def test_a_port_in_use_is_not_shared_on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("os.name", "nt")
        made = runpy.run_path(_serve.__file__)
    assert not made["_ThreadedServer"].allow_reuse_address


def test_a_folder_that_cannot_be_written_costs_no_note(
    large: Storage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HPO_MAB_ARTIFACTS", str(tmp_path / "file" / "artifacts"))
    run = read_run(large, "large-mab-seed0")
    study = open_study(large, run.name)
    save_note(study, "")
    assert "artifacts" in publish_study(large, run)
    assert "## What ran" in get_note(study)


def test_figures_of_a_comparison_stay_if_curves_cannot_be_saved(
    compared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "LARGE", 1)
    monkeypatch.setattr(publishing, "save_curves", mock.Mock(side_effect=OSError("disk full")))
    assert "disk full" in publish_comparison(*compared)
    study = open_study(compared.storage, compared.runs[0].name)
    drawn = figures_of(study)
    # It tries again.
    assert "disk full" in refresh(compared.storage)
    assert figures_of(study) == drawn


def test_two_publishers_take_turns(large: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    run = read_run(large, "large-mab-seed0")
    lock, write, held, seen = large.lock, publishing._write, [], []

    @contextlib.contextmanager
    def watched_lock(name: str) -> Iterator[None]:
        with lock(name):
            held.append(name)
            yield
            held.pop()

    def watched_write(*given: Any) -> None:
        seen.append(list(held))
        write(*given)

    monkeypatch.setattr(large, "lock", watched_lock)
    monkeypatch.setattr(publishing, "_write", watched_write)
    assert publish_study(large, run) == ""
    assert seen == [[run.name]] * 2
