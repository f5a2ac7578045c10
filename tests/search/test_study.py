"""Studies that are continued."""

from __future__ import annotations

from collections.abc import Callable

import optuna
import pytest
from optuna.trial import FrozenTrial

from hpo_mab._errors import ArgumentError, StorageError
from hpo_mab.search import StudyRunner, StudySpec
from hpo_mab.search._study import make_study
from hpo_mab.search._trial_loop import TrialLoop
from hpo_mab.storage import Storage, open_study, read_run

Make = Callable[..., StudySpec]


def test_a_race_keeps_the_record_it_was_made_with(storage: Storage, tiny: Make) -> None:
    StudyRunner(tiny(sampler={"kind": "auto"}, budget={"trials": 1}), storage).run(score=False)
    changed = tiny(sampler={"kind": "auto"}, training={"examples": False})
    with pytest.raises(StorageError, match=r"training.examples is True there and False here"):
        StudyRunner(changed, storage).run(score=False)


def test_a_study_of_optuna_that_minimizes_is_not_taken(storage: Storage, tiny: Make) -> None:
    optuna.create_study(study_name="mine", storage=storage.optuna)
    with pytest.raises(ArgumentError, match="direction='maximize', got 'minimize'"):
        StudyRunner(tiny(), storage).run("mine")
    assert open_study(storage, "mine").user_attrs == {}


def test_what_pruning_saves_is_counted_in_each_trials_own_batches(
    storage: Storage, tiny: Make
) -> None:
    class Second(optuna.pruners.BasePruner):
        def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
            return trial.last_step == 2

    spec = tiny(
        budget={"epochs": None, "steps": 12, "evaluations": 4, "trials": 6},
        training={"batch_size": {"choices": [8, 64]}},
        search={"initial": 0},
        pruner={"kind": "none"},
    )
    runner = StudyRunner(spec, storage)
    study = make_study(storage, "own", spec, runner._definition(), source="")
    study.pruner = Second()
    TrialLoop(study, storage, runner.objective).run()
    run = read_run(storage, "own")
    sizes = [trial.params["batch_size"] for trial in run.trials]
    assert set(sizes) == {8, 64}
    assert [trial.examples for trial in run.trials] == [6 * size for size in sizes]
    assert run.saved_examples == run.examples == sum(6 * size for size in sizes)
    assert run.saved_seconds == pytest.approx(run.seconds)


def test_a_trial_that_a_user_adds_has_cost_nothing(storage: Storage, tiny: Make) -> None:
    runner = StudyRunner(tiny(budget={"trials": 1}), storage)
    name = runner.run(score=False).run.name
    open_study(storage, name).add_trial(
        optuna.create_trial(value=0.9, user_attrs={"source": "paper"})
    )
    run = read_run(storage, name)
    assert run.examples == run.trials[0].examples > 0


def test_what_diverges_was_not_saved_by_a_pruner(storage: Storage, tiny: Make) -> None:
    spec = tiny(
        optimizer={"name": "sgd", "lr": 1e30}, pruner={"kind": "none"}, budget={"trials": 1}
    )
    run = StudyRunner(spec, storage).run(score=False).run
    assert [trial.state for trial in run.trials] == ["pruned"]
    assert run.saved_examples == 0
