"""A study run to its end, continued, refused, or trained again from its record."""

from __future__ import annotations

import dataclasses
import functools
import types
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from optuna.trial import FrozenTrial, TrialState
from small_studies import essence, tiny
from tools import photo

from hpo_mab import HpoMabWarning
from hpo_mab._attributes import USED_RECORD_KEY
from hpo_mab._errors import ArgumentError, StorageError, UnknownNameError
from hpo_mab.data import ImageSplits
from hpo_mab.search import StudyFailedError, StudyRunner, replay
from hpo_mab.search._examples import StudyExamples
from hpo_mab.search._prepare import make_objective
from hpo_mab.search._runner import join_study
from hpo_mab.search._space import Assignment
from hpo_mab.search._stored import reopen, stored_spec
from hpo_mab.search._study import make_study, refuse_other_definition
from hpo_mab.search._target import StudyTarget
from hpo_mab.search._trial_loop import TrialLoop
from hpo_mab.search._trial_record import Recording, TrialRecord
from hpo_mab.storage import Storage, open_study, read_run, study_names
from hpo_mab.storage._definition import StoredDefinition
from hpo_mab.training import Evaluation, Training, TrainingDiverged
from hpo_mab.training._stack import StackSlot


@pytest.mark.parametrize("kind", ["mab", "uniform"])
def test_a_study_runs_to_its_trials_with_curves(storage: Storage, kind: str) -> None:
    outcome = StudyRunner(tiny(sampler={"kind": kind}), storage).run()
    run = outcome.run
    assert (run.name, run.arm) == (f"tiny-{kind}-seed0", kind)
    assert len(run.trials) == 6
    assert not outcome.interrupted
    assert outcome.test_accuracy is not None
    assert 0.3 < outcome.test_accuracy <= 1.0
    for trial in run.trials:
        assert trial.paired == (trial.slot < 2)
        points = len(trial.curve)
        assert points == 3 if trial.state == "complete" else 0 < points < 3
        if trial.state == "complete":
            assert trial.value == trial.curve[-1].accuracy
    assert run.trial_examples == run.best.examples  # type: ignore[union-attr]


def test_the_first_configurations_are_equal_in_both_arms(storage: Storage) -> None:
    bandit = StudyRunner(tiny(sampler={"kind": "mab"}), storage).run(score=False).run
    uniform = StudyRunner(tiny(sampler={"kind": "uniform"}), storage).run(score=False).run
    for one, other in zip(bandit.trials[:2], uniform.trials[:2], strict=True):
        assert one.params["lr"] == other.params["lr"]
        assert one.paired
        assert other.paired
        # Their batches differ.
        losses = ([point.train_loss for point in trial.curve] for trial in (one, other))
        assert next(losses) != next(losses)


def test_more_trials_continue_the_study(storage: Storage) -> None:
    StudyRunner(tiny(budget={"trials": 4}), storage).run("parts", score=False)
    parts = StudyRunner(tiny(budget={"trials": 7}), storage).run("parts", score=False).run
    whole = StudyRunner(tiny(budget={"trials": 7}), storage).run("whole", score=False).run
    assert len(parts.trials) == 7
    assert essence(parts) == essence(whole)


def test_progress_is_shown_in_trials_and_while_the_best_is_trained_again(
    storage: Storage, progress: Any
) -> None:
    outcome = StudyRunner(tiny(budget={"trials": 1}), storage).run(on_trial=progress)
    assert outcome.test_accuracy is not None
    *steps, ended = progress.said
    assert ended == 0
    assert steps == [{0: (step + 1) / len(steps)} for step in range(len(steps))]
    assert progress.again == steps


def test_nothing_runs_again_when_all_is_done(storage: Storage) -> None:
    spec = tiny(budget={"trials": 3})
    StudyRunner(spec, storage).run()
    calls: list[int] = []
    StudyRunner(spec, storage).run(on_trial=lambda study, trial: calls.append(trial.number))
    assert calls == []


