"""Studies that are continued."""

from __future__ import annotations

import threading
import time
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial
from small_studies import tiny

from hpo_mab._errors import ArgumentError, StorageError
from hpo_mab.data import ImageSplits
from hpo_mab.search import RunOutcome, StudyRunner, _study
from hpo_mab.search._prepare import make_objective
from hpo_mab.search._study import check_reference, check_study, make_study
from hpo_mab.search._trial_loop import TrialLoop
from hpo_mab.storage import Storage, open_study, read_run, study_names
from hpo_mab.storage._definition import StoredDefinition


def test_a_race_keeps_the_record_it_was_made_with(storage: Storage) -> None:
    StudyRunner(tiny(sampler={"kind": "auto"}, budget={"trials": 1}), storage).run(score=False)
    changed = tiny(sampler={"kind": "auto"}, training={"examples": False})
    with pytest.raises(StorageError, match=r"training.examples is True there and False here"):
        StudyRunner(changed, storage).run(score=False)


_INTEGERS, _FLOATS = {"low": 1, "high": 3}, {"low": 1.0, "high": 3}


@pytest.mark.parametrize(
    ("name", "before", "now"),
    [
        ("lr", {"optimizer": {"lr": _INTEGERS}}, {"optimizer": {"lr": _FLOATS}}),
        (
            "sampler.prior_beta",
            {"sampler": {"prior": [1, _INTEGERS]}},
            {"sampler": {"prior": [1, _FLOATS]}},
        ),
    ],
)
def test_a_range_of_floats_is_another_one_than_of_integers(
    storage: Storage, name: str, before: dict[str, Any], now: dict[str, Any]
) -> None:
    StudyRunner(tiny(**before), storage).run("mine", score=False, launch=lambda *_: False)
    check_study(storage, "mine", tiny(**before))
    with pytest.raises(StorageError, match=rf"{name} is IntD.* there and FloatD.* here.*--name"):
        check_study(storage, "mine", tiny(**now))


_ADVANTAGE = {
    "pruner": {"kind": "advantage", "reference": "other"},
    "budget": {"early_validation": "all"},
}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data": {"validation": 0.3}}, "data.validation = 0.3"),
        ({"model": {"width": 8}}, "model.width = 8"),
        ({"optimizer": {"lr": 0.1}}, "optimizer.lr = 0.1, but .* need { low = 0.01, high = 1.0,"),
        ({"training": {"label_smoothing": 0.1}}, "training.label_smoothing = 0.1"),
        ({"budget": {"epochs": 0.5}}, "budget.epochs = 0.5"),
        ({"budget": {"evaluations": 2}}, "budget.evaluations = 2"),
        ({"budget": {"early_validation": 5}}, "budget.early_validation = 5, .* need 'all'"),
        ({"sampler": {"kind": "mab"}}, "sampler.kind = 'mab'"),
        ({"seed": 1}, "seed = 1, but pairs with this study need 0"),
    ],
)
def test_a_reference_must_train_the_same_configuration_in_the_same_way(
    storage: Storage, change: dict[str, Any], words: str
) -> None:
    planned = {"other": tiny(**{"sampler": {"kind": "uniform"}, **change})}
    with pytest.raises(ArgumentError, match=f"pruner.reference: study 'other' has {words}"):
        check_reference(storage, tiny(**_ADVANTAGE), planned=planned)


def test_a_reference_may_differ_in_what_decides_no_curve(storage: Storage) -> None:
    other = tiny(
        sampler={"kind": "uniform"},
        data={"root": "elsewhere"},
        budget={"trials": 9, "total": "1h", "early_validation": "auto"},
        search={"initial": 5},
        training={"threads": 2, "slots": 2, "graph": False, "examples": False},
        pruner={"kind": "none"},
    )
    check_reference(storage, tiny(**_ADVANTAGE), planned={"other": other})


def test_a_reference_is_compared_with_the_part_that_auto_has_become(storage: Storage) -> None:
    other = tiny(sampler={"kind": "uniform"}, budget={"trials": 1, "early_validation": 5})
    StudyRunner(other, storage).run("other", score=False)
    spec = tiny(pruner={"kind": "advantage", "reference": "other"})
    with pytest.raises(ArgumentError, match=r"early_validation = 5, but .* need 'all'"):
        StudyRunner(spec, storage).run("study", score=False)
    assert "study" not in study_names(storage)


def test_a_study_of_optuna_that_minimizes_is_not_taken(storage: Storage) -> None:
    optuna.create_study(study_name="mine", storage=storage.optuna)
    with pytest.raises(ArgumentError, match="direction='maximize', got 'minimize'"):
        StudyRunner(tiny(), storage).run("mine")
    assert open_study(storage, "mine").user_attrs == {}


def test_what_pruning_saves_is_counted_in_each_trials_own_batches(storage: Storage) -> None:
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
    study = make_study(storage, "own", spec, runner._definition())
    study.pruner = Second()
    TrialLoop(study, storage, runner.objective).run()
    run = read_run(storage, "own")
    sizes = [trial.params["batch_size"] for trial in run.trials]
    assert set(sizes) == {8, 64}
    assert [trial.examples for trial in run.trials] == [6 * size for size in sizes]
    assert run.saved_examples == run.examples == sum(6 * size for size in sizes)
    assert run.saved_seconds == pytest.approx(run.seconds)


def test_a_trial_that_a_user_adds_has_cost_nothing(storage: Storage) -> None:
    runner = StudyRunner(tiny(budget={"trials": 1}), storage)
    name = runner.run(score=False).run.name
    open_study(storage, name).add_trial(
        optuna.create_trial(value=0.9, user_attrs={"source": "paper"})
    )
    run = read_run(storage, name)
    assert run.examples == run.trials[0].examples > 0


def test_processes_that_start_one_study_at_once_make_one(
    database_url: str, splits: ImageSplits, monkeypatch: pytest.MonkeyPatch
) -> None:
    def names(storage: Storage) -> tuple[str, ...]:
        found = study_names(storage)
        time.sleep(0.1)  # Time for the other one to look as well.
        return found

    monkeypatch.setattr(_study, "study_names", names)
    spec = tiny()
    storages = [Storage(database_url) for _ in range(2)]
    # Made one after the other: two in one process would share one random state.
    runners = [
        StudyRunner(spec, storage, objective=make_objective(spec, splits)) for storage in storages
    ]
    both = threading.Barrier(2, timeout=60)
    found: list[RunOutcome] = []
    saved: list[str] = []
    save = StoredDefinition.save

    def note(definition: StoredDefinition, study: Any) -> None:
        saved.append(study.study_name)
        save(definition, study)

    monkeypatch.setattr(StoredDefinition, "save", note)

    def start(runner: StudyRunner) -> None:
        both.wait()
        found.append(runner.run("same", launch=lambda *_: False, score=False))

    threads = [threading.Thread(target=start, args=(runner,)) for runner in runners]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(240)
    assert [outcome.run.name for outcome in found] == ["same"] * 2
    assert study_names(storages[0]) == ("same",)
    assert saved == ["same"]
    for storage in storages:
        storage.close()
