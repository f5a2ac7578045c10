from __future__ import annotations

import math

import numpy as np
import optuna
import pytest

from hpo_mab._errors import ArgumentError
from hpo_mab.pruners import PromotionPruner, TopKPruner

PROMOTES = "hpo_mab:promotes"


class _Study:
    """A study whose trials report given values; paused ones continue when `advance` says so."""

    def __init__(self, direction: str = "maximize", **settings: int) -> None:
        self.pruner = PromotionPruner(**{"max_resource": 8, **settings})
        self.study = optuna.create_study(direction=direction, pruner=self.pruner)
        self._values: dict[int, list[float]] = {}
        #: Whether trials become better beyond 8 steps.
        self.gain = 1
        #: Values of complete trials whose state is not saved.
        self.unsaved: tuple[float, ...] = ()

    def _saved(self, trial: optuna.trial.FrozenTrial) -> bool:
        return trial.value not in self.unsaved

    def new(self, *values: float) -> optuna.trial.FrozenTrial:
        """A trial that reports the values from step 1 on until it pauses; one value is repeated."""
        return self._train(list(values) * (8 if len(values) == 1 else 1))

    def advance(self, *, every: bool = False, longer: bool = False) -> int | None:
        """Continue the next trial; the number of the paused one, None if there is none."""
        best = self.pruner.next_best(
            self.study, every=every, is_saved=self._saved if longer else None
        )
        if best is None:
            return None
        self.study.enqueue_trial({}, user_attrs={PROMOTES: best.number})
        values = self._values[best.number]
        for step in range(len(values), 8 * ((best.last_step or 0) // 8 + 1)):
            values = [*values, values[-1] + (0.0001 if step >= 8 else 0.0) * self.gain]
        self._train(values)
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
def test_the_best_of_a_rung_continue_and_the_others_pause(direction: str, sign: int) -> None:
    made = _Study(direction)
    for value in (0.5, 0.4, 0.6, 0.3):
        made.new(sign * value)
    # The third is the best of three, so it continues at once; it is alone at the second rung.
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
    # At rung 2 the second trial is best of two; no other trial of rung 1 may continue.
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
    # Four of twelve may continue: a quarter more and eight are kept.
    assert [trial.number for trial in made.pruner.worth_keeping(made.study)] == list(range(12))
    assert made.advance() == 0
    assert made.ends[-1] == ("COMPLETE", 8)
    assert 12 not in {trial.number for trial in made.pruner.worth_keeping(made.study)}


def test_checkpoints_of_many_paused_trials_are_dropped() -> None:
    made = _Study(min_resource=4)
    for value in np.linspace(0.9, 0.1, 100):
        made.new(float(value))
    assert made.ends == [("PRUNED", 4)] * 100
    # Half may continue: a quarter more and eight are kept.
    assert [trial.number for trial in made.pruner.worth_keeping(made.study)] == list(range(70))


def _complete(*values: float, **settings: int) -> _Study:
    """A study whose trials have all reached their budget of 8 steps."""
    made = _Study(min_resource=7, **settings)
    for value in values:
        made.new(value)
    while made.advance(every=True) is not None:
        pass
    assert {end for end in made.ends if end[0] == "COMPLETE"} == {("COMPLETE", 8)}
    return made


def test_the_best_complete_trials_continue_beyond_their_budget() -> None:
    made = _complete(0.5, 0.6, 0.7, 0.8, unlimited=True)
    # Only on request: without a limit elsewhere this would not end.
    assert made.advance() is None
    first = len(made.ends)
    while made.advance(longer=True) is not None:
        pass
    ends = made.study.trials[first:]
    # Two of four are trained twice as long, the better one of them four times.
    assert [(trial.last_step, round(trial.value or 0, 1)) for trial in ends] == [
        *((16, 0.8), (16, 0.7), (24, 0.8), (32, 0.8)),
    ]


def test_a_complete_trial_that_cannot_continue_is_passed_over() -> None:
    made = _complete(0.5, 0.6, 0.7, 0.8, unlimited=True)
    made.unsaved = (0.7, 0.8)
    assert made.advance(longer=True) is None
    assert made.advance(every=True, longer=True) is not None
    assert made.study.trials[-1].last_step == 16
    assert made.study.trials[-1].intermediate_values[8] == 0.6


def test_with_every_complete_trials_come_before_paused_ones() -> None:
    made = _Study(min_resource=4, unlimited=True)
    for value in (0.3, 0.9, 0.5):
        made.new(value)
    assert made.ends == [("PRUNED", 4), ("COMPLETE", 8), ("PRUNED", 4)]
    assert made.advance(longer=True) is None
    assert made.advance(every=True, longer=True) == 1
    # A study without a total budget continues those that are paused.
    assert made.advance(every=True) == 2


def test_with_every_a_complete_trial_that_did_not_become_better_comes_last() -> None:
    made = _Study(min_resource=4, unlimited=True)
    made.gain = -1
    for value in (0.3, 0.9, 0.5):
        made.new(value)
    # The first becomes longer and worse. The paused ones continue, and become longer once.
    assert [made.advance(every=True, longer=True) for _ in range(5)] == [1, 2, 4, 0, 6]
    assert [trial.last_step for trial in made.study.trials[3:]] == [16, 8, 16, 8, 16]
    # All have become worse: the best is the first again.
    assert made.advance(every=True, longer=True) == 3


def test_with_every_all_complete_trials_continue_the_best_of_their_rung_first() -> None:
    made = _complete(0.5, 0.6, 0.7, 0.8, unlimited=True)
    first = len(made.ends)
    for _ in range(11):
        made.advance(every=True, longer=True)
    ends = made.study.trials[first:]
    assert [(trial.last_step, round(trial.value or 0, 1)) for trial in ends] == [
        *((16, 0.8), (16, 0.7)),
        # The best of two is among a half, the third of four among three quarters.
        *((24, 0.8), (32, 0.8), (16, 0.6)),
        *((24, 0.7), (32, 0.7), (40, 0.8), (48, 0.8), (56, 0.8), (64, 0.8)),
    ]


def test_the_checkpoints_of_complete_trials_are_kept_only_where_they_may_continue() -> None:
    for unlimited in (False, True):
        made = _complete(0.4, 0.5, 0.6, 0.7, 0.8, unlimited=unlimited)
        kept = made.pruner.worth_keeping(made.study)
        # Two may continue, and two that a better one more would make room for.
        assert sorted(trial.value or 0 for trial in kept) == [0.5, 0.6, 0.7, 0.8] * unlimited


def test_a_trial_with_fewer_reports_than_the_budget_has_does_not_continue() -> None:
    made = _Study(min_resource=7, unlimited=True)
    for value in (0.5, 0.6):
        made.new(*[value] * 5)
    assert made.ends == [("COMPLETE", 5)] * 2
    assert made.advance(every=True, longer=True) is None


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


VALUES = [0.3, 0.9, math.nan, 0.7, 0.8]


def _top_k_study(direction: str, **settings: float) -> optuna.Study:
    pruner = TopKPruner(max_resource=8, **settings)
    study = optuna.create_study(direction=direction, pruner=pruner)

    def objective(trial: optuna.Trial) -> float:
        trial.suggest_float("x", 0, 1)
        value = VALUES[trial.number] if trial.number < len(VALUES) else 0.5
        for step in range(1, 9):
            trial.report(value + 0.001 * step, step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return value

    study.optimize(objective, n_trials=len(VALUES))
    for _ in range(2):
        best = pruner.next_best(study)
        assert best is not None
        study.enqueue_trial(best.params, user_attrs={"hpo_mab:promotes": best.number})
        study.optimize(objective, n_trials=1)
    return study


@pytest.mark.parametrize(("direction", "best"), [("maximize", [1, 4]), ("minimize", [0, 3])])
def test_all_are_stopped_at_the_share_and_the_best_trained_in_full(
    direction: str, best: list[int]
) -> None:
    study = _top_k_study(direction, after=0.25, k=2)
    stopped, promoted = study.trials[:5], study.trials[5:]
    assert [trial.state.name for trial in stopped] == ["PRUNED"] * 5
    assert [trial.last_step for trial in stopped] == [2] * 5
    assert [trial.state.name for trial in promoted] == ["COMPLETE"] * 2
    assert [trial.user_attrs["hpo_mab:promotes"] for trial in promoted] == best
    assert [trial.params for trial in promoted] == [study.trials[i].params for i in best]


@pytest.mark.parametrize(
    ("after", "resource", "step"), [(0.25, 8, 2), (0.3, 8, 3), (1 / 3, 9, 3), (0.01, 4, 1)]
)
def test_the_first_evaluation_at_or_after_the_share_decides(
    after: float, resource: int, step: int
) -> None:
    assert TopKPruner(max_resource=resource, after=after).stop_step == step


def test_nothing_left_is_none() -> None:
    study = optuna.create_study(pruner=TopKPruner(max_resource=2, after=0.5))
    assert study.pruner.next_best(study) is None


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"after": 0.0}, r"after must be in \(0, 1\), got 0.0"),
        ({"after": 0.9}, "after must be at most 0.875, .* got 0.9"),
        ({"k": 0}, "k must be an integer of at least 1, got 0"),
        ({"max_resource": 1}, "max_resource must be an integer of at least 2, got 1"),
    ],
)
def test_top_k_arguments_outside_their_bounds(settings: dict[str, float], words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        TopKPruner(**{"max_resource": 8, **settings})


def test_reports_may_miss_the_step_at_which_trials_are_stopped() -> None:
    pruner = TopKPruner(max_resource=np.int64(9), after=0.25, k=np.int64(2))
    study = optuna.create_study(direction="maximize", pruner=pruner)
    assert pruner.stop_step == 3
    for value in (0.3, 0.9, 0.5):
        trial = study.ask()
        for step in (2, 4):
            trial.report(value + step, step)
        assert trial.should_prune()
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    best = pruner.next_best(study)
    assert best is not None
    assert best.number == 1


def test_a_user_attribute_of_the_users_own_is_no_promotion() -> None:
    study = optuna.create_study(direction="maximize", pruner=TopKPruner(max_resource=8))
    study.enqueue_trial({}, user_attrs={"promotes": "the cause"})
    trial = study.ask()
    trial.report(0.5, 2)
    assert trial.should_prune()