def test_an_interrupted_study_loses_nothing_and_resumes_to_the_same(
    storage: Storage, resumes: Any
) -> None:
    resumes(tiny(budget={"trials": 6}), (3, 2))
    trials = read_run(storage, "parts0").trials
    assert [trial.number for trial in trials if trial.state == "fail"] == [3]


@pytest.mark.parametrize("slots", [1, 8])
@pytest.mark.parametrize("pruner", ["none", "advantage"])
def test_a_total_budget_ends_the_study(storage: Storage, slots: int, pruner: str) -> None:
    spec = tiny(
        budget={"trials": 50, "total": "5epochs"},
        sampler={"kind": "uniform"},
        pruner={"kind": pruner},
        search={"initial": 0},
        training={"slots": slots},
    )
    run = StudyRunner(spec, storage).run(score=False).run
    # It is exceeded by less than one trial, however many run at the same time.
    assert 5 <= run.examples / run.training_examples < 6
    # What a pruned trial leaves is given to others.
    assert any(trial.state == "pruned" for trial in run.trials) is (pruner == "advantage")


def test_another_definition_under_the_same_name_is_refused(storage: Storage) -> None:
    StudyRunner(tiny(budget={"trials": 2}), storage).run("mine", score=False)
    other = tiny(optimizer={"lr": {"low": 0.01, "high": 0.5, "log": True}})
    with pytest.raises(StorageError, match=r"optimizer.lr.high is 1.0 there and 0.5 here.*--name"):
        StudyRunner(other, storage).run("mine")
    assert len(open_study(storage, "mine").trials) == 2


def test_a_definition_without_a_later_key_is_not_trained(storage: Storage) -> None:
    name = StudyRunner(tiny(budget={"trials": 1}), storage).run(score=False).run.name
    study = open_study(storage, name)
    stored = StoredDefinition.load(study)
    training = {key: one for key, one in stored.spec["training"].items() if key != "average"}
    dataclasses.replace(stored, spec={**stored.spec, "training": training}).save(study)
    with pytest.raises(StorageError, match=r"training.average is not set there and 0.2 here"):
        StudyRunner(tiny(budget={"trials": 2}), storage).run()
    commands = (
        functools.partial(join_study, storage, name),
        functools.partial(replay, storage, name, 0),
    )
    for command in commands:
        with pytest.raises(StorageError, match=r"an earlier hpo-mab without training.average: "):
            command()
    # It trains nothing.
    assert StudyExamples.read(storage, name)
    # One that may change is the present default.
    without = {key: one for key, one in stored.spec["training"].items() if key != "slots"}
    dataclasses.replace(stored, spec={**stored.spec, "training": without}).save(study)
    assert stored_spec(study).training.slots == "auto"


def test_options_of_a_data_set_may_not_change_whatever_their_names_begin_with(
    storage: Storage,
) -> None:
    study = StudyRunner(tiny(budget={"trials": 1}), storage).run("mine", score=False).run.name
    stored = StoredDefinition.load(open_study(storage, study)).spec
    wanted = {**stored, "data": {**stored["data"], "root": "elsewhere"}}
    refuse_other_definition(open_study(storage, study), wanted)
    wanted["data"]["root_split"] = 2
    with pytest.raises(StorageError, match=r"data.root_split is not set there and 2 here"):
        refuse_other_definition(open_study(storage, study), wanted)


def test_the_budget_of_a_trial_is_that_of_the_largest_batches(storage: Storage) -> None:
    sizes = {"batch_size": {"choices": [16, 64]}}
    spec = tiny(budget={"epochs": None, "steps": 6, "trials": 1}, training=sizes)
    run = StudyRunner(spec, storage).run(score=False).run
    assert run.trial_examples == 6 * 64
    assert run.trials[0].examples in (6 * 16, 6 * 64)


