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


def test_defaults_hold_in_the_first_configurations_only() -> None:
    study = _study(initial=3, defaults={"sampler.memory": 50, "x": 7.0})
    study.optimize(_objective, n_trials=12)
    knobs = [knob for _, knob in _points(study)]
    assert knobs[:3] == [50, 50, 50]
    assert set(knobs[3:]) != {50}
    # A default outside the range is no default.
    assert all(0.0 <= x <= 1.0 for x, _ in _points(study))


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
