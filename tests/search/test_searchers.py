"""Optuna's samplers by name, and their suggestions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.samplers import RandomSampler, TPESampler
from optuna.samplers._tpe import sampler as tpe
from optuna.samplers._tpe.sampler import _split_trials
from optuna.trial import FrozenTrial, TrialState
from small_studies import tiny

from hpo_mab import HpoMabWarning
from hpo_mab._plan import Plan
from hpo_mab.search import _searchers
from hpo_mab.search._prepare import load_splits, make_objective
from hpo_mab.search._retries import requeue
from hpo_mab.search._searchers import OwnHistory, PlannedSearcher, searcher_maker
from hpo_mab.search._target import StudyTarget
from hpo_mab.search._trial_loop import TrialLoop
from hpo_mab.storage import Storage


def _history(study: optuna.Study) -> OwnHistory:
    return OwnHistory(study, repeats=True, most=None)


@pytest.mark.filterwarnings("ignore:AdvantagePruner decides:hpo_mab.HpoMabWarning")
def test_the_search_model_sees_each_configuration_once() -> None:
    study = optuna.create_study(direction="maximize")

    def add(slot: int, value: float, **attrs: Any) -> None:
        ours = {f"hpo_mab:{name}": attr for name, attr in {"slot": slot, **attrs}.items()}
        study.add_trial(
            optuna.create_trial(state=TrialState.COMPLETE, value=value, user_attrs=ours)
        )

    add(0, 0.1, sampler="mab")
    add(0, 0.2, sampler="uniform", twin_of=0)
    add(1, 0.3, sampler="mab")
    seen = _history(study)
    assert [trial.value for trial in seen.get_trials()] == [0.1, 0.3]
    assert seen.study_name == study.study_name
    add(1, 0.5, sampler="trimmed", twin_of=1)
    assert [trial.value for trial in _history(study).get_trials()] == [0.1, 0.3]
    assert [trial.value for trial in _history(study).trials] == [0.1, 0.3]
    add(2, 0.4, sampler="uniform")
    # As it was at the first reading, which a trial's sampler makes once.
    assert [trial.value for trial in seen.get_trials()] == [0.1, 0.3]
    seen = _history(study)
    assert [trial.value for trial in seen.get_trials(deepcopy=False)] == [0.2, 0.3, 0.4]
    assert [trial.value for trial in seen._get_trials()] == [0.2, 0.3, 0.4]


def _finish(study: optuna.Study, *, complete: int, pruned: int) -> None:
    rng = np.random.default_rng(0)
    for number, kind in enumerate(rng.permutation([True] * complete + [False] * pruned)):
        value = float(rng.random()) if kind or number % 3 else math.nan
        step = 8 if kind else int(rng.integers(1, 8))
        study.add_trial(
            optuna.create_trial(
                state=TrialState.COMPLETE if kind else TrialState.PRUNED,
                value=value if kind else None,
                intermediate_values={step: value} if number else {},
                params={"x": float(rng.random())},
                distributions={"x": optuna.distributions.FloatDistribution(0.0, 1.0)},
            )
        )


@pytest.mark.parametrize("complete", [150, 10])
def test_tpe_is_shown_the_good_trials_and_an_even_share_of_the_others(complete: int) -> None:
    study = optuna.create_study(direction="maximize")
    _finish(study, complete=complete, pruned=400 - complete)
    running = study.ask()

    def shown(most: int) -> list[FrozenTrial]:
        view = OwnHistory(study, repeats=False, most=most)
        return view._get_trials(deepcopy=False)

    assert shown(400) == study.trials
    some = shown(100)
    assert 95 <= len(some) - 1 <= 105
    assert some[-1].number == running.number
    states = (TrialState.COMPLETE, TrialState.PRUNED)
    below, _ = _split_trials(study, study.get_trials(deepcopy=False, states=states), 25)
    assert {trial.number for trial in below} <= {trial.number for trial in some}
    # What it is shown of fewer trials holds all that it is shown of more, but for good ones.
    good = {trial.number for trial in below}
    assert {t.number for t in shown(60)} - good <= {t.number for t in some}
    half = sum(trial.number < 200 for trial in some)
    assert 40 <= half <= 62


def test_twins_are_not_among_the_trials_that_are_shown() -> None:
    study = optuna.create_study(direction="maximize")
    for slot in range(300):
        attrs = {"hpo_mab:slot": slot, "hpo_mab:sampler": "mab"}
        study.add_trial(optuna.create_trial(value=slot / 300, user_attrs=attrs))
    twins = {"hpo_mab:sampler": "uniform", "hpo_mab:twin_of": 0}
    # The best values are those of twins, and of a continuation at a later budget.
    for slot in range(100):
        attrs = {**twins, "hpo_mab:slot": slot}
        study.add_trial(optuna.create_trial(value=2.0, user_attrs=attrs))
    longer = {"hpo_mab:slot": 0, "hpo_mab:promotes": 0, "hpo_mab:length": 2}
    study.add_trial(
        optuna.create_trial(value=3.0, intermediate_values={1: 0.1, 2: 3.0}, user_attrs=longer)
    )
    shown = OwnHistory(study, repeats=True, most=100)._get_trials(deepcopy=False)
    assert 95 <= len(shown) <= 105
    assert not any("hpo_mab:twin_of" in trial.user_attrs for trial in shown)
    best = sorted((trial.value or 0.0 for trial in shown), reverse=True)
    assert best[:25] == [slot / 300 for slot in range(299, 274, -1)]


def test_tpe_leaves_its_random_trials_whatever_it_is_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_searchers, "SHOWN_TRIALS", 30)
    made = [searcher_maker("tpe", {"n_startup_trials": 50})(seed=0), _Subclass()]
    assert [_searchers._most_shown(sampler) for sampler in made] == [80, None]


class _Subclass(TPESampler):
    pass


def test_tpe_proposes_from_what_it_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_searchers, "SHOWN_TRIALS", 60)
    study = _study(initial=0)
    _finish(study, complete=200, pruned=200)
    seen: list[int] = []

    def split(study: optuna.Study, trials: list[FrozenTrial], n_below: int) -> Any:
        seen.append(len(trials))
        return _split_trials(study, trials, n_below)

    monkeypatch.setattr(tpe, "_split_trials", split)
    study.optimize(_objective, n_trials=1)
    assert seen
    assert all(50 <= number <= 80 for number in seen)
    # Another sampler has its own use of all trials.
    study.sampler = PlannedSearcher(_Counting, seed=0, initial=0)
    study.optimize(_objective, n_trials=1)
    assert _Counting.seen == 402


@pytest.mark.parametrize(
    ("state", "ranges", "found"),
    [
        (TrialState.COMPLETE, {"y": (0.0, 1.0), "x": (0.0, 1.0)}, ["x"]),
        (TrialState.PRUNED, {"x": (0.0, 2.0)}, []),
        (TrialState.FAIL, {"x": (0.0, 2.0)}, ["x"]),
    ],
)
def test_tpe_compares_the_ranges_of_few_trials(
    monkeypatch: pytest.MonkeyPatch,
    state: TrialState,
    ranges: dict[str, tuple[float, float]],
    found: list[str],
) -> None:
    study = _study(initial=0)
    _finish(study, complete=20, pruned=20)
    distributions = {
        name: optuna.distributions.FloatDistribution(low, high)
        for name, (low, high) in ranges.items()
    }
    study.add_trial(
        optuna.create_trial(
            state=state,
            value=0.5 if state == TrialState.COMPLETE else None,
            params=dict.fromkeys(ranges, 0.5),
            distributions=distributions,
        )
    )
    _finish(study, complete=5, pruned=5)
    study.ask()
    running = study.trials[-1]
    infer, seen = TPESampler.infer_relative_search_space, list[int]()
    own = infer(TPESampler(), study, running)
    assert list(own) == found

    def counted(sampler: TPESampler, shown: optuna.Study, trial: FrozenTrial) -> Any:
        seen.append(len(shown._get_trials(deepcopy=False)))
        return infer(sampler, shown, trial)

    monkeypatch.setattr(TPESampler, "infer_relative_search_space", counted)
    assert study.sampler.infer_relative_search_space(study, running) == own
    assert seen[0] <= 3


class _Counting(RandomSampler):
    seen = 0

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        type(self).seen = len(study.get_trials(deepcopy=False))


def _objective(trial: optuna.Trial) -> float:
    x = trial.suggest_float("x", 0.0, 1.0)
    knob = trial.suggest_int("sampler.memory", 1, 100)
    return -((x - 0.3) ** 2) + 0.001 * knob


def _study(**options: object) -> optuna.Study:
    return optuna.create_study(
        direction="maximize", sampler=PlannedSearcher(TPESampler, **{"seed": 0, **options})
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
        study.sampler = PlannedSearcher(RandomSampler, seed=0, initial=0)
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
        parts.sampler = PlannedSearcher(TPESampler, seed=0, initial=3)
        parts.optimize(_objective, n_trials=1)
    assert _points(parts) == _points(whole)


def test_a_sampler_sees_a_lengthened_trial_once_with_its_value_at_its_budget() -> None:
    study = optuna.create_study(direction="maximize")
    curve = {1: 0.5, 2: 0.6, 3: 0.7, 4: 0.9}
    for length in (1, 2):
        attrs = {"hpo_mab:slot": 0, "hpo_mab:length": length, "hpo_mab:promotes": 0}
        if length == 1:
            del attrs["hpo_mab:promotes"], attrs["hpo_mab:length"]
        values = {step: value for step, value in curve.items() if step <= 2 * length}
        study.add_trial(
            optuna.create_trial(
                value=values[2 * length], intermediate_values=values, user_attrs=attrs
            )
        )
    (shown,) = _history(study).get_trials(deepcopy=False)
    assert (shown.number, shown.value, shown.last_step) == (1, 0.6, 4)
    assert study.trials[1].value == 0.9


@pytest.mark.parametrize("initial", [0, 4])
def test_seeds_differ(initial: int) -> None:
    points = []
    for seed in (0, 1):
        study = optuna.create_study(
            direction="maximize", sampler=PlannedSearcher(RandomSampler, seed=seed, initial=initial)
        )
        study.optimize(_objective, n_trials=4)
        points.append(_points(study))
    assert not set(points[0]) & set(points[1])


def test_scrambled_quasi_random_trials_are_points_of_one_sequence() -> None:
    make = searcher_maker("qmc", {"qmc_type": "sobol"})

    def objective(trial: optuna.Trial) -> float:
        trial.suggest_categorical("kind", ["a", "b"])
        return trial.suggest_float("x", 0.0, 1.0)

    points = []
    for seed in (0, 1):
        sampler = PlannedSearcher(make, seed=seed, initial=0)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        study.optimize(objective, n_trials=9)
        assert {trial.params["kind"] for trial in study.trials} == {"a", "b"}
        found = sorted(trial.params["x"] for trial in study.trials[1:])
        # Eight points of a Sobol sequence lie in the eight eighths.
        assert [int(8 * x) for x in found] == list(range(8))
        points.append(found)
    assert not set(points[0]) & set(points[1])


class _Grid(optuna.samplers.GridSampler):
    def __init__(self, *, seed: int) -> None:
        super().__init__({"lr": [0.01, 0.1]}, seed=seed)


def test_a_grid_that_is_exhausted_does_not_end_the_command(storage: Storage) -> None:
    spec = tiny(search={"initial": 0}, budget={"trials": 3}, pruner={"kind": "none"})
    objective = make_objective(spec, load_splits(spec))
    study = optuna.create_study(
        study_name="grid",
        storage=storage.optuna,
        direction="maximize",
        sampler=PlannedSearcher(_Grid, seed=0, initial=0),
    )
    StudyTarget(trials=3, total=None, epoch_examples=100).save(study)
    with pytest.warns(HpoMabWarning, match="proposed all that it has"):
        assert not TrialLoop(study, storage, objective).run()
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 3
    assert {trial.params["lr"] for trial in study.trials} == {0.01, 0.1}


def test_the_search_model_sees_the_trials_of_all_brackets_of_hyperband() -> None:
    pruner = optuna.pruners.HyperbandPruner(min_resource=1, max_resource=8, reduction_factor=2)
    study = optuna.create_study(direction="maximize", pruner=pruner)
    pruner._try_initialization(study)
    for slot in range(20):
        attrs = {"hpo_mab:slot": slot}
        study.add_trial(optuna.create_trial(value=0.5, user_attrs=attrs))
    bracket = optuna.pruners._filter_study(study, study.trials[0])
    assert len(bracket.get_trials()) < 20
    assert len(_history(bracket)._get_trials(deepcopy=False)) == 20


class _Nine(optuna.samplers.GridSampler):
    def __init__(self, *, seed: int) -> None:
        super().__init__({"x": list(range(9))}, seed=seed)


def test_a_grid_has_one_order_and_counts_only_what_it_has_proposed() -> None:
    study = optuna.create_study(sampler=PlannedSearcher(_Nine, seed=0, initial=3))
    with pytest.warns(HpoMabWarning, match="proposed all that it has"):
        study.optimize(lambda trial: float(trial.suggest_int("x", 0, 8)), n_trials=12)
    assert sorted(trial.params["x"] for trial in study.trials[3:]) == list(range(9))
    # A trial whose parameters are known takes none of its points, not even the last one left.
    study = optuna.create_study(sampler=PlannedSearcher(_Nine, seed=0, initial=0))
    study.optimize(lambda trial: float(trial.suggest_int("x", 0, 8)), n_trials=8)
    study.add_trial(
        optuna.create_trial(
            state=TrialState.WAITING,
            params={"x": 4},
            distributions={"x": optuna.distributions.IntDistribution(0, 8)},
        )
    )
    study.optimize(lambda trial: float(trial.suggest_int("x", 0, 8)), n_trials=1)
    with pytest.warns(HpoMabWarning, match="proposed all that it has"):
        study.optimize(lambda trial: float(trial.suggest_int("x", 0, 8)), n_trials=1)
    own = [trial.params["x"] for trial in study.trials if trial.number != 8]
    assert sorted(own) == list(range(9))


def test_a_retry_keeps_its_point_of_a_grid() -> None:
    study = optuna.create_study(sampler=PlannedSearcher(_Nine, seed=0, initial=0))
    first = study.ask()
    for key, value in (("slot", 0), ("interrupted", True)):
        first.set_user_attr(f"hpo_mab:{key}", value)
    study.tell(0, state=TrialState.FAIL)  # Cut off before its parameter was suggested.
    storage = study._storage
    assert requeue(study, Plan.of(study)) == 1
    study.optimize(lambda trial: float(trial.suggest_int("x", 0, 8)), n_trials=1)
    point = storage.get_all_trials(study._study_id)[0].system_attrs["grid_id"]
    assert study.trials[1].system_attrs["grid_id"] == point


def test_an_option_that_optuna_will_remove_is_warned_of_once_and_not_for_each_trial() -> None:
    with pytest.warns(FutureWarning, match="consider_endpoints"):
        make = searcher_maker("tpe", {"consider_endpoints": True})
    make(seed=1)  # A warning is an error here.