def test_what_may_change_reaches_workers_that_are_started_later(storage: Storage) -> None:
    StudyRunner(tiny(budget={"trials": 1}), storage).run("study", score=False)
    changed = {"graph": False, "checkpoint": 7.0, "examples": False}
    spec = tiny(budget={"trials": 2}, training=changed)
    StudyRunner(spec, storage).run("study", score=False)
    stored = stored_spec(open_study(storage, "study"))
    assert {key: getattr(stored.training, key) for key in changed} == changed


@pytest.mark.parametrize(("budget", "augmented"), [
    ({"epochs": 10}, True),
    ({"epochs": 9.9}, False),
    ({"steps": 180}, True),
    ({"steps": 170}, False),
    ({"examples": 11_490}, True),
])  # fmt: skip
def test_long_trials_augment_their_images_whatever_the_unit_of_their_budget(
    splits: ImageSplits, budget: dict[str, float], augmented: bool
) -> None:
    # 1,149 training images.
    objective = make_objective(tiny(budget={"epochs": None, **budget}), splits)
    assert (objective.workload._augmentation is not None) == augmented


@pytest.mark.parametrize("slots", [1, 2])
def test_what_a_diverging_trial_has_spent_counts(storage: Storage, slots: int) -> None:
    # A trial is one epoch, and diverges before its first evaluation.
    spec = tiny(
        optimizer={"name": "sgd", "lr": 1e30},
        budget={"trials": 50, "evaluations": 1, "total": "2 epochs"},
        training={"slots": slots, "average": 0.0},
        pruner={"kind": "none"},
    )
    runner = StudyRunner(spec, storage)
    run = runner.run(score=False).run
    assert {trial.state for trial in run.trials} == {"pruned"}
    assert all("diverged" in trial.attrs["hpo_mab:reason"] for trial in run.trials)
    # A pruner has saved nothing.
    assert run.saved_examples == 0
    assert len(run.trials) < 50
    assert run.examples is not None
    assert run.seconds is not None
    study = open_study(storage, run.name)
    spent = StudyTarget.load(study).spent(study, storage.curves)
    assert spent[0] == run.examples == sum(trial.own_examples for trial in run.trials)
    assert spent[1] == pytest.approx(run.seconds + run.evaluation_seconds)
    assert run.examples >= 2 * (run.epoch_examples or 0)
    assert all(trial.own_examples % 64 == 0 and trial.own_examples > 0 for trial in run.trials)


@pytest.mark.parametrize("early", [287, 288, 5000, "all"])
def test_a_study_continues_whatever_part_its_early_evaluations_take(
    storage: Storage, early: Any
) -> None:
    for trials in (1, 2):
        spec = tiny(budget={"trials": trials, "early_validation": early})
        run = StudyRunner(spec, storage).run(score=False).run
        assert len(run.trials) == trials


def test_workers_continue_what_this_process_has_saved(storage: Storage) -> None:
    # More than the validation examples there are: all are taken.
    runner = StudyRunner(tiny(budget={"trials": 1, "early_validation": 5000}), storage)
    run = runner.run(score=False).run
    _, objective = reopen(storage, run.name, device=None, data_root=None)
    configuration, _ = objective.space.corners()
    own, others = (
        each.workload.identity(configuration, seed=0) for each in (runner.objective, objective)
    )
    assert own == others


def test_the_reasons_of_one_study_are_not_those_of_the_next(storage: Storage) -> None:
    runner = StudyRunner(tiny(budget={"trials": 1}, training={"slots": 1}), storage)
    runner.objective.note("of another study")
    assert runner.run(score=False).notes == ()


def test_a_reference_that_is_not_there_is_refused_before_the_first_trial(storage: Storage) -> None:
    pruner = {"kind": "advantage", "reference": "nope"}
    with pytest.raises(UnknownNameError, match=r"study of pruner.reference 'nope'"):
        StudyRunner(tiny(pruner=pruner), storage).run(score=False)
    assert study_names(storage) == ()
    # Uniform sampling needs none.
    spec = tiny(pruner=pruner, sampler={"kind": "uniform"}, budget={"trials": 1})
    StudyRunner(spec, storage).run(score=False)


