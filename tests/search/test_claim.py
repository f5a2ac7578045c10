"""Claim a study's next trial: promotions, lost workers, targets."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from made_up import point
from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial, TrialState
from small_studies import define, tiny
from tools import statements_of

from hpo_mab._attributes import WORKER_KEY
from hpo_mab._errors import SpecError
from hpo_mab._interrupts import deferred_interrupts
from hpo_mab._plan import RETRIES, Next, Plan
from hpo_mab.pruners import PromotionPruner, TopKPruner
from hpo_mab.search import StudyFailedError, StudyRunner, StudySpec
from hpo_mab.search._claim import claim
from hpo_mab.search._retries import close_lost, requeue
from hpo_mab.search._searchers import PlannedSearcher
from hpo_mab.search._study import open_for_training
from hpo_mab.search._target import StudyTarget
from hpo_mab.storage import Storage
from hpo_mab.storage._definition import StoredDefinition
from hpo_mab.storage._optuna import begin_waiting, tell
from hpo_mab.storage._process import _started, is_gone, machine, release, this_process

#: Name of a process on another machine.
ELSEWHERE = "0123456789abcdef:4242:7"

_TOP = {
    "budget": {"epochs": 1, "evaluations": 3, "trials": 9},
    "sampler": {"kind": "uniform"},
    "pruner": {"kind": "top_k", "after": 0.3, "k": 2},
}


@pytest.mark.parametrize("failures", [1, 3])
@pytest.mark.parametrize("slots", [1, 2])
def test_a_search_that_raises_fails_its_trial(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, failures: int, slots: int
) -> None:
    calls = iter(range(1, 100))

    def before_trial(self: Any, study: Any, trial: Any) -> None:
        if next(calls) <= failures:
            raise ZeroDivisionError("nothing to propose")

    monkeypatch.setattr(PlannedSearcher, "before_trial", before_trial)
    spec = tiny(
        search={"initial": 0},
        budget={"trials": 2},
        sampler={"kind": "uniform"},
        pruner={"kind": "none"},
        training={"slots": slots},
    )
    if failures == 3:
        with pytest.raises(StudyFailedError, match="nothing to propose"):
            StudyRunner(spec, storage).run(score=False)
        return
    run = StudyRunner(spec, storage).run(score=False).run
    assert [trial.state for trial in run.trials] == ["fail", "complete", "complete"]
    reason = f"ZeroDivisionError: nothing to propose ({Path(__file__).name}, line "
    assert run.trials[0].attrs["hpo_mab:reason"].startswith(reason)


def test_the_best_of_the_stopped_are_trained_to_the_end(storage: Storage) -> None:
    run = StudyRunner(tiny(**_TOP), storage).run(score=False).run
    initial, stopped, promoted = run.trials[:2], run.trials[2:7], run.trials[7:]
    assert [trial.slot for trial in run.trials] == list(range(9))
    assert [trial.state for trial in initial] == ["complete"] * 2
    assert [(trial.state, len(trial.curve)) for trial in stopped] == [("pruned", 1)] * 5
    assert [(trial.state, len(trial.curve)) for trial in promoted] == [("complete", 3)] * 2
    ranked = sorted(stopped, key=lambda trial: -trial.curve[0].accuracy)
    assert [trial.attrs["hpo_mab:promotes"] for trial in promoted] == [t.number for t in ranked[:2]]
    assert [trial.params for trial in promoted] == [t.params for t in ranked[:2]]
    # All that was spent counts: nine starts, and the rest of four trainings.
    first, full = stopped[0].examples, promoted[0].examples
    assert run.examples == 4 * full + 5 * first
    assert full == run.trial_examples > 2 * first


def test_a_trial_that_diverged_is_not_trained_in_full() -> None:
    study = optuna.create_study(direction="maximize", pruner=TopKPruner(max_resource=4, k=2))
    for slot, (value, attrs) in enumerate([(0.9, {"hpo_mab:reason": "diverged"}), (0.5, {})]):
        study.add_trial(
            optuna.create_trial(
                state=TrialState.PRUNED,
                value=value,
                intermediate_values={1: value},
                user_attrs={"hpo_mab:slot": slot, **attrs},
            )
        )
    best = study.pruner.next_best(study)  # type: ignore[attr-defined]
    assert best.number == 1


def test_twins_do_not_bring_promotions_forward(storage: Storage) -> None:
    spec = tiny(
        **{**_TOP, "sampler": {"kind": "auto"}, "budget": {**_TOP["budget"], "trials": 10}},
        search={"initial": 4},
    )
    run = StudyRunner(spec, storage).run(score=False).run
    asked = [trial for trial in run.trials if "hpo_mab:twin_of" not in trial.attrs]
    promoted = [trial for trial in asked if "hpo_mab:promotes" in trial.attrs]
    assert (len(run.trials), len(asked), len(promoted)) == (15, 10, 2)
    assert [trial.state for trial in asked] == ["complete"] * 5 + ["pruned"] * 3 + ["complete"] * 2


def test_an_interrupted_study_continues_to_the_same_end(resumes: Any) -> None:
    resumes(tiny(**_TOP), (3, 1), (7, 2), (8, 3))


def _next(study: optuna.Study, storage: Storage) -> optuna.trial.Trial | Next:
    """The study's next trial, or why there is none."""
    taken: list[optuna.trial.Trial] = []
    return claim(study, storage, taken, count=1) or taken[0]


