"""``hpo-mab studies``: units, and why a trial was pruned or failed."""

from __future__ import annotations

import json
import math
from typing import Any

import optuna
import pytest

from hpo_mab.storage import Storage

Cli = Any


def test_studies_that_are_not_ours_keep_their_unit(tmp_path, cli):
    url = f"sqlite:///{tmp_path / 'own.db'}"
    storage = optuna.storages.RDBStorage(url)
    for name, value in (("loss", 12.5), ("diverged", math.inf)):
        study = optuna.create_study(study_name=name, storage=storage)
        study.add_trial(optuna.create_trial(value=value))
    optuna.create_study(
        study_name="two", storage=storage, directions=["minimize", "maximize"]
    ).add_trial(optuna.create_trial(values=[1.0, 2.0]))
    _, out, _ = cli("studies", "--storage", url)
    assert "12.5 " in out
    assert "%" not in out
    _, out, _ = cli("studies", "--storage", url, "--json")
    rows = json.loads(out, parse_constant=pytest.fail)
    assert {row["study"]: row["best"] for row in rows} == {
        "loss": 12.5,
        "diverged": None,
        "two": None,
    }


def test_a_trial_shows_why_it_was_pruned(cli: Cli, tiny: str) -> None:
    given = ("--trials", "6", "--pruner", "top_k", "--set", "pruner.k=1", "--quiet")
    assert cli("run", tiny, *given)[0] == 0
    status, out, err = cli("studies", "tiny-mab-seed0", "--trial", "2")
    assert status == 0, err
    lines = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert lines["Trial"].startswith("2 of tiny-mab-seed0, pruned")
    assert lines["Parameters"].startswith("lr = ")
    assert lines["Evaluations"].startswith("1: ")
    value = lines["Evaluations"].removeprefix("1: ")
    assert lines["Why"] == (
        f"trials stop at evaluation 1, where this one had {value}; the best 1 are trained in full."
    )
    facts = json.loads(cli("studies", "tiny-mab-seed0", "--trial", "2", "--json")[1])
    assert facts["pruned_because"]["top_k"] == 1
    assert facts["why"] == lines["Why"]
    assert "Why" not in cli("studies", "tiny-mab-seed0", "--trial", "0")[1]
    assert "9" in cli.refusal("studies", "tiny-mab-seed0", "--trial", "9")
    assert "pruned" in cli("studies", "tiny-mab-seed0")[1]
    assert cli("studies", "--trial", "0")[0] == 2


@pytest.mark.parametrize(
    ("attrs", "why"),
    [
        ({"hpo_mab:interrupted": True}, "it was interrupted."),
        ({"hpo_mab:lost": True}, "its worker was lost."),
        ({"hpo_mab:lost": True, "hpo_mab:reason": "no space"}, "no space"),
        ({}, None),
    ],
)
def test_a_trial_shows_why_it_failed(cli: Cli, attrs: dict[str, Any], why: str | None) -> None:
    storage = Storage("hpo_mab.db")
    study = optuna.create_study(study_name="own", storage=storage.optuna)
    failed = optuna.create_trial(state=optuna.trial.TrialState.FAIL, user_attrs=attrs)
    study.add_trial(failed)
    storage.close()
    assert json.loads(cli("studies", "own", "--trial", "0", "--json")[1])["why"] == why
