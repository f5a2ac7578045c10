"""A worker that trains many trials at a time, on the CPU without a graph."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import gc
import random
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import optuna
import pytest
import torch
from optuna.trial import TrialState
from small_studies import tiny
from tools import statements_of
from torch import Tensor, nn

from hpo_mab import HpoMabWarning, training
from hpo_mab._attributes import (
    INTERRUPTED_KEY,
    REASON_KEY,
    RESUMED_KEY,
    SAMPLER_KEY,
    SLOT_KEY,
    STACK_SLOTS_KEY,
    TWIN_KEY,
)
from hpo_mab.data import ImageSplits
from hpo_mab.search import StudyFailedError, StudyRunner, TrainingObjective
from hpo_mab.search._checkpoint import TrialCheckpoint
from hpo_mab.search._observer import Observer
from hpo_mab.search._prepare import make_objective
from hpo_mab.search._slots import _most_slots, probe_slots, seconds_alone, seconds_stacked
from hpo_mab.search._space import Assignment
from hpo_mab.search._stack_loop import StackLoop
from hpo_mab.search._stacks import Stacks
from hpo_mab.search._target import StudyTarget
from hpo_mab.search._trial_record import TrialRecord
from hpo_mab.search._workload import Workload
from hpo_mab.storage import Storage, StudyRun, _process, open_study, read_run, study_names
from hpo_mab.storage._definition import StoredDefinition
from hpo_mab.storage._open import files_folder
from hpo_mab.training import DeviceSweep, StackedTrainer
from hpo_mab.training._tally import ExampleTally

Run = Callable[..., StudyRun]
Runner = Callable[..., StudyRunner]


def _values(run: StudyRun) -> dict[int, float | None]:
    return {trial.slot: trial.value for trial in run.trials if trial.state == "complete"}


@pytest.mark.parametrize("sampler", ["uniform", "hard_mining"])
def test_a_study_in_slots_is_the_study_one_after_the_other(
    run_tiny: Run, splits: ImageSplits, sampler: str
) -> None:
    changes: dict[str, Any] = {
        "sampler": {"kind": sampler},
        "search": {"initial": 0, "n_startup_trials": 100},
        "pruner": {"kind": "none"},
        "budget": {"trials": 5},
    }
    alone = run_tiny(name="alone", **changes)
    stacked = run_tiny(name="stacked", training={"slots": 3}, **changes)
    assert all(trial.attrs[STACK_SLOTS_KEY] == 3 for trial in stacked.trials)
    assert [trial.params for trial in stacked.trials] == [trial.params for trial in alone.trials]
    one, other = _values(alone), _values(stacked)
    assert one.keys() == other.keys() == set(range(5))
    for slot in one:
        assert one[slot] == pytest.approx(other[slot], abs=2.01 / len(splits.validation))
    for trial, twin in zip(stacked.trials, alone.trials, strict=True):
        assert [point.steps for point in trial.curve] == [point.steps for point in twin.curve]
        assert [point.averaged for point in trial.curve] == [p.averaged for p in twin.curve]
        assert trial.curve[-1].loss == pytest.approx(twin.curve[-1].loss, rel=0.02)


@pytest.mark.parametrize(
    "budget", [{"evaluations": 2}, {"epochs": None, "steps": 2, "evaluations": 8}]
)
def test_trials_in_slots_show_how_far_they_are(
    tiny_runner: Runner, progress: Any, budget: dict[str, Any]
) -> None:
    runner = tiny_runner(
        training={"slots": 2}, pruner={"kind": "none"}, budget={"trials": 2, **budget}
    )
    runner.run(score=False, on_trial=progress)
    assert progress.shares == [{0: 0.5, 1: 0.5}, {}]


@pytest.mark.filterwarnings("ignore:AdvantagePruner decides:hpo_mab.HpoMabWarning")
@pytest.mark.parametrize(
    ("pruner", "sampler"), [("median", "auto"), ("advantage", "mab"), ("top_k", "mab")]
)
def test_every_pruner_and_the_pilot_work_in_slots(run_tiny: Run, pruner: str, sampler: str) -> None:
    run = run_tiny(
        sampler={"kind": sampler},
        search={"initial": 4},
        pruner={"kind": pruner},
        budget={"trials": 10, "evaluations": 4},
        training={"slots": 4},
    )
    counted = [t for t in run.trials if TWIN_KEY not in t.attrs and t.state != "fail"]
    assert len(counted) == 10
    assert sorted(trial.slot for trial in counted) == list(range(10))
    assert any(trial.state == "complete" for trial in counted)
    twins = [trial for trial in run.trials if TWIN_KEY in trial.attrs]
    if sampler == "auto":
        assert [trial.attrs[SAMPLER_KEY] for trial in twins] == ["mab"] * len(twins)
        assert len(twins) == 5
    for trial in run.trials:
        if trial.state == "complete":
            assert [point.index for point in trial.curve] == [1, 2, 3, 4]


def test_twins_that_choose_among_candidates_have_slots(run_tiny: Run) -> None:
    hard_half = {"name": "hard_half", "kind": "hard_mining"}
    run = run_tiny(
        sampler={"kind": "auto", "portfolio": ["uniform", hard_half]},
        search={"initial": 4},
        budget={"trials": 10},
        training={"slots": 4},
    )
    twins = [trial for trial in run.trials if TWIN_KEY in trial.attrs]
    assert [trial.attrs[SAMPLER_KEY] for trial in twins] == ["hard_half"] * 5
    assert all(STACK_SLOTS_KEY in trial.attrs for trial in run.trials)


def test_out_of_memory_where_trials_end_halves_the_slots(
    tiny_runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    take, failed = ExampleTally.take, []

    def fail_once(self: ExampleTally, slot: int = 0) -> Any:
        if not failed:
            failed.append(slot)
            raise RuntimeError("CUDA error: out of memory")
        return take(self, slot)

    monkeypatch.setattr(ExampleTally, "take", fail_once)
    runner = tiny_runner(sampler={"kind": "uniform"}, budget={"trials": 4}, training={"slots": 4})
    outcome = runner.run(score=False)
    assert failed
    assert any("2 instead of 4 trials at a time" in why for why in outcome.notes)
    assert [t.state for t in outcome.run.trials if t.state != "fail"] == ["complete"] * 4


#: Four trials in slots, which the median pruner judges from the first.
_JUDGED: dict[str, Any] = {
    "sampler": {"kind": "uniform"},
    "search": {"initial": 0},
    "pruner": {"kind": "median"},
    "budget": {"trials": 4, "evaluations": 4},
    "training": {"slots": 4},
}


def _raise_pruned(*_: Any) -> bool:
    raise optuna.TrialPruned


@pytest.mark.parametrize(
    ("prune", "evaluations"),
    [(lambda self, study, trial: trial.last_step == 2, 2), (_raise_pruned, 1)],
)
def test_a_pruner_of_optunas_stops_trials_in_slots(
    run_tiny: Run, monkeypatch: pytest.MonkeyPatch, prune: Callable[..., bool], evaluations: int
) -> None:
    monkeypatch.setattr(optuna.pruners.MedianPruner, "prune", prune)
    run = run_tiny(**_JUDGED)
    expected = [("pruned", evaluations)] * 4
    assert [(trial.state, len(trial.curve)) for trial in run.trials] == expected


def test_a_pruner_that_raises_fails_its_trials_with_the_reason(
    storage: Storage, run_tiny: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raises(*_: Any) -> bool:
        raise ZeroDivisionError("no threshold")

    monkeypatch.setattr(optuna.pruners.MedianPruner, "prune", raises)
    with pytest.raises(StudyFailedError, match="no threshold"):
        run_tiny(**_JUDGED)
    (name,) = study_names(storage)
    assert {t.state for t in open_study(storage, name).trials} == {TrialState.FAIL}


def test_shapes_have_stacks_of_their_own(run_tiny: Run) -> None:
    run = run_tiny(
        model={"name": "mlp", "width": {"choices": [4, 8]}},
        search={"initial": 0, "n_startup_trials": 100},
        pruner={"kind": "none"},
        budget={"trials": 6},
        training={"slots": 3},
    )
    assert {trial.params["model.width"] for trial in run.trials} == {4, 8}
    assert [trial.state for trial in run.trials] == ["complete"] * 6


def test_slots_are_no_more_than_the_trials_that_are_left(storage: Storage, run_tiny: Run) -> None:
    run = run_tiny(budget={"trials": 3})
    study = open_study(storage, run.name)
    found = []
    for trials in (3, 5, 40, 1000):
        StudyTarget(trials=trials, total=None, epoch_examples=100).save(study)
        found.append(_most_slots(study))
    length = StoredDefinition.load(study).trial_examples
    for total in (f"{20 * length}examples", "30m"):
        StudyTarget(trials=1000, total=total, epoch_examples=100).save(study)
        found.append(_most_slots(study))
    assert found == [0, 1, 10, 32, 5, 32]
    StudyTarget(trials=40, total=None, epoch_examples=100).save(study)
    assert [_most_slots(study, workers=workers) for workers in (2, 4, 11)] == [5, 2, 0]
    StudyTarget(trials=136, total=None, epoch_examples=100).save(study)
    study.add_trials(
        optuna.create_trial(value=0.5, user_attrs={SLOT_KEY: slot}) for slot in range(3, 128)
    )
    assert _most_slots(study) == 8
    for slot in (0, 1):
        attrs = {SLOT_KEY: slot, TWIN_KEY: slot}
        study.add_trial(optuna.create_trial(state=TrialState.WAITING, user_attrs=attrs))
    assert _most_slots(study) == 10
    # One that was interrupted waits again as soon as a worker looks.
    attrs = {SLOT_KEY: 2, TWIN_KEY: 2, INTERRUPTED_KEY: True}
    study.add_trial(optuna.create_trial(state=TrialState.FAIL, user_attrs=attrs))
    assert _most_slots(study) == 11


@pytest.mark.parametrize("widths", [4, 5])
def test_only_a_few_shapes_have_stacks_of_their_own(tiny_runner: Runner, widths: int) -> None:
    outcome = tiny_runner(
        model={"name": "mlp", "width": {"choices": [8 * (1 + n) for n in range(widths)]}},
        budget={"trials": 2},
        training={"slots": 2},
    ).run(score=False)
    stacked = [STACK_SLOTS_KEY in trial.attrs for trial in outcome.run.trials]
    assert (stacked, bool(outcome.notes)) == ([widths == 4] * 2, widths != 4)


_PRIOR: dict[str, Any] = {"kind": "mab", "prior": [{"low": 0.5, "high": 5.0}, 1.0], "floor": 0.1}


@pytest.mark.parametrize(
    ("sampler", "stacked"),
    [
        (_PRIOR, True),
        ({**_PRIOR, "correction": 0.5}, False),
        (
            {
                "kind": "mab",
                "policy": {"choices": ["thompson", "softmax", "epsilon_greedy"]},
                "replacement": {"choices": [True, False]},
            },
            False,
        ),
        (
            {
                "kind": "mab",
                "policy": {"choices": ["thompson", "softmax", "epsilon_greedy"]},
                "memory": {"choices": ["none", 50]},
            },
            False,
        ),
        ({"kind": "mab", "memory": {"choices": ["none", 50]}}, True),
        ({"kind": "hard_mining", "presample": {"low": 2, "high": 5}}, True),
        ({"kind": "hard_mining", "presample": {"low": 2, "high": 6}}, False),
    ],
)
def test_knobs_that_need_a_stack_each_have_no_stacks(
    tiny_runner: Runner, sampler: dict[str, Any], stacked: bool
) -> None:
    outcome = tiny_runner(sampler=sampler, budget={"trials": 2}, training={"slots": 2}).run(
        score=False
    )
    assert {STACK_SLOTS_KEY in trial.attrs for trial in outcome.run.trials} == {stacked}


def test_trials_in_slots_use_the_threads_of_the_definition(
    tiny_runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[int] = set()
    advance = training.StackedTrainer.advance

    def watched(stack: training.StackedTrainer) -> Any:
        seen.add(torch.get_num_threads())
        return advance(stack)

    monkeypatch.setattr(training.StackedTrainer, "advance", watched)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        tiny_runner(budget={"trials": 2}, training={"slots": 2, "threads": 1}).run(score=False)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen == {1}


def test_a_range_of_shapes_is_trained_one_at_a_time(
    tiny_runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StackLoop, "run", lambda self: pytest.fail("a stack for each trial"))
    spec: dict[str, Any] = {
        "model": {"name": "mlp", "dropout": {"low": 0.0, "high": 0.5}},
        "budget": {"trials": 2},
        "training": {"slots": 4},
    }
    outcome = tiny_runner(**spec).run(score=False)
    assert len(outcome.run.trials) == 2
    # Also where all trials run elsewhere.
    elsewhere = tiny_runner(**spec).run(score=False, launch=lambda *_: False)
    assert elsewhere.notes == outcome.notes
    assert outcome.notes == (
        "trials are trained one at a time: ranges of the network's options, of the batch size or "
        "of the sampler's kinds of draws give each trial a stack of its own",
    )


def test_the_seconds_of_free_slots_count_for_the_study_alone(run_tiny: Run) -> None:
    run = run_tiny(budget={"trials": 4}, pruner={"kind": "none"}, training={"slots": 3})
    idle = [trial.own_seconds - trial.seconds for trial in run.trials]
    # The last one has no neighbours; the first three begin and end together.
    assert idle[:3] == pytest.approx([0.0] * 3, abs=1e-3)
    assert idle[3] == pytest.approx(2 * run.trials[3].seconds, rel=0.01, abs=1e-2)


def test_samplers_that_no_stack_takes_are_trained_alone(run_tiny: Run) -> None:
    run = run_tiny(sampler={"kind": "gradnorm"}, budget={"trials": 2}, training={"slots": 3})
    assert [trial.state for trial in run.trials] == ["complete"] * 2
    assert not any(STACK_SLOTS_KEY in trial.attrs for trial in run.trials)


def test_a_trial_that_diverges_does_not_affect_other_slots(run_tiny: Run) -> None:
    run = run_tiny(
        optimizer={"name": "sgd", "lr": {"choices": [1e30, 0.05]}},
        search={"initial": 0, "n_startup_trials": 100},
        pruner={"kind": "none"},
        budget={"trials": 6},
        training={"slots": 3, "label_smoothing": 0.0},
    )
    for trial in run.trials:
        if trial.params["lr"] > 1:
            assert trial.state == "pruned"
            assert "diverged" in trial.attrs[REASON_KEY]
        else:
            assert trial.state == "complete"
    assert {trial.state for trial in run.trials} == {"pruned", "complete"}


class _OutOfMemory:
    """Raises out of memory in the step of a stack with too many networks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, room: int) -> None:
        advance = training.StackedTrainer.advance

        def failing(stack: training.StackedTrainer) -> Any:
            self.seen.append(stack.slots)
            if stack.slots > room:
                raise torch.OutOfMemoryError("CUDA error: out of memory")
            return advance(stack)

        self.seen: list[int] = []
        monkeypatch.setattr(training.StackedTrainer, "advance", failing)