def _claim(study: optuna.Study, storage: Storage) -> optuna.trial.Trial:
    """The study's next trial, of which there is one."""
    trial = _next(study, storage)
    assert isinstance(trial, optuna.trial.Trial)
    return trial


def _start(study: optuna.Study, storage: Storage, worker: str) -> optuna.trial.Trial:
    """A trial that a worker begins to run."""
    trial = _claim(study, storage)
    storage.optuna.set_trial_system_attr(trial._trial_id, WORKER_KEY, worker)
    return trial


def test_workers_wait_until_the_best_are_known(storage: Storage) -> None:
    spec = tiny(**_TOP)
    run = StudyRunner(spec, storage).run(score=False).run
    study = open_for_training(storage, run.name, spec)
    # Three more trials: two of them are promotions, and one more is stopped before.
    StudyTarget(trials=12, total=None, epoch_examples=100).save(study)
    first = _start(study, storage, ELSEWHERE)
    assert "hpo_mab:promotes" not in first.user_attrs
    assert _next(study, storage) is Next.WAIT
    first.suggest_float("lr", 0.01, 1.0, log=True)
    first.report(0.99, 1)
    study.tell(first, state=TrialState.PRUNED)
    second = _start(study, storage, ELSEWHERE)
    assert second.user_attrs["hpo_mab:promotes"] == first.number
    # No worker waits for a promotion that runs, and the next one is of another configuration.
    third = _start(study, storage, ELSEWHERE)
    taken = {trial.attrs.get("hpo_mab:promotes") for trial in run.trials} | {first.number}
    assert third.user_attrs["hpo_mab:promotes"] not in taken
    assert _next(study, storage) is Next.WAIT


def test_a_definition_that_cannot_work_is_refused() -> None:
    few = {**_TOP, "budget": {"epochs": 1, "evaluations": 3, "trials": 5}}
    with pytest.raises(SpecError, match=r"budget.trials must be at least 6 .* got 5"):
        tiny(**few)
    timed = {**_TOP, "budget": {"epochs": 1, "trials": 9, "total": "5m"}}
    with pytest.raises(SpecError, match=r"budget.total cannot be used with pruner 'top_k'"):
        tiny(**timed)
    arm = {"arms": {"top": {"pruner": _TOP["pruner"]}}}
    with pytest.raises(SpecError, match=r"compare.arms.top: budget.trials must be at least 6"):
        tiny(budget=few["budget"], sampler=_TOP["sampler"], compare=arm)


