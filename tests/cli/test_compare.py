"""``hpo-mab compare`` and ``dashboard``, and the commands that are printed next."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
from tools import next_commands

from hpo_mab._attributes import PUBLISHED_KEY
from hpo_mab.search._observer import Observer
from hpo_mab.search._runner import RunHere
from hpo_mab.search._target import StudyTarget
from hpo_mab.storage import Storage, open_study, study_names

Cli = Any


def test_compare_reuses_what_is_stored_and_writes_record_and_report(
    cli: Cli, tiny: str, tmp_path: Path
) -> None:
    assert cli("run", tiny, "--quiet")[0] == 0
    status, out, err = cli("compare", tiny, "--record", "record.json", "--report", "report.html")
    assert status == 0
    assert err.startswith("digits: 1,149 training, 288 validation, 360 test images, 10 classes")
    # The bandit's study was there: only the uniform one ran.
    assert "tiny-uniform-seed0: 4/4" in err
    assert "tiny-mab-seed0: 4/4" not in err
    assert "mab" in out
    tables, _, verdict = out.partition("\nVerdict\n")
    assert "mab against uniform on digits, 1 seed" in verdict
    assert verdict.count("cannot tell") >= 3
    # The verdict must not scroll away behind tables; it counts one seed and asks for more. Seconds
    # of a busy machine take more digits, and then cells more lines.
    assert out.count("\n") < 50
    assert "Fidelity" not in tables
    assert f"hpo-mab compare {tiny} --seeds 5 --record record.json --report report.html" in verdict
    assert err.count("re-training its best configuration, 1 of 1") == 2
    every = cli.out("compare", tiny, "--verbose")
    assert "Fidelity of mab" in every
    assert "Cost relative to" in every
    assert "/hpo-mab/compare?study=tiny-mab-seed0&study=tiny-uniform-seed0&reference=uniform" in out

    record = json.loads((tmp_path / "record.json").read_text())
    assert {study["arm"] for study in record["studies"]} == {"mab", "uniform"}
    assert [len(study["trials"]) for study in record["studies"]] == [4, 4]
    assert all(len(entry["test_accuracies"]) == 1 for entry in record["retrained"])
    pairs = record["summary"]["contrasts"][0]["pairs"]
    assert pairs == 2
    assert "<html" in (tmp_path / "report.html").read_text()[:200]

    # All is stored now: nothing runs, and the record says the same.
    status, again, err = cli("compare", tiny, "--json")
    assert status == 0
    assert err == ""
    assert json.loads(again)["summary"] == record["summary"]


@pytest.fixture
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ends ``hpo-mab dashboard`` as soon as it would serve."""
    from wsgiref.simple_server import WSGIServer

    monkeypatch.setattr(WSGIServer, "serve_forever", lambda self: None)


def _follow(cli: Cli, command: list[str]) -> tuple[str, str]:
    """Run a printed command; what it printed."""
    port = ["--port", "0"] if command[0] == "dashboard" else []
    status, out, err = cli(*command, *port)
    assert status == 0, (command, err)
    return out, err


