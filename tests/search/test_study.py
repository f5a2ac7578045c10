"""Studies that are continued."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hpo_mab._errors import StorageError
from hpo_mab.search import StudyRunner, StudySpec
from hpo_mab.storage import Storage

Make = Callable[..., StudySpec]


def test_a_race_keeps_the_record_it_was_made_with(storage: Storage, tiny: Make) -> None:
    StudyRunner(tiny(sampler={"kind": "auto"}, budget={"trials": 1}), storage).run(score=False)
    changed = tiny(sampler={"kind": "auto"}, training={"examples": False})
    with pytest.raises(StorageError, match=r"training.examples is True there and False here"):
        StudyRunner(changed, storage).run(score=False)


def test_what_diverges_was_not_saved_by_a_pruner(storage: Storage, tiny: Make) -> None:
    spec = tiny(
        optimizer={"name": "sgd", "lr": 1e30}, pruner={"kind": "none"}, budget={"trials": 1}
    )
    run = StudyRunner(spec, storage).run(score=False).run
    assert [trial.state for trial in run.trials] == ["pruned"]
    assert run.saved_examples == 0
