from __future__ import annotations

import math

import numpy as np
import optuna
import pytest

from hpo_mab._errors import ArgumentError
from hpo_mab.pruners import PromotionPruner

PROMOTES = "hpo_mab:promotes"


class _Study:
    """A study whose trials report given values; paused ones continue when `advance` says so."""

    def __init__(self, direction: str = "maximize", **settings: int) -> None:
        self.pruner = PromotionPruner(**{"max_resource": 8, **settings})
        self.study = optuna.create_study(direction=direction, pruner=self.pruner)
        self._values: dict[int, list[float]] = {}

    def new(self, *values: float) -> optuna.trial.FrozenTrial:
        """A trial that reports the values from step 1 on until it pauses; one value is repeated."""
        return self._train(list(values) * (8 if len(values) == 1 else 1))

    def advance(self, *, every: bool = False) -> int | None:
        """Continue the next trial; the number of the paused one, None if there is none."""
        best = self.pruner.next_best(self.study, every=every)
        if best is None:
            return None
        self.study.enqueue_trial({}, user_attrs={PROMOTES: best.number})
        self._train(self._values[best.number])
        return best.number

    def _train(self, values: list[float]) -> optuna.trial.FrozenTrial:
        trial = self.study.ask()
        self._values[trial.number] = values
        for step, value in enumerate(values, start=1):
            trial.report(value, step)
            if step < 8 and trial.should_prune():
                return self.study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        return self.study.tell(trial, values[-1])

    @property
    def ends(self) -> list[tuple[str, int | None]]:
        return [(trial.state.name, trial.last_step) for trial in self.study.trials]


@pytest.mark.parametrize(
    ("settings", "rungs"),
    [
        ({}, (1, 2, 4)),
        ({"min_resource": 3}, (3, 6)),
        ({"reduction_factor": 3}, (1, 3)),
        ({"max_resource": np.int64(9), "reduction_factor": np.int64(3)}, (1, 3)),
    ],
)
def test_rungs(settings: dict[str, int], rungs: tuple[int, ...]) -> None:
    assert PromotionPruner(**{"max_resource": 8, **settings}).rungs == rungs


@pytest.mark.parametrize(("direction", "sign"), [("maximize", 1), ("minimize", -1)])
def test_the_best_of_a_rung_go_on_and_the_others_pause(direction: str, sign: int) -> None:
    made = _Study(direction)
    for value in (0.5, 0.4, 0.6, 0.3):
        made.new(sign * value)
    # The third is the best of three, so it goes on at once; nobody is with it at the second rung.
    assert made.ends == [("PRUNED", 1), ("PRUNED", 1), ("PRUNED", 2), ("PRUNED", 1)]
    # Two of four may continue: the second best does, and there the third is better.
    assert made.advance() == 0
    assert made.ends[-1] == ("PRUNED", 2)
    # Two have reached the second rung: the better one continues, alone at the third.
    assert made.advance() == 2
    assert made.ends[-1] == ("PRUNED", 4)
    assert made.advance() is None


def test_the_highest_rung_comes_first() -> None:
    made = _Study()
    for value in (0.5, 0.9, 0.8, 0.7):
        made.new(value)
    assert made.ends[1] == ("PRUNED", 2)
    assert made.advance() == 2
    assert made.ends[-1] == ("PRUNED", 2)
    # At rung 2 the second trial is best of two; nobody else of rung 1 is due.
    assert made.advance() == 1


def test_a_trial_that_is_paused_too_early_continues_later() -> None:
    made = _Study()
    made.new(0.8)
    late = made.new(0.5, *[0.9] * 7)
    assert late.last_step == 1
    for _ in range(2):
        made.new(0.1)
    assert [made.advance(), made.advance()] == [0, late.number]
    # It passes the second rung, where it is the better one of two.
    assert made.ends[-2:] == [("PRUNED", 2), ("PRUNED", 4)]


def test_with_every_all_continue_to_the_end_the_highest_first() -> None:
    made = _Study(min_resource=4)
    for value in (0.3, 0.9, 0.5):
        made.new(value)
    assert made.ends == [("PRUNED", 4), ("COMPLETE", 8), ("PRUNED", 4)]
    assert made.advance() is None
    assert [made.advance(every=True) for _ in range(3)] == [2, 0, None]
    assert made.ends[-2:] == [("COMPLETE", 8)] * 2


def test_what_neither_enters_a_rung_nor_continues() -> None:
    made = _Study(min_resource=4)
    made.new(math.nan)
    diverged = made.study.ask()
    diverged.report(0.9, 4)
    diverged.set_user_attr("hpo_mab:slot", 1)
    diverged.set_user_attr("hpo_mab:reason", "the loss is not finite")
    made.study.tell(diverged, state=optuna.trial.TrialState.PRUNED)
    twin = made.study.ask()
    twin.set_user_attr("hpo_mab:slot", 2)
    twin.set_user_attr("hpo_mab:twin_of", 2)
    twin.report(0.95, 4)
    made.study.tell(twin, state=optuna.trial.TrialState.PRUNED)
    assert made.ends[0] == ("PRUNED", 4)
    # Of two at the rung, the diverged one is the best; it does not continue, nor does the other.
    assert made.new(0.5).last_step == 4
    assert made.advance(every=True) == 3
    assert made.advance(every=True) is None


def test_reports_may_miss_the_step_of_a_rung() -> None:
    made = _Study(min_resource=3)
    for value in (0.2, 0.9):
        trial = made.study.ask()
        trial.report(value, 2)
        assert not trial.should_prune()
        trial.report(value, 5)
        assert trial.should_prune() is (value == 0.2)
        made.study.tell(trial, state=optuna.trial.TrialState.PRUNED)


def test_checkpoints_of_the_best_are_kept() -> None:
    made = _Study(min_resource=4, reduction_factor=3)
    for value in np.linspace(0.9, 0.1, 12):
        made.new(float(value))
    assert made.ends == [("PRUNED", 4)] * 12
    # Four of twelve may continue: eight are kept, and as many more as it takes for another place.
    assert [trial.number for trial in made.pruner.worth_keeping(made.study)] == list(range(11))
    assert made.advance() == 0
    assert made.ends[-1] == ("COMPLETE", 8)
    assert 12 not in {trial.number for trial in made.pruner.worth_keeping(made.study)}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_resource": 1}, "max_resource must be an integer of at least 2, got 1"),
        ({"min_resource": 0}, "min_resource must be an integer of at least 1, got 0"),
        ({"min_resource": 8}, "min_resource must be below max_resource = 8, got 8"),
        ({"reduction_factor": 1}, "reduction_factor must be an integer of at least 2, got 1"),
    ],
)
def test_arguments_outside_their_bounds(settings: dict[str, int], words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        PromotionPruner(**{"max_resource": 8, **settings})