@pytest.mark.parametrize(("room", "tried"), [(2, [8, 4]), (0, [2])])
def test_out_of_memory_halves_the_slots_and_loses_no_trial(
    tiny_runner: Runner, monkeypatch: pytest.MonkeyPatch, room: int, tried: list[int]
) -> None:
    memory = _OutOfMemory(monkeypatch, room=room)
    spec = {"pruner": {"kind": "none"}, "budget": {"trials": 5}, "training": {"slots": tried[0]}}
    outcome = tiny_runner(**spec).run(score=False)
    assert [slots for slots in memory.seen if slots > room] == tried
    done = [trial for trial in outcome.run.trials if INTERRUPTED_KEY not in trial.attrs]
    assert [trial.state for trial in done] == ["complete"] * 5
    # Without room for any stack, they are trained alone.
    assert {STACK_SLOTS_KEY in trial.attrs for trial in done} == {room > 0}
    assert outcome.notes == tuple(
        f"out of memory: {slots // 2} instead of {slots} trials at a time" for slots in tried
    )


@pytest.mark.parametrize("slots", [1, 2])
def test_an_error_of_the_callback_ends_the_run_and_fails_no_trial(
    tiny_runner: Runner, slots: int
) -> None:
    class Full(Observer):
        """Prints to a file on a full disk."""

        def ended(self, study: optuna.Study, trial: Any) -> None:
            self.running({})

        def running(self, shares: Mapping[int, float]) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    runner = tiny_runner(budget={"trials": 2}, training={"slots": slots}, pruner={"kind": "none"})
    with pytest.raises(OSError, match="No space left"):
        runner.run(score=False, on_trial=Full())
    trials = runner.run(score=False).run.trials
    assert [one.state for one in trials if INTERRUPTED_KEY not in one.attrs] == ["complete"] * 2
    assert {one.state for one in trials if INTERRUPTED_KEY in one.attrs} == {"fail"}


