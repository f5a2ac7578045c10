from __future__ import annotations

import optuna
import pytest
from optuna.samplers import RandomSampler, TPESampler

from hpo_mab.search import PlannedSampler


def _objective(trial: optuna.Trial) -> float:
    x = trial.suggest_float("x", 0.0, 1.0)
    knob = trial.suggest_int("sampler.memory", 1, 100)
    return -((x - 0.3) ** 2) + 0.001 * knob


def _study(**options: object) -> optuna.Study:
    return optuna.create_study(
        direction="maximize", sampler=PlannedSampler(TPESampler, **{"seed": 0, **options})
    )


def _points(study: optuna.Study) -> list[tuple[float, int]]:
    return [(t.params["x"], t.params["sampler.memory"]) for t in study.trials]


def test_first_configurations_do_not_depend_on_what_else_is_searched() -> None:
    study = _study(initial=5)
    study.optimize(_objective, n_trials=5)
    other = _study(initial=5)
    other.optimize(lambda trial: trial.suggest_float("x", 0.0, 1.0), n_trials=5)
    assert [x for x, _ in _points(study)] == [t.params["x"] for t in other.trials]
    assert len({x for x, _ in _points(study)}) == 5


def test_what_is_searched_is_searched_from_the_first_trial_on() -> None:
    study = _study(initial=6)
    study.optimize(_objective, n_trials=6)
    assert len({knob for _, knob in _points(study)}) == 6


def test_trials_of_one_study_at_the_same_time_have_a_sampler_each() -> None:
    alone, together = _study(initial=0), _study(initial=0)
    for study in (alone, together):
        study.sampler = PlannedSampler(RandomSampler, seed=0, initial=0)
    alone.optimize(_objective, n_trials=2)
    trials = [together.ask() for _ in range(2)]
    for name in ("x", "sampler.memory"):
        for trial in trials:
            if name == "x":
                trial.suggest_float(name, 0.0, 1.0)
            else:
                trial.suggest_int(name, 1, 100)
    assert [trial.params for trial in trials] == [trial.params for trial in alone.trials]


def test_a_study_stopped_and_resumed_equals_one_never_stopped() -> None:
    whole = _study(initial=3)
    whole.optimize(_objective, n_trials=14)
    parts = _study(initial=3)
    for _ in range(14):
        parts.sampler = PlannedSampler(TPESampler, seed=0, initial=3)
        parts.optimize(_objective, n_trials=1)
    assert _points(parts) == _points(whole)


@pytest.mark.parametrize("initial", [0, 4])
def test_seeds_differ(initial: int) -> None:
    points = []
    for seed in (0, 1):
        study = optuna.create_study(
            direction="maximize", sampler=PlannedSampler(RandomSampler, seed=seed, initial=initial)
        )
        study.optimize(_objective, n_trials=4)
        points.append(_points(study))
    assert not set(points[0]) & set(points[1])
