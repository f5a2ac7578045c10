"""Tests."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import optuna

from hpo_mab.storage import Storage

Cli = Callable[..., "tuple[int, str, str]"]


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
    tables, _, told = out.partition("\nVerdict\n")
    assert "uniform on digits" in told
    # The verdict must not scroll away behind tables; it counts one seed and asks for more.
    assert out.count("\n") < 45
    assert "Fidelity" not in tables
    assert f"hpo-mab compare {tiny} --seeds 5" in told
    assert err.count("training its best configuration again, 1 of 1") == 2
    status, every, _ = cli("compare", tiny, "--verbose")
    assert status == 0
    assert "Fidelity of mab" in every
    assert "Cost relative to" in every
    assert "/hpo-mab/compare?ids=1,2" in out

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


def test_arms_differ_in_sampler_and_pruner(cli: Cli, tiny: str, tmp_path: Path) -> None:
    path = tmp_path / tiny
    path.write_text(
        path.read_text() + '[compare.arms.bandit.sampler]\nkind = "mab"\n'
        '[compare.arms.bandit.pruner]\nkind = "none"\n'
        '[compare.arms.hyperband.sampler]\nkind = "uniform"\n'
        '[compare.arms.hyperband.pruner]\nkind = "hyperband"\n'
    )
    status, _, err = cli("compare", tiny)
    assert status == 2
    assert "compare.reference 'uniform' is not an arm" in err
    status, out, _ = cli("compare", tiny, "--json", "--set", "compare.reference=hyperband")
    assert status == 0
    studies = {study["arm"]: study for study in json.loads(out)["studies"]}
    assert studies.keys() == {"bandit", "hyperband"}
    assert studies["bandit"]["spec"]["pruner"]["kind"] == "none"
    assert studies["hyperband"]["spec"]["sampler"]["kind"] == "uniform"


def test_a_file_that_cannot_be_written_is_one_line(cli: Cli, tiny: str) -> None:
    status, _, err = cli("compare", tiny, "--quiet", "--record", "no/such/folder/x.json")
    assert status == 2
    assert "no/such/folder/x.json cannot be written" in err


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