def test_the_longest_trial_may_be_one_of_a_batch_size_in_between(storage: Storage) -> None:
    spec = tiny(training={"batch_size": {"low": 8, "high": 64}}, budget={"trials": 1})
    runner = StudyRunner(spec, storage)
    longest = runner._definition().trial_examples
    every = [runner.objective.workload.trial_examples(size) for size in range(8, 65)]
    assert longest == max(every) > max(every[0], every[-1])


def test_each_study_of_an_objective_has_its_own_record_of_examples(storage: Storage) -> None:
    spec = tiny(sampler={"kind": "curriculum"}, budget={"trials": 6}, pruner={"kind": "none"})
    runner = StudyRunner(spec, storage)
    learned = [
        [trial.attrs[USED_RECORD_KEY] for trial in runner.run(name, score=False).run.trials]
        for name in ("one", "two")
    ]
    assert learned[0] == learned[1]
    assert not learned[0][0]


@pytest.mark.parametrize(("kind", "sampler"), [("none", "mab"), ("promotion", "auto")])
def test_a_value_outside_its_range_may_be_enqueued(
    storage: Storage, ctrl_c_at: Any, kind: str, sampler: str
) -> None:
    spec = tiny(
        pruner={"kind": kind},
        sampler={"kind": sampler},
        budget={"trials": 10},
        search={"initial": 1},
    )
    runner = StudyRunner(spec, storage)
    make_study(storage, "own", spec, runner._definition()).enqueue_trial({"lr": 1.5})
    with pytest.warns(UserWarning, match="out of range"), ctrl_c_at(0, 1):
        assert runner.run("own", score=False).interrupted
    run = runner.run("own", score=False).run
    first = [trial for trial in run.trials if trial.slot == 0]
    assert {trial.params["lr"] for trial in first} == {1.5}
    assert first[1].state in ("complete", "pruned")
    assert len({trial.slot for trial in run.trials if trial.state in ("complete", "pruned")}) == 10


def test_three_failures_in_a_row_end_the_study_with_the_reason(storage: Storage) -> None:
    spec = tiny(budget={"trials": 9})
    runner = StudyRunner(spec, storage)

    def fail(**options: object) -> None:
        raise RuntimeError("the network cannot be made")

    runner.objective.workload._model = fail  # type: ignore[assignment]
    with pytest.raises(StudyFailedError, match="the network cannot be made"):
        runner.run()
    states = [trial.state for trial in open_study(storage, runner.study_name()).trials]
    assert states == [TrialState.FAIL] * 3


def test_the_pruner_never_touches_the_first_configurations(storage: Storage) -> None:
    class Always(optuna.pruners.BasePruner):
        def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
            return True

    spec = tiny(budget={"trials": 5})
    runner = StudyRunner(spec, storage)
    study = optuna.create_study(direction="maximize", pruner=Always())
    runner.objective.recording = Recording()
    study.optimize(runner.objective, n_trials=5)
    states = [trial.state for trial in study.trials]
    assert states == [TrialState.COMPLETE] * 2 + [TrialState.PRUNED] * 3
    assert [len(trial.intermediate_values) for trial in study.trials] == [3, 3, 1, 1, 1]


def test_a_study_does_not_continue_on_other_data(storage: Storage, tmp_path: Path) -> None:
    for number, name in enumerate(("cat", "dog")):
        for index in range(40):
            photo(tmp_path / "photos" / name / f"{index}.png", 100 * number + index)
    spec = tiny(
        data={"name": "image_folder", "root": str(tmp_path / "photos"), "size": 8},
        budget={"trials": 1},
        training={"batch_size": 16},
    )
    StudyRunner(spec, storage).run("study", score=False)
    StudyRunner(spec, storage).run("study", score=False)
    # As many files, one of them another picture.
    photo(tmp_path / "photos" / "cat" / "7.png", 999)
    for go_on in (
        lambda: StudyRunner(spec, storage).run("study", score=False),
        lambda: join_study(storage, "study"),
        lambda: replay(storage, "study", 0),
    ):
        with pytest.raises(StorageError, match=r"other data.*other labels, files or pixels"):
            go_on()
    # Another class.
    for index in range(40):
        photo(tmp_path / "photos" / "owl" / f"{index}.png", 300 + index)
    with pytest.raises(StorageError, match=r"51 training examples there, \d+ here"):
        StudyRunner(spec, storage).run("study", score=False)
    with pytest.raises(StorageError, match=r"51 training examples there.*--data-root"):
        join_study(storage, "study")
    assert len(read_run(storage, "study").trials) == 1