@pytest.mark.parametrize(
    "given",
    [
        (),
        ("--name", "wider", "--set", "optimizer.momentum={ low = 0.5, high = 0.95 }"),
        ("--trials", "2", "--storage", "sqlite:///other.db", "--seed", "3"),
        ("--sampler", "gradnorm", "--pruner", "hyperband", "--epochs", "0.5", "--workers", "1"),
    ],
    ids=["plain", "name", "elsewhere", "other"],
)
@pytest.mark.usefixtures("no_server")
def test_each_printed_command_works_and_keeps_what_was_given(
    cli: Cli, tiny: str, given: tuple[str, ...]
) -> None:
    few = ("--set", "compare.retrain=0", *(() if "--trials" in given else ("--trials", "2")))
    # The names that a comparison takes by default are taken by another definition.
    other = ("--set", "optimizer.lr=0.1", "--trials", "1", "--quiet")
    assert cli("run", tiny, "--sampler", "uniform", *other)[0] == 0
    status, out, err = cli("run", tiny, *given, *few)
    assert status == 0, err
    commands = next_commands(out)
    assert [command[0] for command in commands] == [
        "compare",
        "dashboard",
        "confirm",
        "replay",
        "run",
    ]
    for command in (commands[0], commands[-1]):
        # What is doubled is doubled.
        assert {word for word in (*given, *few) if word not in command} <= {"2"}
    out, err = _follow(cli, commands[0])
    # The study that was run is an arm: only the other one is run.
    assert err.count(": 2/2 trials") == 1
    for command in commands[1:]:
        _follow(cli, command)
    more = next_commands(out)
    assert [command[0] for command in more] == ["dashboard", "compare"]
    assert more[1][more[1].index("--seeds") + 1] == "5"
    assert ("--trials", "2") in set(zip(more[1], more[1][1:], strict=False))


def test_every_arm_is_checked_before_the_data_and_before_any_trains(cli: Cli, tiny: str) -> None:
    one = ("--trials", "1", "--quiet")
    # The last arm of the last seed.
    assert cli("run", tiny, "--sampler", "uniform", "--seed", "1", "--epochs", "2", *one)[0] == 0
    status, out, err = cli("compare", tiny, "--seeds", "2", "--trials", "2")
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert "'tiny-uniform-seed1' exists with another definition" in err
    assert "Give --name" in err
    assert cli("studies", "--json")[1].count('"study"') == 1