@pytest.fixture
def dead() -> str:
    """Name of a process of this machine that has ended."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        name = f"{machine()}:{child.pid}:{_started(child.pid)}"
        assert not is_gone(name)
        child.communicate()
    return name


def test_of_few_trials_that_are_all_paused_the_best_is_trained_to_its_end(storage: Storage) -> None:
    spec = tiny(
        budget={"epochs": None, "steps": 16, "evaluations": 8, "trials": 3},
        pruner={"kind": "promotion"},
        search={"initial": 0},
    )
    run = StudyRunner(spec, storage).run(score=False).run
    (complete,) = (trial for trial in run.trials if trial.state == "complete")
    # Of the highest rung that a trial had reached.
    reached = [max(point.index for point in t.curve) for t in run.trials if t.state == "pruned"]
    before = run.trials[complete.attrs["hpo_mab:promotes"]]
    assert before.curve[-1].index == max(reached)
    assert complete.curve[-1].index == 8


@pytest.mark.parametrize("unlimited", [False, True])
def test_the_trials_left_include_continuations_that_the_budget_pays_for(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, unlimited: bool
) -> None:
    pruner = PromotionPruner(max_resource=8, unlimited=unlimited)
    study = optuna.create_study(storage=storage.optuna, direction="maximize", pruner=pruner)
    # The third is paused again after it was continued. The first's checkpoint could not be used.
    unbegun = {"hpo_mab:promotes": 0, "hpo_mab:length": 2, "hpo_mab:reason": "no checkpoint"}
    for slot, state, attrs in (
        (0, TrialState.COMPLETE, {}),
        (1, TrialState.PRUNED, {}),
        (2, TrialState.PRUNED, {}),
        (2, TrialState.PRUNED, {"hpo_mab:promotes": 2}),
        (0, TrialState.PRUNED, unbegun),
    ):
        value = 0.5 if state == TrialState.COMPLETE else None
        attrs = {"hpo_mab:slot": slot, **attrs}
        study.add_trial(optuna.create_trial(state=state, value=value, user_attrs=attrs))
    target = StudyTarget(trials=3, total="100epochs", epoch_examples=100)
    # Five trials have spent half of the budget.
    monkeypatch.setattr(StudyTarget, "spent", lambda *_: (5000, 0.0))
    # Two are paused; complete ones continue only without a limit.
    left = 5 if unlimited else 2
    assert target.trials_left(study, storage.curves, done=5.0, spent_before=0.0) == left


def test_paused_trials_continue_side_by_side_with_the_rest_of_the_budget(storage: Storage) -> None:
    pruner = PromotionPruner(max_resource=8)
    study = optuna.create_study(
        study_name="paused", storage=storage.optuna, direction="maximize", pruner=pruner
    )
    for slot in range(2):
        paused = optuna.create_trial(
            state=TrialState.PRUNED,
            intermediate_values={1: 0.5 + slot / 10},
            user_attrs={"hpo_mab:slot": slot},
        )
        study.add_trial(paused)
    define(study, {})
    StudyTarget(trials=2, total="100epochs", epoch_examples=100).save(study)
    taken: list[optuna.trial.Trial] = []
    # The rule continues one of two; what is left of the budget goes to the other.
    assert claim(study, storage, taken, count=3) is Next.WAIT
    assert [trial.user_attrs["hpo_mab:promotes"] for trial in taken] == [1, 0]


def _age(storage: Storage, trial: optuna.trial.Trial, seconds: int) -> None:
    with storage.optuna.engine.begin() as connection:
        connection.execute(
            sa.text(
                "UPDATE trial_heartbeats SET heartbeat = datetime(heartbeat, :by) "
                "WHERE trial_id = :id"
            ),
            {"by": f"-{seconds} seconds", "id": trial._trial_id},
        )


def _state(study: optuna.Study, trial: optuna.trial.Trial) -> TrialState:
    return study.trials[trial.number].state


def test_claims_stop_at_the_target(study: optuna.Study, storage: Storage) -> None:
    trials = [_start(study, storage, ELSEWHERE) for _ in range(3)]
    assert [trial.user_attrs["hpo_mab:slot"] for trial in trials] == [0, 1, 2]
    assert _next(study, storage) is Next.WAIT
    study.tell(trials[0], 0.5)
    study.tell(trials[1], 0.5)
    assert _next(study, storage) is Next.WAIT
    study.tell(trials[2], state=TrialState.FAIL)
    # A trial that failed by itself is no result: another trial takes its place.
    last = _claim(study, storage)
    assert last.user_attrs["hpo_mab:slot"] == 3
    study.tell(last, 0.5)
    assert _next(study, storage) is Next.DONE


def test_a_claim_that_takes_long_ends_after_a_trial(
    study: optuna.Study, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpo_mab.search._claim._CLAIM_SECONDS", 0.0)
    taken: list[optuna.trial.Trial] = []
    for count in (1, 2, 3):
        assert claim(study, storage, taken, count=3) is None
        assert len(taken) == count


@pytest.mark.usefixtures("python_handler")
def test_ctrl_c_ends_a_claim_between_trials(
    study: optuna.Study, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    presses = iter([signal.SIGINT])
    press = "hpo_mab.search._claim.hold"
    monkeypatch.setattr(press, lambda *_: [signal.raise_signal(one) for one in presses])
    taken: list[optuna.trial.Trial] = []
    with deferred_interrupts(), pytest.raises(KeyboardInterrupt):
        claim(study, storage, taken, count=3)
    assert len(taken) == 1


def test_claims_of_one_process_do_not_affect_each_other(
    study: optuna.Study, storage: Storage, tmp_path: Path
) -> None:
    first, second = _claim(study, storage), _claim(study, storage)
    assert _state(study, first) == _state(study, second) == TrialState.RUNNING
    # A trial of another database with the same id is another trial.
    other = Storage(f"sqlite:///{tmp_path / 'other.db'}")
    made = optuna.create_study(study_name="plain", storage=other.optuna, direction="maximize")
    StudyTarget(trials=3, total=None, epoch_examples=100).save(made)
    lost = _claim(made, other)
    assert lost._trial_id == first._trial_id
    release(other.optuna, lost._trial_id)
    close_lost(made, other)
    assert _state(made, lost) == TrialState.FAIL
    other.close()


def test_a_trial_of_a_dead_process_is_lost_at_once_and_keeps_its_slot(
    study: optuna.Study, storage: Storage, dead: str
) -> None:
    other = _start(study, storage, ELSEWHERE)
    lost = _start(study, storage, dead)
    again = _start(study, storage, ELSEWHERE)
    assert again.user_attrs["hpo_mab:slot"] == lost.user_attrs["hpo_mab:slot"] == 1
    assert _state(study, lost) == TrialState.FAIL
    assert "ended suddenly" in study.trials[lost.number].user_attrs["hpo_mab:reason"]
    assert _state(study, other) == TrialState.RUNNING


def test_a_trial_of_a_running_process_is_not_lost_despite_an_old_heartbeat(
    study: optuna.Study, storage: Storage
) -> None:
    # As after a laptop was suspended: no process could write heartbeats.
    trial = _start(study, storage, this_process())
    _age(storage, trial, 1000)
    close_lost(study, storage)
    assert _state(study, trial) == TrialState.RUNNING
    release(storage.optuna, trial._trial_id)
    # This process can see that it does not run the trial any more.
    close_lost(study, storage)
    assert _state(study, trial) == TrialState.FAIL


def test_without_start_times_of_processes_heartbeats_count(
    study: optuna.Study, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on macOS: another process may have the number of the one that was killed.
    monkeypatch.setattr("hpo_mab.storage._process._HAS_PROC", False)
    trial = _start(study, storage, f"{machine()}:{os.getppid()}:")
    _age(storage, trial, 60)
    close_lost(study, storage)
    assert study.trials[0].state == TrialState.RUNNING
    _age(storage, trial, 1000)
    close_lost(study, storage)
    assert study.trials[0].state == TrialState.FAIL


@pytest.mark.parametrize(("age", "state"), [(60, TrialState.RUNNING), (200, TrialState.FAIL)])
def test_on_other_machines_only_heartbeats_count(
    study: optuna.Study, storage: Storage, age: int, state: TrialState
) -> None:
    trial = _start(study, storage, ELSEWHERE)
    _age(storage, trial, age)
    close_lost(study, storage)
    assert _state(study, trial) == state


def test_a_process_that_dies_while_claiming_leaves_no_gap(
    study: optuna.Study, storage: Storage
) -> None:
    study.add_trial(optuna.create_trial(state=TrialState.WAITING, user_attrs={"hpo_mab:slot": 0}))
    with pytest.warns(UserWarning, match="Heartbeat"):
        half = study.ask()
    again = _claim(study, storage)
    assert _state(study, half) == TrialState.FAIL
    assert again.user_attrs["hpo_mab:slot"] == 0


def test_a_trial_of_the_users_own_loop_is_not_changed(
    study: optuna.Study, storage: Storage
) -> None:
    with pytest.warns(UserWarning, match="Heartbeat"):
        foreign = study.ask()
    close_lost(study, storage)
    assert _state(study, foreign) == TrialState.RUNNING


def test_retries_are_bounded_and_interruptions_are_not(
    study: optuna.Study, storage: Storage, dead: str
) -> None:
    for _ in range(5):
        trial = _start(study, storage, dead)
        assert trial.user_attrs["hpo_mab:slot"] == 0
        trial.set_user_attr("hpo_mab:interrupted", True)
        study.tell(trial, state=TrialState.FAIL)
    for _ in range(1 + RETRIES):
        assert _start(study, storage, dead).user_attrs["hpo_mab:slot"] == 0
    assert _start(study, storage, dead).user_attrs["hpo_mab:slot"] == 1


def test_a_retry_keeps_what_decides_its_training(study: optuna.Study) -> None:
    kept = {"hpo_mab:promotes": 0, "hpo_mab:length": 2, "hpo_mab:learned": False}
    kept |= {"hpo_mab:sampler": "uniform"}
    study.add_trial(optuna.create_trial(value=0.5, user_attrs={"hpo_mab:slot": 0}))
    cut = optuna.create_trial(
        state=TrialState.FAIL,
        user_attrs={"hpo_mab:slot": 0, "hpo_mab:interrupted": True, "hpo_mab:reason": "?", **kept},
    )
    # The user's own.
    kept["note"] = cut.user_attrs["note"] = "baseline"
    study.add_trial(cut)
    assert requeue(study, Plan.of(study)) == 1
    assert study.trials[-1].user_attrs == {"hpo_mab:slot": 0, **kept}


def test_requeueing_twice_queues_once(study: optuna.Study, storage: Storage, dead: str) -> None:
    trial = _start(study, storage, dead)
    close_lost(study, storage)
    for queued in (1, 0):
        assert requeue(study, Plan.of(study)) == queued
    assert len(study.get_trials(states=(TrialState.WAITING,))) == 1
    assert _state(study, trial) == TrialState.FAIL


def test_a_continuation_begins_before_a_trial_that_is_queued_beyond_the_target(
    storage: Storage,
) -> None:
    pruner = PromotionPruner(max_resource=8)
    study = optuna.create_study(storage=storage.optuna, direction="maximize", pruner=pruner)
    lr = optuna.distributions.FloatDistribution(0.0, 1.0)
    for slot, value in enumerate((0.3, 0.6)):
        study.add_trial(
            optuna.create_trial(
                state=TrialState.PRUNED,
                value=value,
                intermediate_values={1: value},
                params={"lr": value},
                distributions={"lr": lr},
                user_attrs={"hpo_mab:slot": slot},
            )
        )
    StudyTarget(trials=2, total=None, epoch_examples=100).save(study)
    study.enqueue_trial({"lr": 0.1})
    trial = _claim(study, storage)
    assert trial.user_attrs["hpo_mab:promotes"] == 1
    assert trial.suggest_float("lr", 0.0, 1.0) == 0.6
    assert [one.state.name for one in study.trials] == ["PRUNED", "PRUNED", "WAITING", "RUNNING"]
    # So does its retry.
    trial.set_user_attr("hpo_mab:interrupted", True)
    study.tell(trial, state=TrialState.FAIL)
    again = _claim(study, storage)
    assert (again.number, again.user_attrs["hpo_mab:promotes"]) == (4, 1)


def test_an_enqueued_configuration_is_run_in_a_slot_of_its_own(
    study: optuna.Study, storage: Storage, dead: str
) -> None:
    _start(study, storage, this_process())
    study.enqueue_trial({"lr": 0.25})
    lost = _start(study, storage, dead)
    assert lost.user_attrs["hpo_mab:slot"] == 1
    again = _start(study, storage, dead)
    assert again.user_attrs["hpo_mab:slot"] == 1
    assert again.suggest_float("lr", 0.0, 1.0) == 0.25


def test_a_waiting_trial_that_optuna_begins_is_not_begun_twice(
    study: optuna.Study, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    StudyTarget(trials=3, total=None, epoch_examples=100).save(study)
    for lr in (0.1, 0.2, 0.3):
        study.enqueue_trial({"lr": lr})
    begin, begun = begin_waiting, []

    def begin_late(study: optuna.Study, waiting: FrozenTrial) -> bool:
        # A loop of Optuna's own, which takes no lock of ours, is a moment earlier.
        if len(begun) < 2:
            with pytest.warns(UserWarning, match="Heartbeat"):
                begun.append(study.ask())
            if len(begun) == 2:
                study.tell(begun[1], 0.5)
        return begin(study, waiting)

    monkeypatch.setattr("hpo_mab.search._claim.begin_waiting", begin_late)
    ours = _claim(study, storage)
    assert ([one.number for one in begun], ours.number) == ([0, 1], 2)
    assert ours.suggest_float("lr", 0.0, 1.0) == 0.3
    assert begun[0].user_attrs == {}, "it would be closed as lost"


@pytest.mark.parametrize("error", [SystemExit, StorageInternalError])
def test_an_enqueued_trial_whose_claim_is_cut_off_before_it_has_a_slot_is_closed(
    study: optuna.Study,
    storage: Storage,
    monkeypatch: pytest.MonkeyPatch,
    dead: str,
    error: type[BaseException],
) -> None:
    StudyTarget(trials=2, total=None, epoch_examples=100).save(study)
    study.enqueue_trial({"lr": 0.25})

    def cut_off(study: optuna.Study, trial: FrozenTrial) -> bool:
        assert begin_waiting(study, trial)
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("hpo_mab.search._claim.begin_waiting", cut_off)
        if error is SystemExit:  # Its worker dies; else the database cuts it off.
            patch.setattr("hpo_mab.search._claim.this_process", lambda: dead)
        with pytest.raises(error):
            _next(study, storage)
    _claim(study, storage)
    assert study.trials[0].state == TrialState.FAIL


def test_what_lost_trials_spent_counts_in_the_budget(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tiny(budget={"trials": 50, "total": "3epochs"}, pruner={"kind": "none"})
    runner = StudyRunner(spec, storage)
    lost: list[int] = []

    def die(study: optuna.Study, trial: optuna.trial.Trial, *given: Any) -> None:
        if trial.number == 0:
            lost.append(trial.number)
            raise SystemExit
        tell(study, trial, *given)

    with monkeypatch.context() as patch:
        patch.setattr("hpo_mab.search._trial_loop.tell", die)
        with pytest.raises(SystemExit):
            runner.run(score=False)
    run = runner.run(score=False).run
    assert lost == [0]
    assert run.trials[0].state == "fail"
    finished = [trial for trial in run.trials if trial.state == "complete"]
    # Three trials spend the budget, and the lost one is the first of them.
    assert len(finished) == 2


def _planned(storage: Storage, spec: StudySpec, *, total: str) -> optuna.Study:
    """A study without trials, whose trials train 100 examples, an epoch, in batches of 10."""
    study = optuna.create_study(storage=storage.optuna, direction="maximize")
    define(study, spec.model_dump(mode="json") | {"training": {"batch_size": 10}})
    StudyTarget(trials=50, total=total, epoch_examples=100).save(study)
    return study


def test_no_trial_begins_if_the_running_ones_will_spend_the_rest(storage: Storage) -> None:
    study = _planned(storage, tiny(), total="2epochs")
    trials = [_start(study, storage, ELSEWHERE) for _ in range(2)]
    assert _next(study, storage) is Next.WAIT
    # A trial that ends early leaves room for another.
    study.tell(trials[0], state=TrialState.FAIL)
    _start(study, storage, ELSEWHERE)
    assert _next(study, storage) is Next.WAIT


def test_a_claim_reads_the_definition_once(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = _planned(storage, tiny(), total="4epochs")
    loads: list[optuna.Study] = []
    load = StoredDefinition.load
    monkeypatch.setattr(StoredDefinition, "load", lambda one: loads.append(one) or load(one))
    statements = statements_of(storage.optuna.engine)
    taken: list[optuna.trial.Trial] = []
    claim(study, storage, taken, count=4)
    reads = [one for one in statements if "FROM study_user_attributes" in one]
    assert (len(taken), len(loads), len(reads)) == (4, 1, 1)


@pytest.mark.parametrize(
    ("budget", "total", "others"),
    [({}, "2epochs", 2), ({"epochs": None, "steps": 2}, "80examples", 1)],
)
def test_what_running_trials_have_spent_leaves_room_for_others(
    storage: Storage, budget: dict[str, Any], total: str, others: int
) -> None:
    study = _planned(storage, tiny(budget=budget), total=total)
    trial = _start(study, storage, ELSEWHERE)
    # It has spent 60 examples, and will spend a third of a trial's 100; with two steps, no more.
    storage.curves.extend([(trial._trial_id, [point(1), point(2)], False)])
    for _ in range(others):
        _claim(study, storage)
    assert _next(study, storage) is Next.WAIT


@pytest.mark.parametrize(("resumed", "others"), [(None, 1), (3, 2), (6, 3)])
def test_a_continued_trial_will_spend_what_its_checkpoint_does_not_have(
    storage: Storage, resumed: int | None, others: int
) -> None:
    # Its length is three budgets of three evaluations; a checkpoint may save one or two of them.
    study = _planned(storage, tiny(), total="4epochs")
    longer = _start(study, storage, ELSEWHERE)
    longer.set_user_attr("hpo_mab:length", 3)
    if resumed is not None:
        longer.set_user_attr("hpo_mab:resumed_at", resumed)
    for _ in range(others):
        _start(study, storage, ELSEWHERE)
    assert _next(study, storage) is Next.WAIT


def test_what_running_trials_will_spend_in_seconds_is_estimated(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = _planned(storage, tiny(), total="100s")
    monkeypatch.setattr(StudyTarget, "spent", lambda *_: (100, 40.0))
    # 40 s are spent, and a running trial takes 40 more.
    for _ in range(2):
        _start(study, storage, ELSEWHERE)
    assert _next(study, storage) is Next.WAIT
    monkeypatch.setattr(StudyTarget, "spent", lambda *_: (100, 100.0))
    assert _next(study, storage) is Next.DONE


def test_what_ended_trials_have_spent_is_read_once(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = _planned(storage, tiny(), total="100epochs")
    target, read = StudyTarget.load(study), storage.curves.spent
    queries: list[tuple[int, int | None]] = []

    def spent(study_id: int, *, after: int = -1, until: int | None = None) -> tuple[int, float]:
        queries.append((after, until))
        return read(study_id, after=after, until=until)

    monkeypatch.setattr(storage.curves, "spent", spent)
    trials = [_start(study, storage, ELSEWHERE) for _ in range(4)]
    # The second ends last, and all of them train on.
    for ended in (0, 2, 3, 1):
        for index in (1, 2):
            for trial in trials:
                if not storage.optuna.get_trial(trial._trial_id).state.is_finished():
                    storage.curves.extend([(trial._trial_id, [point(index)], index == 1)])
            found = target.spent(study, storage.curves)
            assert found == read(study._study_id)
        study.tell(trials[ended].number, state=TrialState.PRUNED)
    assert target.spent(study, storage.curves) == (4 * 60, pytest.approx(4 * 1.0))
    queries.clear()
    target.spent(study, storage.curves)
    assert queries == [(trials[-1]._trial_id, None)]


def test_a_curve_that_trials_share_is_spent_once(storage: Storage) -> None:
    study = _planned(storage, tiny(), total="100epochs")
    trial = _start(study, storage, ELSEWHERE)
    storage.curves.extend([(trial._trial_id, [point(1)], True)])
    study.tell(trial.number, state=TrialState.PRUNED)
    target = StudyTarget.load(study)
    assert target.spent(study, storage.curves) == (30, 0.5)
    # A copy has the number of the curve.
    study.add_trial(study.trials[0])
    assert target.spent(study, storage.curves) == (30, 0.5)


def test_a_study_that_died_before_it_had_a_definition_is_made_whole(storage: Storage) -> None:
    optuna.create_study(study_name="half", storage=storage.optuna, direction="maximize")
    run = StudyRunner(tiny(budget={"trials": 1}), storage).run("half", score=False).run
    assert [trial.state for trial in run.trials] == ["complete"]
