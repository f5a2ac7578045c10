"""``hpo-mab replay``: the comparison with the record, and networks that it saves."""

from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import torch

from hpo_mab import _machine
from hpo_mab._errors import ArgumentError
from hpo_mab.data import Normalization
from hpo_mab.search import load_network, load_spec
from hpo_mab.search._prepare import load_splits
from hpo_mab.storage import Storage, read_run
from hpo_mab.training import Evaluation, Training, TrainingDiverged

Cli = Any


def test_a_difference_within_the_tolerance_is_none(cli: Cli, study: str) -> None:
    assert cli("replay", study, "0")[0] == 0
    with sqlite3.connect("hpo_mab.db") as connection:
        connection.execute("UPDATE hpo_mab_curves SET accuracy = accuracy + 0.005")
    connection.close()
    assert cli("replay", study, "0")[0] == 1
    assert cli("replay", study, "0", "--tolerance", "0.01")[0] == 0


def test_a_replay_says_what_differs_and_what_is_other_here(
    cli: Cli, study: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with sqlite3.connect("hpo_mab.db") as connection:
        connection.execute("UPDATE hpo_mab_curves SET train_loss = train_loss + 1e-7")
    connection.close()
    status, out, _ = cli("replay", study, "0")
    assert (status, out.splitlines()[-1]) == (
        1,
        f"Trial 0 of {study} has the same accuracies, but other losses, perhaps by rounding.",
    )
    there = _machine.environment()
    packages = {**there["packages"], "torch": "9.0"}
    here = {**there, "cpu": "Abacus", "gpus": ["A", "B"], "cpu_cores": 1, "packages": packages}
    monkeypatch.setattr(_machine, "environment", lambda: here)
    changes = cli("replay", study, "0").out.splitlines()[-1]
    for name, now in (("cpu", "Abacus"), ("gpus", "A, B"), ("torch", "9.0")):
        before = there["packages"]["torch"] if name == "torch" else there[name]
        assert f"{name} {before or 'none'}, here {now}" in changes
    assert "cpu_cores" not in changes


def test_ctrl_c_in_a_replay_is_one_line(
    cli: Cli, study: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hpo_mab.search.replay", interrupt)
    result = cli("replay", study, "0")
    assert (result.status, result.err.splitlines()[-1]) == (130, "hpo-mab: interrupted.")


def test_the_best_trials_network_is_saved_and_loaded(cli: Cli, tiny: str, tmp_path: Path) -> None:
    assert cli("run", tiny, "--trials", "3", "--quiet")[0] == 0
    name = "tiny-mab-seed0"
    out = cli.out("replay", name, "best", "--save", "best.pt", "--json")
    saved = torch.load("best.pt", weights_only=True)
    assert (saved["study"], saved["trial"]) == (name, json.loads(out)["trial"])
    storage = Storage(f"sqlite:///{tmp_path / 'hpo_mab.db'}")
    best = read_run(storage, name).best
    storage.close()
    assert best is not None
    assert (saved["trial"], saved["accuracy"]) == (best.number, best.value)
    splits = load_splits(load_spec(tiny))
    assert saved["classes"] == list(splits.train.classes)
    inputs = Normalization(saved["mean"], saved["std"])(splits.validation.images)
    with torch.no_grad():
        hits = load_network("best.pt")(inputs).argmax(1) == splits.validation.labels
    assert hits.float().mean().item() == pytest.approx(best.value)


_PARTS = """
import torch
from torch import nn
from torch.utils.data import TensorDataset

def load():
    labels, generator = torch.arange(300) % 3, torch.Generator().manual_seed(0)
    inputs = torch.randn(300, 5, generator=generator) + labels[:, None]
    return {"train": TensorDataset(inputs, labels)}

class Net(nn.Sequential):
    def __init__(self, input_shape, num_classes, *, width: int):
        super().__init__(nn.Linear(input_shape[0], width), nn.ReLU(), nn.Linear(width, num_classes))
"""


def test_an_own_network_is_saved_with_its_options(
    cli: Cli, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "saved_parts.py").write_text(_PARTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    own = ["data.name=saved_parts:load", "model.name=saved_parts:Net"]
    own.append("model.width={ low = 3, high = 9 }")
    options = [part for each in own for part in ("--set", each)]
    assert cli("run", tiny, "--trials", "2", "--quiet", *options)[0] == 0
    name = "tiny-saved_parts:load-mab-seed0"
    assert cli("replay", name, "best", "--save", "best.pt")[0] == 0
    saved = torch.load("best.pt", weights_only=True)
    assert 3 <= saved["options"]["width"] <= 9
    assert "mean" not in saved
    network = load_network("best.pt")
    assert network[0].out_features == saved["options"]["width"]
    assert network(torch.zeros(1, 5)).shape == (1, 3)


def test_a_replay_that_diverges_saves_no_network(
    cli: Cli, study: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def diverge(self: Training) -> Evaluation:
        raise TrainingDiverged(3, "the loss is nan")

    monkeypatch.setattr(Training, "__next__", diverge)
    err = cli.refusal("replay", study, "best", "--save", "best.pt")
    assert "The replay has diverged, so there is no network to save." in err
    assert not (tmp_path / "best.pt").exists()


def test_what_cannot_be_saved_or_loaded_is_refused(
    cli: Cli, study: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    err = cli.refusal("replay", study, "0", "--save", "no/such/folder/best.pt")
    assert "is not a writable folder" in err
    Path("kept.pt").write_text("mine")
    with monkeypatch.context() as patch:
        # As for a read-only file; root may write every file.
        patch.setattr(
            os, "access", lambda path, mode: mode != os.W_OK or Path(path).name != "kept.pt"
        )
        err = cli.refusal("replay", study, "0", "--save", "kept.pt")
    assert "kept.pt is read-only; give another file." in err
    assert Path("kept.pt").read_text() == "mine"
    with pytest.raises(ArgumentError, match="no file of 'hpo-mab replay --save'"):
        load_network("kept.pt")
    with pytest.raises(FileNotFoundError):
        load_network("missing.pt")
    assert cli("replay", study, "0", "--save", "kept.pt")[0] == 0
    saved = torch.load("kept.pt", weights_only=True)
    torch.save({**saved, "options": {"gone": 1}}, "changed.pt")
    with pytest.raises(ArgumentError, match=r"Network 'mlp' here differs from the one in"):
        load_network("changed.pt")
    err = cli.refusal("replay", study, "first")
    assert "must be a trial's number or 'best', got 'first'" in err
    torch.save({"weights": {}}, "other.pt")
    with pytest.raises(ArgumentError, match="no file of 'hpo-mab replay --save'"):
        load_network("other.pt")


def test_a_database_is_not_overwritten(cli: Cli, study: str) -> None:
    err = cli.refusal("replay", study, "0", "--save", "hpo_mab.db")
    assert "hpo_mab.db is a database; give another file." in err
