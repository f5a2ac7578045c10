from __future__ import annotations

from collections.abc import Callable

import pytest
import sqlalchemy as sa

from hpo_mab._errors import ArgumentError, StorageError, UnknownNameError
from hpo_mab.search import StudyRunner, StudySpec, join_study, replay
from hpo_mab.storage import Definition, MissingCurvesWarning, Storage, open_study

Make = Callable[..., StudySpec]


def test_a_trial_comes_out_the_same_from_its_record_alone(storage: Storage, tiny: Make) -> None:
    spec = tiny(sampler={"kind": "mab"}, budget={"trials": 3})
    StudyRunner(spec, storage).run("study", score=False)
    found = replay(storage, "study", 2)
    assert len(found.curve) == len(found.trial.curve) > 0
    assert found.is_identical
    assert found.largest_difference == 0.0

    with storage.optuna.engine.begin() as connection:
        connection.execute(
            sa.text(
                "UPDATE hpo_mab_curves SET accuracy = accuracy + 0.25 WHERE curve = (SELECT "
                "value_json FROM trial_system_attributes WHERE trial_id = 3 "
                "AND \"key\" = 'hpo_mab:curve')"
            )
        )
    found = replay(storage, "study", 2)
    assert not found.is_identical
    assert found.largest_difference == pytest.approx(0.25)


def test_what_cannot_be_replayed_is_said(storage: Storage, tiny: Make) -> None:
    runner = StudyRunner(tiny(budget={"trials": 1}), storage)
    runner.run("study", score=False)
    with pytest.raises(UnknownNameError, match="Unknown trial '7'"):
        replay(storage, "study", 7)
    with storage.optuna.engine.begin() as connection:
        connection.execute(sa.text("DELETE FROM hpo_mab_curves"))
    with (
        pytest.warns(MissingCurvesWarning),
        pytest.raises(ArgumentError, match="no learning curve"),
    ):
        replay(storage, "study", 0)


def test_other_data_here_than_the_study_was_made_on_is_refused(
    storage: Storage, tiny: Make
) -> None:
    StudyRunner(tiny(budget={"trials": 1}), storage).run("study", score=False)
    study = open_study(storage, "study")
    stored = dict(study.user_attrs["hpo_mab:definition"])
    study.set_user_attr("hpo_mab:definition", {**stored, "epoch_examples": 50_000})
    assert Definition.load(study).epoch_examples == 50_000
    with pytest.raises(StorageError, match=r"50000 training examples there.*--data-root"):
        join_study(storage, "study")
