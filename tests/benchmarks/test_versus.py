"""Both sides of `benchmarks/versus.py study` do the same work."""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import opponent
import optuna
import pytest
import versus

from hpo_mab.search import load_spec


@pytest.fixture(autouse=True)
def _data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HPO_MAB_DATA", str(tmp_path))


def test_both_sides_have_the_seed_and_no_pruner(tmp_path: Path) -> None:
    script = versus.commands(opponent.Task(seed=3), tmp_path)["opponent"]
    ours = load_spec(tmp_path / "task.toml")
    assert script[script.index("--seed") + 1] == str(ours.seed) == "3"
    assert ours.pruner.kind == "none"


def test_the_script_prunes_no_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optuna.logging.set_verbosity", lambda _: None)

    def worse_each_time(trial: optuna.Trial) -> float:
        trial.report(-trial.number, step=2)
        assert not trial.should_prune()
        return -trial.number

    worse_each_time.task = opponent.Task(trials=6)
    assert opponent.study(worse_each_time)["trials"] == 6


def test_the_first_turn_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = itertools.count(1)
    monkeypatch.setattr(versus, "timed", lambda *_: (next(seconds), 1, {"best": None}))
    figures = versus.studies(opponent.Task(), argparse.Namespace(rounds=2))
    assert figures["wall"] == {"opponent": [4, 7], "ours, uniform": [5, 8], "ours, mab": [6, 9]}
