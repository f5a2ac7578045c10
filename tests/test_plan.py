"""The plan of a study: which trials are tried again, and which comes next."""

from __future__ import annotations

import copy
from typing import Any

import optuna
import pytest
from made_up import continued_of, marked, trials_of
from optuna.trial import FrozenTrial, TrialState

from hpo_mab._plan import Attempt, Next, Plan
from hpo_mab._results import Results


def _next(*described: str, target: int = 4, promotions: int = 0) -> Next:
    return Plan(trials_of(*described)).next(target, promotions=promotions)


@pytest.mark.parametrize(
    ("described", "following"),
    [
        ([], Next.NEW),
        (["c0", "p1", "c2"], Next.NEW),
        (["c0", "p1", "c2", "c3"], Next.DONE),
        (["c0", "p1", "c2", "r3"], Next.WAIT),
        (["c0", "f1", "c2", "c3"], Next.NEW),
        (["c0", "c1", "w2"], Next.QUEUED),
        # Twins are run, and do not count.
        (["c0", "c0 twin", "c1", "c1 twin", "c2"], Next.NEW),
        (["c0", "c1", "c2", "c3", "w0 twin"], Next.QUEUED),
        (["c0", "c1", "c2", "c3", "r0 twin"], Next.WAIT),
        # A running trial without a slot is of another program, and may never end.
        (["c0", "c1", "c2", "r"], Next.NEW),
        (["c0", "c1", "c2", "c3", "r"], Next.DONE),
    ],
)
def test_what_comes_next(described: list[str], following: Next) -> None:
    assert _next(*described) is following


@pytest.mark.parametrize(
    ("described", "following"),
    [
        (["c0", "p1", "p2"], Next.NEW),
        (["c0", "p1", "p2", "p3"], Next.PROMOTION),
        (["c0", "p1", "p2", "r3"], Next.WAIT),
        (["c0", "p1", "p2", "p3", "r4 promotes"], Next.PROMOTION),
        (["c0", "p1", "p2", "p3", "c4 promotes", "c5 promotes"], Next.DONE),
        # The pilot's twins count neither as stopped configurations nor as the best.
        (["c0", "c0 twin", "p1", "p2"], Next.NEW),
        (["c0", "r0 twin", "p1", "p2", "p3"], Next.PROMOTION),
    ],
)
def test_when_the_best_are_trained_in_full(described: list[str], following: Next) -> None:
    assert _next(*described, target=6, promotions=2) is following


@pytest.mark.parametrize(
    ("described", "promotable", "following"),
    [
        (["p0", "p1"], True, Next.PROMOTION),
        (["p0", "p1"], False, Next.NEW),
        # A continuation takes the place of what it continues, whether it runs, ends or is lost.
        (["p0", "p1", "r0 continues 0"], False, Next.NEW),
        (["p0", "p1", "p0 continues 0", "p2", "c0 continues 2"], False, Next.NEW),
        (["p0", "p1", "p2", "p3", "r0 continues 0"], False, Next.WAIT),
        (["p0", "p1", "p2", "p3", "c0 continues 0"], False, Next.DONE),
        (["p0", "p1", "p2", "p3", "c0 continues 0"], True, Next.PROMOTION),
        (["p0", "p1", "p2", "p3", "f0 continues 0", "w0 continues 0"], False, Next.QUEUED),
    ],
)
def test_paused_trials_continue_before_others_begin(
    described: list[str], promotable: bool, following: Next
) -> None:
    assert Plan(continued_of(*described)).next(4, promotable=promotable) is following


def test_a_continuation_that_is_cut_off_is_tried_again() -> None:
    trials = continued_of("p0", "p1", "f0 lost", "f1 continues 1")
    trials[2].user_attrs["hpo_mab:promotes"] = 0
    plan = Plan(trials)
    assert plan.retries() == [((0, ""), [2])]
    assert plan.unsettled() == {(0, "")}


def test_who_is_tried_again() -> None:
    plan = Plan(
        trials_of(
            "f0 lost", "c0", "f1 interrupted", "f2", "f2 twin lost", "f3 lost", "w3",
            *["f4 lost"] * 4, *["f5 interrupted"] * 9, "f5 lost",
        )
    )  # fmt: skip
    assert [place for place, _ in plan.retries()] == [(1, ""), (2, "uniform"), (5, "")]
    assert dict(plan.retries())[2, "uniform"] == [4]
    assert plan.unsettled() == {(1, ""), (2, "uniform"), (3, ""), (5, "")}


