"""``hpo-mab studies`` of studies of any origin."""

from __future__ import annotations

import json
import math

import optuna


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

    def refuse(constant):
        raise AssertionError(constant)

    rows = json.loads(out, parse_constant=refuse)
    assert {row["study"]: row["best"] for row in rows} == {
        "loss": 12.5,
        "diverged": None,
        "two": None,
    }