def test_a_stack_that_had_no_memory_is_freed_before_the_next_is_made(
    tiny_runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    _OutOfMemory(monkeypatch, room=2)
    made: list[weakref.ref[training.StackedTrainer]] = []
    alive: list[int] = []
    make = Workload.stack

    def stack(workload: Workload, *given: Any, **options: Any) -> training.StackedTrainer:
        one = make(workload, *given, **options)
        made.append(weakref.ref(one))
        return one

    def release() -> None:
        gc.collect()
        alive.append(sum(each() is not None for each in made))

    monkeypatch.setattr(Workload, "stack", stack)
    monkeypatch.setattr("hpo_mab.search._stack_loop.release_memory", release)
    tiny_runner(budget={"trials": 4}, training={"slots": 4}).run(score=False)
    assert len(made) == 2
    assert alive[0] == 0


@pytest.mark.parametrize(("interrupted", "times"), [(False, 2), (True, 1)])
def test_a_trial_alone_that_has_no_memory_next_to_a_stack_is_tried_again_once(
    tiny_runner: Runner, monkeypatch: pytest.MonkeyPatch, interrupted: bool, times: int
) -> None:
    train, begin = Workload.training, StackLoop._claim_and_train
    failures: list[BaseException] = [KeyboardInterrupt()] * interrupted
    failures += [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")] * times
    begun: list[StackLoop] = []
    seeds: list[int] = []

    def begins(loop: StackLoop) -> Any:
        begun.append(loop)
        return begin(loop)

    def full(workload: Workload, *given: Any, seed: int, **options: Any) -> Any:
        # Always the same trial, known by its seed.
        if begun and failures and seed in (seeds or [seed]):
            seeds.append(seed)
            raise failures.pop(0)
        return train(workload, *given, seed=seed, **options)

    monkeypatch.setattr(StackLoop, "_claim_and_train", begins)
    monkeypatch.setattr(Workload, "training", full)
    # Its intervals take seconds.
    monkeypatch.setattr("hpo_mab.search._race._evidence", lambda *_: None)
    runner = tiny_runner(
        sampler={"kind": "auto", "portfolio": ["uniform", "gradnorm"]},
        search={"initial": 4},
        budget={"trials": 10, "epochs": None, "steps": 3, "evaluations": 1},
        training={"slots": 4},
        pruner={"kind": "none"},
    )
    outcome = runner.run(score=False)
    assert outcome.interrupted == interrupted
    if interrupted:
        outcome = runner.run(score=False)
    assert not failures
    own = [trial for trial in outcome.run.trials if INTERRUPTED_KEY not in trial.attrs]
    twins = [trial for trial in own if TWIN_KEY in trial.attrs]
    states = [trial.state for trial in twins]
    assert (states.count("complete"), states.count("fail")) == ((5, 0) if times == 1 else (4, 1))
    assert {trial.state for trial in own if trial not in twins} == {"complete"}


class _Branches(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        outputs = super().forward(input.flatten(1))
        return outputs if float(outputs.detach().sum()) < 1e9 else 2 * outputs


class _Counting(nn.Linear):
    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, input: Tensor) -> Tensor:
        if self.training:
            self.count = self.count + 1
        return super().forward(input.flatten(1))


class _Flips(nn.Linear):
    """Takes a decision at random on the host."""

    def forward(self, input: Tensor) -> Tensor:
        outputs = super().forward(input.flatten(1))
        return outputs if not self.training or random.random() < 0.5 else 2 * outputs


class _Locked(nn.Linear):
    """Cannot be copied to a slot."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.lock = threading.Lock()

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.flatten(1))


@pytest.mark.parametrize(
    ("network", "reason", "begun"),
    [
        (_Branches, "the network cannot be stacked: ", 2),
        (_Counting, "assigns a new tensor to a parameter or buffer", 2),
        (_Flips, "the network draws random numbers on the host", 2),
        (_Locked, "trained alone: TypeError: cannot pickle", 0),
    ],
)
def test_a_network_that_no_stack_takes_is_trained_alone(
    tiny_runner: Runner, network: type[nn.Linear], reason: str, begun: int
) -> None:
    runner = tiny_runner(pruner={"kind": "none"}, budget={"trials": 3}, training={"slots": 2})
    runner.objective.workload._model = lambda **_: network(64, 10)
    outcome = runner.run(score=False)
    # Trials that a stack had begun are trained again.
    states = [trial.state for trial in outcome.run.trials]
    assert states == ["fail"] * begun + ["complete"] * 3
    (found,) = outcome.notes
    assert reason in found


def test_each_trial_of_a_network_that_raises_fails_with_the_reason(tiny_runner: Runner) -> None:
    class _Broken(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            raise ValueError("no forward pass today")

    runner = tiny_runner(budget={"trials": 4}, training={"slots": 2})
    runner.objective.workload._model = lambda **_: _Broken(64, 10)
    with pytest.raises(StudyFailedError, match="no forward pass today"):
        runner.run(score=False)


def test_ctrl_c_returns_all_trials_to_the_study(
    tiny_runner: Runner, run_tiny: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = {"pruner": {"kind": "none"}, "budget": {"trials": 5}, "training": {"slots": 3}}
    advance, calls = StackLoop._advance, iter(range(100))

    def interrupted(loop: StackLoop) -> None:
        advance(loop)
        if next(calls) == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(StackLoop, "_advance", interrupted)
    outcome = tiny_runner(**spec).run(score=False)
    assert outcome.interrupted
    cut = [trial for trial in outcome.run.trials if INTERRUPTED_KEY in trial.attrs]
    assert len(cut) == 3
    assert all(len(trial.curve) == 1 for trial in cut)
    run = run_tiny(**spec)
    finished = [trial for trial in run.trials if trial.state == "complete"]
    assert sorted(trial.slot for trial in finished) == list(range(5))


def test_claimed_trials_have_heartbeats_before_their_networks_are_made(
    run_tiny: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, beating = Stacks.start, []

    def held() -> int:
        return sum(len(one.trials) for one in _process._heartbeats.values())

    def counted(stacks: Stacks, *args: Any, **kwargs: Any) -> Any:
        beating.append(held())
        return start(stacks, *args, **kwargs)

    before = held()  # Other tests may have left some.
    monkeypatch.setattr(Stacks, "start", counted)
    run_tiny(pruner={"kind": "none"}, budget={"trials": 3}, training={"slots": 3})
    assert [count - before for count in beating] == [3, 3, 3]
    assert held() == before


def test_a_trial_that_raises_at_its_start_fails_alone(tiny_runner: Runner) -> None:
    runner = tiny_runner(pruner={"kind": "none"}, budget={"trials": 4}, training={"slots": 2})
    model = runner.objective.workload._model
    broken: list[int] = []
    calls = iter(range(100))

    def failing(**options: Any) -> nn.Module:
        # One trial, known by its seed: in a slot, and then alone.
        seed = torch.initial_seed()
        if next(calls) == 2:
            broken.append(seed)
        if seed in broken:
            raise ValueError("no weights today")
        return model(**options)

    runner.objective.workload._model = failing
    run = runner.run(score=False).run
    failed = [trial for trial in run.trials if trial.state == "fail"]
    (reason,) = (trial.attrs[REASON_KEY] for trial in failed)
    assert reason.startswith(f"ValueError: no weights today ({Path(__file__).name}, line ")
    assert len([trial for trial in run.trials if trial.state == "complete"]) == 4


def test_the_cpu_trains_one_at_a_time_by_itself(splits: ImageSplits) -> None:
    assert probe_slots(make_objective(tiny(), splits), most=25) == 1


def test_a_probe_without_memory_halves_the_slots(
    splits: ImageSplits, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = 8

    def stacked(workload: Workload, configuration: Any, *, slots: int) -> float:
        if slots > room:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        if slots < 4:
            raise RuntimeError("no stack")
        return 1.0 / slots

    monkeypatch.setattr("hpo_mab.search._slots.seconds_alone", lambda *_: 1.0)
    monkeypatch.setattr("hpo_mab.search._slots.seconds_stacked", stacked)
    objective = make_objective(tiny(), splits)
    objective.workload.device = torch.device("cuda")
    assert probe_slots(objective, most=32) == 8
    assert not objective.notes
    assert probe_slots(objective, most=3) == 1
    room = 0
    assert probe_slots(objective, most=32) == 1
    fails, full = objective.notes
    alone = "trials are trained one at a time: "
    why = f"{alone}measuring whether a stack is faster failed: RuntimeError: no stack ("
    assert fails.startswith(f"{why}{Path(__file__).name}, line ")
    assert full == f"{alone}no stack fits into memory"


def test_a_probe_makes_few_networks_and_samplers_and_evaluates_on_few_examples(
    splits: ImageSplits, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = make_objective(tiny(), splits)
    workload = objective.workload
    network, sweep = workload._model, DeviceSweep.batches
    made: list[Any] = []
    swept: set[int] = set()

    def counted(**options: Any) -> nn.Module:
        made.append(options)
        return network(**options)

    def batches(self: DeviceSweep, size: int) -> Any:
        swept.add(len(self.data))
        return sweep(self, size)

    workload._model = counted
    drawing = mock.Mock(wraps=workload.sampler)
    monkeypatch.setattr(workload, "sampler", drawing)
    monkeypatch.setattr(DeviceSweep, "batches", batches)
    monkeypatch.setattr("hpo_mab.search._slots._PROBED_EXAMPLES", 4)
    configuration, _ = objective.space.corners()
    seconds_alone(workload, configuration)
    seconds_stacked(workload, configuration, slots=5)
    # One alone, the stack's own and one for all slots.
    assert len(made) == 3
    assert drawing.call_count == 2
    assert swept == {4}
    assert workload.loop.early_validation != 4


def test_a_round_is_one_transaction_and_a_fill_one_lock(
    storage: Storage, run_tiny: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, hold = StackLoop._store_results, storage.lock
    rounds: list[list[str]] = []
    locks: list[str] = []

    def counted(loop: StackLoop, found: Any) -> None:
        statements.clear()
        record(loop, found)
        rounds.append([each.split()[0] for each in statements])

    def locked(name: str) -> Any:
        locks.append(name)
        return hold(name)

    monkeypatch.setattr(StackLoop, "_store_results", counted)
    monkeypatch.setattr(storage, "lock", locked)
    statements, every = (statements_of(storage.optuna.engine) for _ in range(2))
    run_tiny(
        pruner={"kind": "median"},
        search={"initial": 0},
        budget={"trials": 4, "evaluations": 3},
        training={"slots": 4},
    )
    # One reading of all trials for all decisions of the pruner, and the reports of four trials.
    assert rounds[0] == ["SELECT", "SELECT", "INSERT"]
    # Curves, reports and costs; a reading of all trials before they end, and one after.
    last = "".join(each[0] for each in rounds[2])
    assert last.startswith("SS" + "SII" + "II" + "SS" + 4 * "UI" + "SS")
    # Also that of the first trial, whose range is unknown before.
    assert sum("INTO trial_params" in each for each in every) == 1
    # To make the study, to fill the slots, to end all trials, and to find that none is left.
    assert len(locks) <= 2 + len(rounds)


@contextlib.contextmanager
def _ctrl_c_in_third_round(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    record, rounds = StackLoop._store_results, iter(range(100))

    def interrupted(loop: StackLoop, found: Any) -> None:
        if next(rounds) == 2:
            raise KeyboardInterrupt
        record(loop, found)

    with monkeypatch.context() as patch:
        patch.setattr(StackLoop, "_store_results", interrupted)
        yield


@pytest.mark.parametrize("sampler", ["uniform", "mab"])
def test_trials_continue_from_their_checkpoints(
    storage: Storage,
    tiny_runner: Runner,
    run_tiny: Run,
    monkeypatch: pytest.MonkeyPatch,
    sampler: str,
) -> None:
    changes: dict[str, Any] = {
        "sampler": {"kind": sampler},
        "search": {"initial": 0, "n_startup_trials": 100},
        "pruner": {"kind": "none"},
        "budget": {"trials": 3, "evaluations": 4},
    }
    whole = run_tiny(name="whole", training={"slots": 3}, **changes)
    changes |= {"name": "cut", "training": {"slots": 3, "checkpoint": 1e-9}}
    with _ctrl_c_in_third_round(monkeypatch):
        assert tiny_runner(**changes).run(score=False).interrupted
    folder = files_folder(storage, "checkpoints")
    assert len(list(folder.iterdir())) == 3
    run = run_tiny(**changes)
    resumed = {trial.slot: trial for trial in run.trials if trial.state == "complete"}
    assert sorted(resumed) == [0, 1, 2]
    assert list(folder.iterdir()) == []
    assert run.examples == whole.examples
    for trial in whole.trials:
        again = resumed[trial.slot]
        assert again.attrs[RESUMED_KEY] == 2
        assert [point.index for point in again.curve] == [1, 2, 3, 4]
        if sampler == "uniform":
            losses = [point.loss for point in again.curve]
            assert losses == pytest.approx([point.loss for point in trial.curve], rel=1e-3)


def test_a_checkpoint_that_does_not_fit_is_ignored(
    run_tiny: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrialCheckpoint, "load", lambda self: {"points": [], "tensors": {}})
    with pytest.warns(HpoMabWarning, match="does not fit its trial"):
        run = run_tiny(budget={"trials": 2}, training={"slots": 2, "checkpoint": 1e-9})
    assert len(_values(run)) + sum(trial.state == "pruned" for trial in run.trials) == 2


def test_out_of_memory_at_the_start_of_a_slot_is_raised(
    splits: ImageSplits, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    spec = tiny(training={"slots": 2})
    workload = make_objective(spec, splits).workload
    configuration, _ = make_objective(spec, splits).space.corners()
    assignment = Assignment(plan_slot=0, configuration=configuration, seed=0, may_prune=False)
    stacks = Stacks(workload, slots=2, seed=0, examples=False)
    monkeypatch.setattr(StackedTrainer, "start", fail)
    with pytest.raises(torch.OutOfMemoryError):
        stacks.start(assignment, {"points": []})


def test_a_study_that_fails_returns_the_other_trials(storage: Storage, tiny_runner: Runner) -> None:
    runner = tiny_runner(pruner={"kind": "none"}, budget={"trials": 9}, training={"slots": 4})
    model, calls = runner.objective.workload._model, iter(range(100))

    def failing(**options: Any) -> nn.Module:
        if next(calls) > 1:
            raise ValueError("no weights today")
        return model(**options)

    runner.objective.workload._model = failing
    with pytest.raises(StudyFailedError):
        runner.run(score=False)
    run = read_run(storage, runner.study_name())
    assert {trial.state for trial in run.trials} == {"fail"}
    assert [INTERRUPTED_KEY in trial.attrs for trial in run.trials].count(True) == 1


def test_a_trial_that_another_machine_has_closed_costs_no_other(
    storage: Storage, tiny_runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = tiny_runner(pruner={"kind": "none"}, budget={"trials": 4}, training={"slots": 2})
    advance, calls = StackLoop._advance, iter(range(100))

    def closed(loop: StackLoop) -> None:
        if next(calls) == 1:
            lost = open_study(storage, runner.study_name()).trials[0]
            storage.optuna.set_trial_user_attr(lost._trial_id, "hpo_mab:lost", True)
            storage.optuna.set_trial_state_values(lost._trial_id, TrialState.FAIL)
            raise optuna.exceptions.StorageInternalError("away")
        advance(loop)

    monkeypatch.setattr(StackLoop, "_advance", closed)
    run = runner.run(score=False).run
    finished = [trial for trial in run.trials if trial.state == "complete"]
    assert sorted(trial.slot for trial in finished) == list(range(4))


def test_a_trial_that_ends_its_worker_costs_no_other(
    tiny_runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = tiny_runner(pruner={"kind": "none"}, budget={"trials": 3}, training={"slots": 2})
    advance, train = StackLoop._advance, TrainingObjective.train

    def die_in_stack(loop: StackLoop) -> None:
        if any(one.assignment.plan_slot == 0 for one in loop._running.values()):
            raise SystemExit
        advance(loop)

    def die_alone(objective: TrainingObjective, trial: optuna.trial.Trial, *given: Any) -> float:
        if trial.user_attrs[SLOT_KEY] == 0:
            raise SystemExit
        return train(objective, trial, *given)

    monkeypatch.setattr(StackLoop, "_advance", die_in_stack)
    monkeypatch.setattr(TrainingObjective, "train", die_alone)
    for _ in range(4):
        with pytest.raises(SystemExit):
            runner.run(score=False)
    run = runner.run(score=False).run
    # Twice next to another, and twice alone.
    assert [trial.slot for trial in run.trials].count(0) == 4
    assert sorted(t.slot for t in run.trials if t.state == "complete") == [1, 2, 3]


@pytest.mark.parametrize(
    ("writes", "at_start"),
    [("", False), ("report", False), ("set_user_attr", False), ("set_user_attr", True)],
)
def test_a_trial_that_is_closed_during_its_stack_costs_no_other(
    storage: Storage,
    tiny_runner: Runner,
    monkeypatch: pytest.MonkeyPatch,
    writes: str,
    at_start: bool,
) -> None:
    # Writes are refused as on MySQL, where each is a statement of its own; others ignore them.
    diverges = writes == "set_user_attr" and not at_start
    runner = tiny_runner(
        optimizer={"name": "sgd", "lr": 1e30 if diverges else 0.05},
        pruner={"kind": "none"},
        budget={"trials": 4},
        training={"slots": 2},
    )
    write, record = getattr(optuna.trial.Trial, writes or "report"), StackLoop._store_results
    rounds: list[Any] = []

    def refuse(trial: optuna.trial.Trial, *args: Any, **kwargs: Any) -> None:
        if trial.number == 0 and (STACK_SLOTS_KEY in args if at_start else rounds):
            raise optuna.exceptions.UpdateFinishedTrialError("closed")
        write(trial, *args, **kwargs)

    def close(loop: StackLoop, found: Sequence[Any]) -> None:
        if not rounds:
            (first,) = (one.trial for one, _ in found if one.trial.number == 0)
            storage.optuna.set_trial_user_attr(first._trial_id, "hpo_mab:lost", True)
            storage.optuna.set_trial_state_values(first._trial_id, TrialState.FAIL)
        rounds.append(found)
        record(loop, found)

    if writes:
        monkeypatch.setattr(optuna.trial.Trial, writes, refuse)
    monkeypatch.setattr(StackLoop, "_store_results", close)
    run = runner.run(score=False).run
    assert run.trials[0].state == "fail"
    assert len(run.trials[0].curve) <= 1, "it trained on"
    ended = [trial for trial in run.trials if trial.state in ("complete", "pruned")]
    assert sorted(trial.slot for trial in ended) == list(range(4))


def test_dropout_in_slots_follows_from_the_studys_seed(tiny_runner: Runner) -> None:
    def losses(name: str, seed: int) -> list[float]:
        runner = tiny_runner(
            name=name,
            seed=seed,
            sampler={"kind": "uniform"},
            optimizer={"lr": 0.1},
            pruner={"kind": "none"},
            budget={"trials": 2},
            training={"slots": 2},
        )
        # The same initial weights and batches with each seed: the masks alone may differ.
        workload = runner.objective.workload
        workload._model = lambda **_: _dropped()
        start = workload.start_stacked
        workload.start_stacked = lambda where, assignment, sampler: start(
            where,
            dataclasses.replace(assignment, seed=7),
            sampler=workload.sampler(assignment.configuration, seed=7, stacked=True),
        )
        torch.manual_seed(len(name))
        before = torch.get_rng_state()
        run = runner.run(score=False).run
        assert torch.equal(torch.get_rng_state(), before)
        return [trial.curve[-1].loss for trial in run.trials]

    first = losses("first", 0)
    assert losses("the-same", 0) == pytest.approx(first, rel=1e-4)
    assert losses("another", 1) != pytest.approx(first, rel=1e-4)


def _dropped() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Dropout(0.5), nn.Linear(32, 10))


def test_out_of_memory_where_a_stored_trial_is_stopped_halves_the_slots(
    tiny_runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, Any] = {
        "search": {"initial": 0, "n_startup_trials": 2},
        "budget": {"trials": 2},
        "training": {"slots": 2, "checkpoint": 1e-9},
    }
    with _ctrl_c_in_third_round(monkeypatch):
        assert tiny_runner(**changes).run(score=False).interrupted
    take, taken = ExampleTally.take, iter(range(100))

    def full(tally: ExampleTally, slot: int = 0) -> Any:
        if next(taken) == 0:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return take(tally, slot)

    # Each trial is stopped at the first evaluation of its checkpoint.
    monkeypatch.setattr(TrialRecord, "should_prune", lambda _: True)
    monkeypatch.setattr(ExampleTally, "take", full)
    outcome = tiny_runner(**changes).run(score=False)
    assert any("out of memory: 1 instead of 2" in reason for reason in outcome.notes)
    assert [trial.state for trial in outcome.run.trials if trial.state != "fail"] == ["pruned"] * 2