def test_a_definition_of_another_format_is_refused(storage: Storage) -> None:
    StudyRunner(tiny(budget={"trials": 1}), storage).run("study", score=False)
    study = open_study(storage, "study")
    stored = study.user_attrs["hpo_mab:definition"]
    study.set_user_attr("hpo_mab:definition", {**stored, "version": 1})
    with pytest.raises(StorageError, match="has format 1; this hpo-mab reads format 2"):
        read_run(storage, "study")


def test_curves_of_a_deleted_study_are_removed_when_the_next_is_made(storage: Storage) -> None:
    spec = tiny(budget={"trials": 1})
    StudyRunner(spec, storage).run("first", score=False)
    optuna.delete_study(study_name="first", storage=storage.optuna)
    counted = sa.text("SELECT COUNT(*) FROM hpo_mab_curves")
    with storage.optuna.engine.connect() as connection:
        assert connection.scalar(counted) == 3
    runner = StudyRunner(spec, storage)
    make_study(storage, "second", spec, runner._definition())
    with storage.optuna.engine.connect() as connection:
        assert connection.scalar(counted) == 0


@pytest.mark.parametrize("returns", [True, False])
def test_a_database_that_stays_away_ends_the_study(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, returns: bool
) -> None:
    waited: list[float] = []

    def fail(*_: object) -> None:
        raise sa.exc.OperationalError("INSERT", {}, Exception("database is locked"))

    def wait(self: Storage, *, seconds: float) -> bool:
        waited.append(seconds)
        return returns

    monkeypatch.setattr("hpo_mab.search._trial_record.TrialRecord.add", fail)
    monkeypatch.setattr(Storage, "wait_until_back", wait)
    with pytest.raises(StorageError, match=r"studies\.db failed: .*database is locked"):
        StudyRunner(tiny(), storage).run(score=False)
    # Five minutes each, and after the third time in a row no more.
    assert waited == [300.0] * (3 if returns else 1)


