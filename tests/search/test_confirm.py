"""The best configurations of a study, trained again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path

import optuna
import pytest
from small_studies import tiny

from hpo_mab._errors import ArgumentError, StorageError, UnknownNameError
from hpo_mab._plan import derive_seed
from hpo_mab.search import Confirmation, StudyRunner, confirm, copy_study
from hpo_mab.search import _confirm as module
from hpo_mab.search._confirm import Candidate, best_first
from hpo_mab.search._prepare import load_splits, make_objective
from hpo_mab.search._stored import train_stored_trial
from hpo_mab.storage import Storage, StudyRun, _open, read_run
from hpo_mab.training import Training, TrainingDiverged

#: What each trial's next trainings give, by number of the trial.
Script = dict[int, Iterable[float]]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with a study of four complete trials: 0.9, 0.8, 0.7 and 0.6."""
    file = tmp_path_factory.mktemp("recorded") / "studies.db"
    storage = Storage(f"sqlite:///{file}")
    spec = tiny(budget={"trials": 4}, pruner={"kind": "none"})
    StudyRunner(spec, storage).run("study", score=False)
    study = optuna.load_study(study_name="study", storage=storage.optuna)
    ranked = optuna.create_study(study_name="ranked", storage=storage.optuna, direction="maximize")
    for key, value in study.user_attrs.items():
        ranked.set_user_attr(key, value)
    for trial, value in zip(study.get_trials(), (0.9, 0.8, 0.7, 0.6), strict=True):
        trial.value = value
        ranked.add_trial(trial)
    storage.close()
    return file


@pytest.fixture
def run(recorded: Path, storage: Storage) -> StudyRun:
    """That study, in this test's storage."""
    source = Storage(f"sqlite:///{recorded}")
    copy_study(source, "ranked", storage)
    source.close()
    return read_run(storage, "ranked")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[Script], list[int]]:
    """Gives trainings accuracies without training; returns the numbers of their trials."""

    def use(given: Script) -> list[int]:
        left, trained = {number: list(values) for number, values in given.items()}, []

        def train(_: object, candidate: Candidate) -> float:
            trained.append(candidate.trial.number)
            return left[candidate.trial.number].pop(0)

        monkeypatch.setattr(module, "_train", train)
        return trained

    return use


def test_a_lucky_trial_loses_the_lead_when_trained_again(
    storage: Storage, run: StudyRun, script: Callable[[Script], list[int]]
) -> None:
    trained = script({0: [0.65, 0.6], 1: [0.75, 0.79], 2: [0.6]})
    found = confirm(storage, run.name, trainings=2)
    # 0.9 becomes 0.65. 0.8 becomes 0.75 and, trained once more, 0.77; 0.7 is never in the lead.
    assert trained == [0, 1, 1]
    repeated = [(one.trial.number, one.repeats) for one in found.repeated]
    assert repeated == [(1, (0.75, 0.79)), (0, (0.65,))]
    best = found.repeated[0]
    assert best.accuracy == pytest.approx(0.77)
    assert best.trial.value == 0.8
    assert found.finished


def test_trials_that_continue_one_another_are_one_candidate(run: StudyRun) -> None:
    first, *others = run.trials
    longer = dataclasses.replace(
        first, number=9, value=0.95, attrs={**first.attrs, "hpo_mab:length": 2}
    )
    for trials in ((first, *others, longer), (longer, *others, first)):
        best = best_first(trials, {})
        assert [one.trial.number for one in best] == [9, 1, 2, 3]
    assert longer.budgets == 2


def test_each_that_is_in_the_lead_is_trained_again(
    storage: Storage, run: StudyRun, script: Callable[[Script], list[int]]
) -> None:
    trained = script({0: [0.5], 1: [0.5], 2: [0.62, 0.5], 3: [0.58, 0.57]})
    found = confirm(storage, run.name, trainings=2)
    assert trained == [0, 1, 2, 2, 3, 3]
    assert [one.trial.number for one in found.repeated[:2]] == [3, 2]


def test_results_are_stored_and_the_next_call_continues(
    storage: Storage, run: StudyRun, script: Callable[[Script], list[int]]
) -> None:
    trained = script({0: [0.85, 0.86, 0.87]})
    seen: list[tuple[float, ...]] = []

    def stop(candidate: Candidate) -> None:
        seen.append(candidate.repeats)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        confirm(storage, run.name, trainings=2, on_training=stop)
    assert seen == [(0.85,)]
    assert confirm(storage, run.name, trainings=2).repeated[0].repeats == (0.85, 0.86)
    assert confirm(storage, run.name, trainings=2).repeated[0].repeats == (0.85, 0.86)
    assert confirm(storage, run.name, trainings=3).repeated[0].repeats == (0.85, 0.86, 0.87)
    assert trained == [0, 0, 0]
    # The trials are as they were.
    assert read_run(storage, run.name).trials == run.trials


def test_max_trainings_limits_one_call(
    storage: Storage, run: StudyRun, script: Callable[[Script], list[int]]
) -> None:
    trained = script({0: [0.5], 1: [0.55], 2: [0.6, 0.6], 3: [0.1]})
    found = confirm(storage, run.name, trainings=2, max_trainings=2)
    assert trained == [0, 1]
    # Trial 2 is in the lead with its own 0.7.
    assert [one.trial.number for one in found.candidates] == [2, 3, 1, 0]
    assert [one.trial.number for one in found.repeated] == [1, 0]
    assert not found.finished
    found = confirm(storage, run.name, trainings=2, max_trainings=2)
    assert trained == [0, 1, 2, 2]
    assert found.finished