def test_losses_count_since_a_trial_last_continued_further() -> None:
    # Trial 2 continued at the first evaluation, and the next ones at the same one.
    trials = marked(trials_of(*["f0 lost"] * 6), resumed_at={2: 1, 3: 1, 4: 1})
    assert [len(Plan(trials[:count]).retries()) for count in range(1, 7)] == [1] * 5 + [0]


def test_failures_in_a_row_are_those_of_the_trials_own_making() -> None:
    trials = trials_of("f0", "c1", "f2", "f3 lost", "f3", "f4 interrupted", "r5")
    assert Plan(trials).failed_in_a_row() == [2, 4]
    assert Plan(trials[:2]).failed_in_a_row() == []
    # Healthy so far: a trial that began between two that failed.
    assert Plan(trials_of("r0", "f1", "r2", "f3", "r4", "f5", "r6")).failed_in_a_row() == [5]
    assert Plan(trials_of("r0", "f1", "f2", "f3", "r4")).failed_in_a_row() == [1, 2, 3]


def test_slots_of_trials_that_nobody_has_given_one() -> None:
    trials = trials_of("c", "c", "c0 twin", "c")
    assert [Plan(trials).slot_of(number) for number in (0, 1, 3)] == [0, 1, 2]


def test_a_race_begins_at_the_first_trial_that_runs() -> None:
    trials = marked(trials_of("c0", "r0 twin", "r1", "r3", "r2"), sampler={2: "mab", 3: "uniform"})
    assert [Plan(trials[:count]).first_running_slot for count in (0, 2, 3, 4, 5)] == [0, 1, 2, 3, 2]


def test_twins_begin_before_a_trial_that_waits_beyond_the_target() -> None:
    plan = Plan(trials_of("c0", "c1", "w2", "w0 twin"))
    assert plan.next(2) is Next.QUEUED
    assert plan.waiting is not None
    assert plan.waiting.number == 3


def test_a_place_has_all_attempts_in_order() -> None:
    plan = Plan(trials_of(*["f0 lost"] * 4, *["f1 lost"] * 3, *["f2 lost"] * 4, "c2"))
    assert [one.number for one in plan.places[1, ""]] == [4, 5, 6]


def test_only_the_first_configurations_cannot_be_stopped() -> None:
    trials = trials_of("c0 paired", "c0 paired twin", "r1 paired", "c2")
    assert [Attempt.of(trial).unstoppable for trial in trials] == [True, False, False, False]


def test_a_continuation_that_could_not_begin_does_not_end_the_next_one() -> None:
    def attempt(state: TrialState, **marks: Any) -> FrozenTrial:
        attrs = {"hpo_mab:slot": 0, "hpo_mab:promotes": 0, "hpo_mab:length": 2, **marks}
        return optuna.create_trial(state=state, user_attrs=attrs)

    unbegun = attempt(TrialState.PRUNED)
    interrupted = attempt(TrialState.FAIL, **{"hpo_mab:interrupted": True})

    def plan(*attempts: FrozenTrial) -> Results:
        trials = trials_of("c0")
        for number, trial in enumerate(attempts, 1):
            copied = copy.copy(trial)
            copied.number = number
            trials.append(copied)
        return Results(trials)

    # Its checkpoint did not fit elsewhere, and fits here.
    assert plan(unbegun, interrupted).retries() == [((0, ""), [1, 2])]
    # It fits nowhere any more: the complete trial may continue where it does.
    last = plan(interrupted, unbegun)
    assert (last.retries(), last.numbers_promoted) == ([], set())


def test_the_plan_of_a_growing_study_is_that_of_all_its_trials(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    study = optuna.create_study(direction="maximize")
    read: list[int] = []
    of = Attempt.of
    monkeypatch.setattr(Attempt, "of", lambda trial: read.append(trial.number) or of(trial))

    def check() -> None:
        plan, whole = Results.of(study), Results(study.get_trials(deepcopy=False))
        assert plan.states() == whole.states()
        assert plan.places == whole.places

    running: list[optuna.Trial] = []
    for slot in range(12):
        running.append(study.ask())
        running[-1].set_user_attr("hpo_mab:slot", slot)
        check()
        if slot % 3 == 2:
            # The first that runs ends last.
            for state in (TrialState.PRUNED, TrialState.COMPLETE, TrialState.FAIL):
                value = 0.5 if state == TrialState.COMPLETE else None
                study.tell(running.pop(), value, state=state)
                check()
    read.clear()
    study.ask()
    Plan.of(study)
    assert read == [12]
