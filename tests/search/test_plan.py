"""What counts in a study, and what comes next."""

from __future__ import annotations

from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from hpo_mab.search._plan import Next, Plan

_STATES = {
    "c": TrialState.COMPLETE,
    "p": TrialState.PRUNED,
    "r": TrialState.RUNNING,
    "w": TrialState.WAITING,
    "f": TrialState.FAIL,
}


def _trials(*described: str) -> list[FrozenTrial]:
    """Trials from texts: state, slot, and what it is, e.g. ``c3 twin`` or ``f0 lost``."""
    made = []
    for number, text in enumerate(described):
        place, *marks = text.split()
        attrs: dict[str, Any] = {f"hpo_mab:{mark}": True for mark in marks}
        if "twin" in marks:
            attrs["hpo_mab:twin_of"] = int(place[1:])
        if place[1:]:
            attrs["hpo_mab:slot"] = int(place[1:])
        state = _STATES[place[0]]
        value = 0.5 if state == TrialState.COMPLETE else None
        trial = optuna.create_trial(state=state, value=value, user_attrs=attrs)
        trial.number = number
        made.append(trial)
    return made


def _next(*described: str, target: int = 4, promotions: int = 0) -> Next:
    return Plan(_trials(*described), target=target, promotions=promotions).next()


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
        # The pilot's twins are no screened configurations, and none that may be among the best.
        (["c0", "c0 twin", "p1", "p2"], Next.NEW),
        (["c0", "r0 twin", "p1", "p2", "p3"], Next.PROMOTION),
    ],
)
def test_when_the_best_are_trained_in_full(described: list[str], following: Next) -> None:
    assert _next(*described, target=6, promotions=2) is following


def test_counts() -> None:
    plan = Plan(
        _trials(
            "c0", "c0 twin", "f0 twin lost", "p1", "f2", "f3 interrupted", "r3", "w4", "f5 lost"
        )
    )
    assert plan.counts() == {"complete": 1, "pruned": 1, "fail": 2}
    assert plan.counts(twins=True) == {"complete": 2, "pruned": 1, "fail": 3}
    assert (plan.finished, plan.twins, plan.next_slot) == (2, 2, 6)


def test_who_is_tried_again() -> None:
    plan = Plan(
        _trials(
            "f0 lost", "c0", "f1 interrupted", "f2", "f2 twin lost", "f3 lost", "w3",
            *["f4 lost"] * 4, *["f5 interrupted"] * 9, "f5 lost",
        )
    )  # fmt: skip
    assert [place for place, _ in plan.retries()] == [(1, False), (2, True), (5, False)]
    assert dict(plan.retries())[2, True] == [4]
    assert plan.unsettled() == {(1, False), (2, True), (3, False), (5, False)}


def test_failures_in_a_row_are_those_of_the_trials_own_making() -> None:
    trials = _trials("f0", "c1", "f2", "f3 lost", "f3", "f4 interrupted", "r5")
    assert Plan(trials).failed_in_a_row() == [2, 4]
    assert Plan(trials[:2]).failed_in_a_row() == []


def test_slots_of_trials_that_nobody_has_given_one() -> None:
    trials = _trials("c", "c", "c0 twin", "c")
    assert [Plan(trials).slot_of(number) for number in (0, 1, 3)] == [0, 1, 2]