def test_a_database_that_fails_again_is_waited_for_again(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []

    def wait(self: Storage, *, seconds: float) -> bool:
        waited.append(seconds)
        return True

    def fail_once(owner: type, name: str) -> None:
        work, errors = getattr(owner, name), iter([sa.exc.OperationalError("", {}, Exception())])

        def call(*given: object) -> object:
            for error in errors:
                raise error
            return work(*given)

        monkeypatch.setattr(owner, name, call)

    fail_once(TrialRecord, "add")
    fail_once(TrialLoop, "_abandon")
    monkeypatch.setattr(Storage, "wait_until_back", wait)
    run = StudyRunner(tiny(budget={"trials": 1}), storage).run(score=False).run
    assert [trial.state for trial in run.trials] == ["fail", "complete"]
    assert waited == [300.0] * 2


def test_a_trial_comes_out_the_same_from_its_record_alone(storage: Storage) -> None:
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


def test_what_cannot_be_replayed_is_said(storage: Storage) -> None:
    runner = StudyRunner(tiny(budget={"trials": 1}), storage)
    runner.run("study", score=False)
    with pytest.raises(UnknownNameError, match="Unknown trial '7'"):
        replay(storage, "study", 7)
    with storage.optuna.engine.begin() as connection:
        connection.execute(sa.text("DELETE FROM hpo_mab_curves"))
    with (
        pytest.warns(HpoMabWarning, match="1 of 1 trials"),
        pytest.raises(ArgumentError, match="no learning curve"),
    ):
        replay(storage, "study", 0)


def test_evaluation_counts_towards_a_limit_in_seconds(storage: Storage) -> None:
    first = StudyRunner(tiny(budget={"trials": 2, "total": "1h"}), storage).run(score=False)
    training, evaluation = first.run.seconds, first.run.evaluation_seconds
    assert training is not None
    assert evaluation > 0
    # Training alone leaves room for another trial; training and evaluation together do not.
    spec = tiny(budget={"trials": 3, "total": f"{training + evaluation / 2:f}s"})
    assert len(StudyRunner(spec, storage).run(score=False).run.trials) == 2
    spec = tiny(budget={"trials": 3, "total": f"{training + 2 * evaluation:f}s"})
    assert len(StudyRunner(spec, storage).run(score=False).run.trials) == 3


def test_a_study_keeps_the_validation_examples_that_it_began_with(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hpo_mab.search import _prepare

    def parts(run: Any) -> set[bool]:
        """Whether early accuracies are shares of 25 examples."""
        early = [point.accuracy * 25 for trial in run.trials for point in trial.curve[:-1]]
        return {abs(value - round(value)) < 1e-5 for value in early}

    monkeypatch.setattr(_prepare, "FEWEST_EARLY", 25)
    monkeypatch.setattr(_prepare, "EVALUATION_SHARE", 0.01)
    begun = StudyRunner(tiny(budget={"trials": 2}), storage).run(score=False)
    assert begun.run.spec["budget"]["early_validation"] == 25
    assert parts(begun.run) == {True}
    # "auto" stands for all of them from now on, but not in this study.
    monkeypatch.setattr(_prepare, "FEWEST_EARLY", 10_000)
    runner = StudyRunner(tiny(budget={"trials": 4}), storage)
    assert parts(runner.run(score=False).run) == {True}
    again = replay(storage, "tiny-mab-seed0", 3)
    assert again.is_identical
    with pytest.raises(StorageError, match=r"budget.early_validation is 25 there and 'all' here"):
        StudyRunner(tiny(budget={"early_validation": "all"}), storage).run(score=False)


def test_early_validation_follows_from_counts() -> None:
    from hpo_mab.search._prepare import early_part

    def part(wanted: Any = "auto", trial: int = 120_000, validation: int = 12_000) -> int | None:
        return early_part(wanted, trial_examples=trial, evaluations=8, validation=validation)

    # A tenth of 120,000 trained examples pays for 36,000 evaluated ones: 12,000 + 7 * 3,428.
    assert part() == 3_428
    assert part(trial=400_000) is None
    assert part(trial=100) == 2_000
    assert part(validation=900, trial=100) is None
    assert (part("all"), part(500), part(12_000)) == (None, 500, None)


def test_a_target_is_raised_and_never_lowered() -> None:
    def raised(stored: tuple[int, str | None], asked: tuple[int, str | None]) -> tuple[Any, Any]:
        made = [StudyTarget(trials=n, total=t, epoch_examples=1) for n, t in (stored, asked)]
        found = made[1].at_least(made[0])
        return found.trials, found.total

    assert raised((60, None), (30, None)) == (60, None)
    assert raised((30, "1h"), (60, None)) == (60, "1h")
    assert raised((30, "1h"), (30, "5m")) == (30, "1h")
    assert raised((30, "5m"), (30, "1h")) == (30, "1h")
    assert raised((30, None), (30, "5m")) == (30, "5m")
    assert raised((30, "1h"), (30, "9epochs")) == (30, "9epochs")


def test_a_best_trial_that_diverges_when_trained_again_has_an_accuracy(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(self: Training) -> Evaluation:
        raise TrainingDiverged(1, "the loss is nan")

    runner = StudyRunner(tiny(budget={"trials": 1}), storage)
    run = runner.run(score=False).run
    monkeypatch.setattr(Training, "__next__", diverge)
    assert runner.run().test_accuracy == 0.0
    assert run.best is not None


def test_a_trial_that_was_only_added_is_not_scored(storage: Storage) -> None:
    runner = StudyRunner(tiny(budget={"trials": 1}), storage)
    runner.run(score=False)
    study = open_study(storage, runner.study_name())
    study.add_trial(optuna.create_trial(value=0.999))
    outcome = runner.run()
    assert outcome.run.best is not None
    assert (outcome.run.best.value, outcome.test_accuracy) == (0.999, None)


def test_a_study_that_was_deleted_is_named(storage: Storage) -> None:
    runner = StudyRunner(tiny(budget={"trials": 3}), storage)

    def delete(study: optuna.Study, trial: FrozenTrial) -> None:
        if trial.number == 0:
            optuna.delete_study(study_name=study.study_name, storage=storage.optuna)

    with pytest.raises(StorageError, match=r"Study 'tiny-mab-seed0' has been deleted\."):
        runner.run(on_trial=delete)


def test_a_study_that_is_deleted_before_its_test_score_is_an_error(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = StudyRunner(tiny(budget={"trials": 1}), storage)

    def delete(study: optuna.Study, *_: object) -> float:
        optuna.delete_study(study_name=study.study_name, storage=storage.optuna)
        study.set_user_attr("any", 1)
        raise AssertionError

    monkeypatch.setattr(runner, "_test_score", delete)
    with pytest.raises(StorageError, match=r"Study 'tiny-mab-seed0' has been deleted\."):
        runner.run()


def test_a_trial_that_cannot_be_suggested_has_a_reason(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("no such choice")

    runner = StudyRunner(tiny(), storage)
    monkeypatch.setattr(runner.objective, "assign", refuse)
    with pytest.raises(StudyFailedError, match="no such choice"):
        runner.run(score=False)


@pytest.mark.parametrize(
    "sections",
    [
        {"training": {"batch_size": {"choices": [32, 600]}}},
        {"pruner": {"kind": "top_k"}},
        {"sampler": {"kind": "auto"}},
    ],
)
def test_trials_have_no_more_evaluations_than_steps(
    storage: Storage, sections: dict[str, Any]
) -> None:
    spec = tiny(**{"training": {"batch_size": 600}, "budget": {"trials": 20}, **sections})
    message = "evaluations must be at most 2, the steps of a trial with the largest batch size"
    with pytest.raises(ArgumentError, match=message):
        StudyRunner(spec, storage).run(score=False)
    assert study_names(storage) == ()


class _Given(Exception):  # noqa: N818 - carries arguments
    """Raised with the arguments of a training in place of one."""


def test_every_key_of_the_loop_reaches_the_training(
    storage: Storage, splits: ImageSplits, monkeypatch: pytest.MonkeyPatch
) -> None:
    def take(*_: Any, **given: Any) -> None:
        raise _Given(given)

    curve = {"warmup": 0.3, "label_smoothing": 0.1, "average": 0.4}
    curve |= {"keep": "better", "schedule": "constant"}
    machine = {"precision": "bfloat16", "channels_last": False}
    spec = tiny(training={**curve, **machine, "batch_size": 32}, optimizer={"lr": 0.1})
    objective = make_objective(spec, splits)
    configuration = objective.configuration_of({}, {})
    monkeypatch.setattr("hpo_mab.search._workload.Training", take)
    with pytest.raises(_Given) as caught, objective.workload.training(configuration, seed=0):
        pass
    (given,) = caught.value.args
    assert {key: given[key] for key in (*curve, *machine)} == {**curve, **machine}
    where = StackSlot(types.SimpleNamespace(start=take), 0)  # type: ignore[arg-type]
    assignment = Assignment(plan_slot=0, configuration=configuration, seed=0, may_prune=False)
    with pytest.raises(_Given) as caught:
        objective.workload.start_stacked(where, assignment, sampler=None)  # type: ignore[arg-type]
    (given,) = caught.value.args
    assert {key: given[key] for key in curve} == curve
