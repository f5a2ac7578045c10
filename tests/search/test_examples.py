"""Trials add to the study's record of examples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
import pytest
from small_studies import tiny

from hpo_mab._attributes import TWIN_KEY, USED_RECORD_KEY
from hpo_mab._errors import SpecError
from hpo_mab._examples import ExampleRecord
from hpo_mab.search import StudyRunner, replay
from hpo_mab.search._checkpoint import TrialCheckpoint
from hpo_mab.search._copy import copy_study
from hpo_mab.search._trial_record import TrialRecord
from hpo_mab.storage import Storage, StudyRun
from hpo_mab.training import Evaluation, Training

Run = Callable[..., StudyRun]
Runner = Callable[..., StudyRunner]


def _record(storage: Storage, run: StudyRun) -> ExampleRecord | None:
    study = optuna.load_study(study_name=run.name, storage=storage.optuna)
    return storage.examples.load(study._study_id)


def _frozen(storage: Storage, name: str) -> ExampleRecord | None:
    study = optuna.load_study(study_name=name, storage=storage.optuna)
    return storage.examples.kept_record(study._study_id)


@pytest.mark.parametrize("slots", [1, 3])
def test_every_trial_adds_what_it_drew(storage: Storage, run_tiny: Run, slots: int) -> None:
    run = run_tiny(training={"slots": slots}, budget={"trials": 9}, sampler={"kind": "mab"})
    states = {trial.state for trial in run.trials}
    assert states == {"complete", "pruned"}
    record = _record(storage, run)
    assert record is not None
    assert record.trials == 9
    assert record.counts.visits.sum() == sum(trial.examples for trial in run.trials)
    predictions = record.counts.predictions
    assert predictions is not None
    np.testing.assert_array_equal(predictions.sum(axis=1), record.counts.visits)


def test_a_study_keeps_its_record(storage: Storage, run_tiny: Run) -> None:
    for trials in (3, 5):
        run = run_tiny(budget={"trials": trials})
        record = _record(storage, run)
        assert record is not None
        assert record.trials == trials
    assert record.counts.visits.sum() == sum(trial.examples for trial in run.trials)
    # In how many portions it was written does not matter.
    whole = _record(storage, run_tiny(name="whole", budget={"trials": 5}))
    assert whole is not None
    np.testing.assert_allclose(record.counts.sums, whole.counts.sums, rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(record.counts.predictions, whole.counts.predictions)


def test_twins_add_to_it_and_replays_do_not(storage: Storage, run_tiny: Run) -> None:
    run = run_tiny(sampler={"kind": "auto"}, budget={"trials": 10})
    assert any(TWIN_KEY in trial.attrs for trial in run.trials)
    before = _record(storage, run)
    assert before is not None
    assert before.counts.visits.sum() == sum(trial.examples for trial in run.trials)
    assert replay(storage, run.name, 0).is_identical
    after = _record(storage, run)
    assert after is not None
    assert after.trials == before.trials


def test_one_key_turns_it_off(storage: Storage, run_tiny: Run) -> None:
    run = run_tiny(training={"examples": False})
    assert _record(storage, run) is None


@pytest.mark.parametrize("slots", [1, 2])
def test_a_trial_that_is_tried_again_counts_once(
    storage: Storage,
    tiny_runner: Runner,
    run_tiny: Run,
    monkeypatch: pytest.MonkeyPatch,
    slots: int,
) -> None:
    spec = {
        "training": {"slots": slots, "checkpoint": 1e-9},
        "pruner": {"kind": "none"},
        "budget": {"trials": 2},
    }
    # Ctrl-C once the first trial was saved.
    save = TrialCheckpoint.save

    def interrupt(self: TrialCheckpoint, state: Any) -> None:
        save(self, state)
        monkeypatch.setattr(TrialCheckpoint, "save", save)
        raise KeyboardInterrupt

    monkeypatch.setattr(TrialCheckpoint, "save", interrupt)
    assert tiny_runner(**spec).run(score=False).interrupted
    run = run_tiny(**spec)
    assert any(trial.inherited for trial in run.trials)
    record = _record(storage, run)
    assert record is not None
    complete = [trial for trial in run.trials if trial.state == "complete"]
    assert record.trials == len(complete) == 2
    assert record.counts.visits.sum() == sum(trial.examples for trial in complete)


@pytest.mark.parametrize(
    ("pruner", "lengths", "counted"), [("promotion", [3, 1, 6], 2), ("median", [3, 1], 0)]
)
def test_visits_from_a_checkpoint_count_once_where_the_retry_stops_before_it(
    storage: Storage,
    tiny_runner: Runner,
    run_tiny: Run,
    monkeypatch: pytest.MonkeyPatch,
    pruner: str,
    lengths: list[int],
    counted: int,
) -> None:
    spec = {
        "training": {"checkpoint": 1e-9},
        "pruner": {"kind": pruner},
        "budget": {"trials": 1, "evaluations": 6},
        "search": {"initial": 0},
    }
    add, paused = TrialRecord.add, iter([True])

    def interrupt(self: TrialRecord, evaluation: Evaluation) -> None:
        if evaluation.index == 4:
            raise KeyboardInterrupt
        add(self, evaluation)

    with monkeypatch.context() as patch:
        patch.setattr(TrialRecord, "should_prune", lambda _: False)
        patch.setattr(TrialRecord, "add", interrupt)
        assert tiny_runner(**spec).run(score=False).interrupted
    monkeypatch.setattr(TrialRecord, "should_prune", lambda _: next(paused, False))
    run = run_tiny(**spec)
    assert [len(trial.curve) for trial in run.trials] == lengths
    record = _record(storage, run)
    assert record is not None
    assert record.counts.visits.sum() == run.trials[counted].examples


def test_a_trial_that_diverged_adds_nothing(storage: Storage, run_tiny: Run) -> None:
    run = run_tiny(optimizer={"lr": 1e30}, budget={"trials": 2})
    assert {trial.state for trial in run.trials} == {"pruned"}
    assert _record(storage, run) is None


def test_a_trial_that_fails_adds_nothing(
    storage: Storage, run_tiny: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    advance, calls = Training._advance, iter(range(100))

    def fail(self: Training) -> Evaluation:
        evaluation = advance(self)
        if next(calls) == 1:
            raise ValueError("no")
        return evaluation

    monkeypatch.setattr(Training, "_advance", fail)
    run = run_tiny(budget={"trials": 2}, pruner={"kind": "none"})
    assert [trial.state for trial in run.trials].count("fail") == 1
    record = _record(storage, run)
    assert record is not None
    assert record.trials == 2


@pytest.mark.parametrize("slots", [1, 3])
def test_later_trials_use_what_the_first_ones_saw(
    storage: Storage, run_tiny: Run, slots: int
) -> None:
    run = run_tiny(
        sampler={"kind": "curriculum", "trim": 0.2},
        training={"slots": slots},
        budget={"trials": 8},
        pruner={"kind": "none"},
    )
    learned = [trial.attrs[USED_RECORD_KEY] for trial in run.trials]
    assert learned[:4] == [False] * 4
    assert learned[-1]
    frozen = _frozen(storage, run.name)
    record = _record(storage, run)
    assert frozen is not None
    assert record is not None
    assert 4 <= frozen.trials < record.trials == 8
    # The hardest fifth of each class was left out.
    late = record.counts.visits - frozen.counts.visits
    if slots == 1:
        assert (late == 0).sum() >= 0.15 * len(late)
        number = next(trial.number for trial in run.trials if trial.attrs[USED_RECORD_KEY])
        assert replay(storage, run.name, number).is_identical


def test_a_record_that_samplers_use_is_frozen_once(storage: Storage, run_tiny: Run) -> None:
    run = run_tiny(sampler={"kind": "curriculum"}, budget={"trials": 6})
    first = _frozen(storage, run.name)
    run_tiny(sampler={"kind": "curriculum"}, budget={"trials": 9})
    again = _frozen(storage, run.name)
    assert first is not None
    assert again is not None
    np.testing.assert_array_equal(first.counts.sums, again.counts.sums)
    copy_study(storage, run.name, storage, to_name="copy")
    assert _frozen(storage, "copy") is not None


def test_samplers_without_use_for_it_leave_no_trace(storage: Storage, run_tiny: Run) -> None:
    run = run_tiny(sampler={"kind": "mab"})
    assert not any(USED_RECORD_KEY in trial.attrs for trial in run.trials)
    assert _frozen(storage, run.name) is None


def test_a_sampler_that_needs_the_record_needs_it_on() -> None:
    with pytest.raises(SpecError, match=r"training\.examples must be on for sampler"):
        tiny(sampler={"kind": "curriculum"}, training={"examples": False})