def test_workers_run_the_trials_of_every_arm(
    cli: Cli, tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched: list[tuple[int, str]] = []

    class Launcher:
        """Runs all in this process."""

        def __init__(self, storage: Storage, *, devices: Sequence[str], **options: Any) -> None:
            self._others = len(devices)

        def __call__(self, study: optuna.Study, observer: Observer, run_here: RunHere) -> bool:
            launched.append((self._others, study.study_name))
            return run_here(observer)

    monkeypatch.setattr("hpo_mab.workers.ProcessLauncher", Launcher)
    few = ("--trials", "2", "--set", "compare.retrain=0")
    status, _, err = cli("compare", tiny, "--workers", "2", "--json", *few)
    assert status == 0, err
    assert launched == [(1, "tiny-mab-seed0"), (1, "tiny-uniform-seed0")]


def test_a_target_of_more_trials_is_kept_and_named(cli: Cli, tiny: str) -> None:
    few = ("--trials", "2", "--set", "compare.retrain=0")
    assert cli("run", tiny, "--trials", "3", "--quiet")[0] == 0
    status, out, err = cli("compare", tiny, *few)
    assert status == 0, err
    assert "Unequal studies; finished trials by seed: 3 in mab, 2 in unif" in " ".join(out.split())
    storage = Storage("sqlite:///hpo_mab.db", create=False)
    assert StudyTarget.load(open_study(storage, "tiny-mab-seed0")).trials == 3
    storage.close()


def test_an_arm_without_pruning_is_compared_where_the_definition_says_so(
    cli: Cli, tiny: str
) -> None:
    given = ("--set", "compare.unpruned=true", "--trials", "4", "--set", "compare.retrain=0")
    assert "uniform sampling and without pruning" in cli("run", tiny, *given)[1]
    out = cli.out("compare", tiny, *given, "--json")
    studies = {study["arm"]: study for study in json.loads(out)["studies"]}
    assert list(studies) == ["mab", "uniform", "unpruned"]
    spec = studies["unpruned"]["spec"]
    assert (spec["sampler"]["kind"], spec["pruner"]["kind"]) == ("uniform", "none")
    assert [trial["state"] for trial in studies["unpruned"]["trials"]] == ["complete"] * 4


def test_arms_differ_in_sampler_and_pruner(cli: Cli, tiny: str, tmp_path: Path) -> None:
    path = tmp_path / tiny
    path.write_text(
        path.read_text() + '[compare.arms.bandit.sampler]\nkind = "mab"\n'
        '[compare.arms.bandit.pruner]\nkind = "none"\n'
        '[compare.arms.hyperband.sampler]\nkind = "uniform"\n'
        '[compare.arms.hyperband.pruner]\nkind = "hyperband"\n'
    )
    # It says nothing against running the study.
    assert cli("run", tiny)[0] == 0
    err = cli.refusal("compare", tiny)
    assert "compare.reference 'uniform' is not an arm" in err
    given = ("--set", "compare.reference=hyperband", "--sampler", "gradnorm")
    status, out, err = cli("compare", tiny, "--json", *given)
    assert status == 0
    assert "sampler has no effect: every arm of the definition has its own" in err
    assert "pruner has no effect" not in err
    studies = {study["arm"]: study for study in json.loads(out)["studies"]}
    assert studies.keys() == {"bandit", "hyperband"}
    assert studies["bandit"]["spec"]["pruner"]["kind"] == "none"
    assert studies["hyperband"]["spec"]["sampler"]["kind"] == "uniform"


def test_no_more_seeds_are_suggested_with_a_reference_study_which_has_one(
    cli: Cli, tiny: str
) -> None:
    one = ("--sampler", "uniform", "--name", "first", "--pruner", "none", "--quiet")
    assert cli("run", tiny, *one)[0] == 0
    given = ("--pruner", "advantage", "--set", "compare.retrain=0")
    out = cli.out("compare", tiny, *given, "--set", "pruner.reference=first")
    assert [command[0] for command in next_commands(out)] == ["dashboard"]


@pytest.mark.usefixtures("no_server")
def test_the_dashboard_keeps_files_where_the_user_says(
    cli: Cli, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its pictures of suspicious labels.
    few = ("--trials", "1", "--set", "model.name=small_cnn", "--quiet")
    monkeypatch.setenv("HPO_MAB_ARTIFACTS", "files")
    assert cli("run", tiny, *few)[0] == 0
    assert [path.name for path in tmp_path.glob("*_artifacts")] == []
    assert len(list((tmp_path / "files").iterdir())) == 1
    # To look at a study no folder is made.
    (tmp_path / "taken").touch()
    monkeypatch.setenv("HPO_MAB_ARTIFACTS", "taken/files")
    assert cli("dashboard", "--port", "0")[0] == 0


@pytest.mark.usefixtures("no_server")
def test_the_dashboard_says_once_that_it_updates_its_pages(cli: Cli, tiny: str) -> None:
    for seed in ("0", "1"):
        assert cli("run", tiny, "--trials", "1", "--seed", seed, "--quiet")[0] == 0
    storage = Storage("sqlite:///hpo_mab.db")
    for name in study_names(storage):
        study = open_study(storage, name)
        study._storage.set_study_system_attr(study._study_id, PUBLISHED_KEY, {})
    storage.close()
    _, _, err = cli("dashboard", "--port", "0")
    assert err.count("Updating notes and figures of studies with new trials") == 1
    assert cli("dashboard", "--port", "0")[2] == ""


def test_the_dashboard_serves_the_storage_on_loopback_and_a_free_port(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    storage = Storage(url)
    optuna.create_study(study_name="stored", storage=storage.optuna)
    storage.close()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "hpo_mab", "dashboard", "--storage", url]
        with subprocess.Popen(
            [*command, "--port", str(port)], stdout=subprocess.PIPE, text=True
        ) as server:
            try:
                assert server.stdout is not None
                line = server.stdout.readline()
                address = line.split()[-1]
                assert address.startswith("http://127.0.0.1:")
                assert f":{port}/" not in address
                host, ours = address.removeprefix("http://").rstrip("/").split(":")
                with (
                    socket.create_connection((host, int(ours))),  # Idle: it must not stall others.
                    urllib.request.urlopen(f"{address}api/studies", timeout=240) as answer,
                ):
                    assert '"stored"' in answer.read().decode()
            finally:
                server.terminate()