def test_trials_that_were_added_and_not_trained_are_no_candidates(
    storage: Storage, run: StudyRun, script: Callable[[Script], list[int]]
) -> None:
    study = optuna.load_study(study_name=run.name, storage=storage.optuna)
    study.add_trial(optuna.create_trial(value=0.99))
    trained = script({0: [0.85]})
    assert confirm(storage, run.name, trainings=1).finished
    assert trained == [0]


def test_a_training_has_the_trials_budget_and_a_seed_of_its_own(storage: Storage) -> None:
    spec = tiny(sampler={"kind": "mab"})
    objective = make_objective(spec, load_splits(spec))
    run = StudyRunner(spec, storage, objective=objective).run(score=False).run
    first = confirm(storage, run.name, trainings=1, max_trainings=1).repeated[0]
    assert first.trial == run.best
    seed = derive_seed(spec.seed, "confirm", 0)
    with train_stored_trial(objective, first.trial, seed=seed) as training:
        *_, end = training
    assert first.repeats == (end.accuracy,)
    assert end.steps == first.trial.curve[-1].steps
    assert first.repeats != (first.trial.value,)


def test_other_numbers_of_the_trials_change_nothing(storage: Storage, run: StudyRun) -> None:
    study = optuna.load_study(study_name=run.name, storage=storage.optuna)
    # As in a study whose first trial was interrupted.
    shifted = optuna.create_study(
        study_name="shifted", storage=storage.optuna, direction="maximize"
    )
    for key, value in study.user_attrs.items():
        shifted.set_user_attr(key, value)
    shifted.add_trial(optuna.create_trial(state=optuna.trial.TrialState.FAIL))
    shifted.add_trials(study.get_trials())
    one, other = (confirm(storage, name, max_trainings=3) for name in (run.name, "shifted"))
    repeats = [(each.trial.slot, each.repeats) for each in one.repeated]
    assert [(each.trial.slot, each.repeats) for each in other.repeated] == repeats


def test_a_training_that_diverges_counts_as_zero(
    storage: Storage, run: StudyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(_: Training) -> None:
        raise TrainingDiverged(1, "the loss is nan")

    monkeypatch.setattr(Training, "__next__", diverge)
    found = confirm(storage, run.name, trainings=1, max_trainings=2)
    assert [one.repeats for one in found.repeated] == [(0.0,), (0.0,)]


def test_the_deviation_is_that_within_configurations(run: StudyRun) -> None:
    trial = run.trials[0]

    def deviation(*repeats: tuple[float, ...]) -> float | None:
        candidates = tuple(Candidate(trial=trial, repeats=each) for each in repeats)
        return Confirmation(candidates=candidates, trainings=2).deviation

    # A training that diverged is left out.
    found = deviation((0.9, 0.8), (0.5, 0.6), (0.1,), (0.7, 0.0), (0.6, 0.5, 0.4, 0.0))
    assert found == pytest.approx((0.03 / 4) ** 0.5)
    # Two equal trainings do not show that all are equal.
    assert deviation((0.9, 0.9), (0.5, 0.6), (0.1,)) is None


def test_what_cannot_be_confirmed_is_refused(storage: Storage) -> None:
    run = StudyRunner(tiny(optimizer={"lr": 1e38}), storage).run(score=False).run
    with pytest.raises(UnknownNameError, match="study"):
        confirm(storage, "none")
    with pytest.raises(ArgumentError, match="no best trial: none is complete"):
        confirm(storage, run.name)
    for name in ("trainings", "max_trainings"):
        with pytest.raises(ArgumentError, match=f"{name} must be at least 1, got 0"):
            confirm(storage, run.name, **{name: 0})


def test_a_database_that_may_only_be_read_is_refused_before_a_training(
    storage: Storage,
    run: StudyRun,
    script: Callable[[Script], list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trained = script({0: [0.85]})
    monkeypatch.setattr(_open, "_may_be_written", lambda file: False)
    with pytest.raises(StorageError, match="may only be read: no training can be stored"):
        confirm(storage, run.name)
    assert trained == []


def test_a_study_that_is_deleted_meanwhile_is_an_error(storage: Storage, run: StudyRun) -> None:
    def delete(_: Candidate) -> None:
        optuna.delete_study(study_name=run.name, storage=storage.optuna)

    with pytest.raises(StorageError, match="Study 'ranked' has been deleted"):
        confirm(storage, run.name, on_training=delete)


def test_two_processes_at_a_time_keep_each_others_trainings(
    storage: Storage, run: StudyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = iter([lambda: confirm(storage, run.name, trainings=2)])
    trained: list[int] = []

    def train(_: object, candidate: Candidate) -> float:
        trained.append(len(candidate.repeats))
        # Meanwhile another process trains with the same seed and the next, and stores both.
        next(others, list)()
        return 0.85

    monkeypatch.setattr(module, "_train", train)
    (found,) = confirm(storage, run.name, trainings=2).repeated
    assert found.repeats == (0.85, 0.85)
    assert trained == [0, 0, 1]
