"""Optuna samplers and pruners by name, and the twins of a pilot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optuna
import pytest
from optuna.pruners import SuccessiveHalvingPruner
from optuna.samplers import RandomSampler, TPESampler
from optuna.trial import TrialState

from hpo_mab._attributes import EVIDENCE_KEY, completed_spec
from hpo_mab._errors import ArgumentError, SpecError
from hpo_mab.advantage import Evidence
from hpo_mab.pruners import AdvantagePruner
from hpo_mab.search import PlannedSampler, StudyRunner, StudySpec, make_spec
from hpo_mab.search._components import (
    OwnHistory,
    is_continuable,
    sampler_factory,
    study_pruner,
)
from hpo_mab.storage import Storage, StudyRun, open_study


def first_rung(definition: dict[str, Any]) -> int | None:
    """Evaluation of the first rung that a definition's pruner has."""
    pruner = study_pruner(make_spec(definition), {})
    if isinstance(pruner, AdvantagePruner):
        return pruner.uniform_step(0, full=None)
    assert isinstance(pruner, SuccessiveHalvingPruner)
    return pruner._min_resource


@pytest.mark.parametrize(
    ("sampler", "kind"),
    [("mab", "advantage"), ("uniform", "advantage"), ("mab", "successive_halving")],
)
@pytest.mark.parametrize(
    ("training", "evaluation"),
    [
        ({}, 2),
        ({"average": 0.05}, 2),
        ({"average": {"low": 0.05, "high": 0.4}}, 2),
        ({"average": 0}, 3),
        # Some trials would be judged by their trained weights.
        ({"average": {"low": 0.0, "high": 0.4}}, 3),
        ({"average": {"choices": [0.2, 0.0]}}, 3),
    ],
)
def test_the_first_rung_is_earlier_where_all_trials_report_averaged_weights(
    sampler: str, kind: str, training: dict[str, Any], evaluation: int
) -> None:
    definition = {
        "name": "rungs",
        "budget": {"epochs": 1, "evaluations": 8},
        "sampler": {"kind": sampler},
        "training": training,
    }
    assert first_rung({**definition, "pruner": {"kind": kind}}) == evaluation
    assert first_rung({**definition, "pruner": {"kind": kind, "min_resource": 5}}) == 5


@pytest.mark.parametrize("kind", ["median", "percentile"])
@pytest.mark.parametrize(("average", "evaluation"), [(0.2, 1), (0, 2)])
def test_the_median_decides_at_once_where_all_trials_report_averaged_weights(
    kind: str, average: float, evaluation: int
) -> None:
    definition = {
        "name": "median",
        "budget": {"epochs": 1, "evaluations": 8},
        "training": {"average": average},
        "pruner": {"kind": kind},
    }
    pruner = study_pruner(make_spec(definition), {})
    study = optuna.create_study(direction="maximize", pruner=pruner)
    for _ in range(5):
        trial = study.ask()
        for step in range(1, 9):
            trial.report(0.9, step)
        study.tell(trial, 0.9)
    worse = study.ask()
    pruned = []
    for step in range(1, 9):
        worse.report(0.1, step)
        pruned.append(worse.should_prune())
    assert pruned.index(True) + 1 == evaluation


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pruner": {"kind": "hyperband", "min_resource": 0}}, "pruner.min_resource .* 1, got 0"),
        ({"pruner": {"kind": "hyperband", "max_resource": 0}}, "pruner.max_resource .* 1, got 0"),
        ({"pruner": {"kind": "successive_halving", "min_resource": 9}}, "min_resource .* got 9"),
        ({"pruner": {"kind": "advantage", "min_resource": 4}}, "min_resource .* got 4"),
        ({"pruner": {"kind": "top_k"}, "budget": {"evaluations": 1}}, "budget.evaluations .* 2"),
        ({"search": {"n_ei_candidates": 0}}, "search.n_ei_candidates .* 1, got 0"),
        ({"search": {"n_startup_trials": -5}}, "search.n_startup_trials .* 0, got -5"),
        ({"search": {"prior_weight": -1.0}}, r"search.prior_weight .* 0, got -1\.0"),
    ],
)
def test_options_with_which_no_trial_would_be_stopped_or_begin_are_refused(
    tiny: Make, change: dict[str, Any], words: str
) -> None:
    with pytest.raises((ArgumentError, SpecError), match=words):
        tiny(**change)


def test_a_study_from_before_averaged_weights_keeps_its_first_rung() -> None:
    definition = {
        "name": "rungs",
        "budget": {"epochs": 1, "evaluations": 8},
        "pruner": {"kind": "advantage"},
    }
    stored = make_spec(definition).model_dump(mode="json")
    del stored["training"]["average"]
    assert first_rung(completed_spec(stored)) == 3


Make = Callable[..., StudySpec]


@pytest.mark.parametrize(
    ("change", "continuable"),
    [
        ({}, True),
        ({"pruner": {"kind": "promotion", "max_resource": 3}}, True),
        ({"pruner": {"kind": "promotion", "max_resource": 2}}, False),
        ({"training": {"schedule": "linear"}}, False),
        ({"sampler": {"kind": "auto"}}, False),
    ],
)
def test_which_trials_can_continue_beyond_their_budget(
    tiny: Make, change: dict[str, Any], continuable: bool
) -> None:
    spec = tiny(**{"training": {"schedule": "constant"}, **change})
    assert is_continuable(spec) == continuable


_PILOT = {"search": {"initial": 4}, "budget": {"trials": 7, "epochs": 1, "evaluations": 3}}


def _twins(run: StudyRun) -> list[Any]:
    return [trial for trial in run.trials if "hpo_mab:twin_of" in trial.attrs]


@pytest.mark.filterwarnings("ignore::hpo_mab.pruners.AdvantageWarning")
def test_the_first_configurations_are_trained_with_both_samplers(
    storage: Storage, tiny: Make
) -> None:
    spec = tiny(**_PILOT, pruner={"kind": "advantage"})
    run = StudyRunner(spec, storage).run(score=False).run
    twins = _twins(run)
    assert [twin.attrs["hpo_mab:twin_of"] for twin in twins] == [0, 1, 2, 3]
    assert [trial.slot for trial in run.trials] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 5, 6]
    # The same batches, weights and accuracies as in a uniform study of the seed.
    uniform = StudyRunner(
        tiny(**_PILOT, sampler={"kind": "uniform"}, pruner={"kind": "none"}), storage
    ).run(score=False)
    for twin in twins:
        original = run.trials[twin.number - 1]
        alone = uniform.run.trials[twin.slot]
        assert twin.params == original.params == alone.params
        assert [e.accuracy for e in twin.curve] == [e.accuracy for e in alone.curve]
        assert [e.train_loss for e in twin.curve] != [e.train_loss for e in original.curve]
        assert (twin.state, twin.attrs["hpo_mab:sampler"]) == ("complete", "uniform")
        assert original.attrs["hpo_mab:sampler"] == "mab"
        assert twin.paired
    stored = open_study(storage, run.name).user_attrs
    assert Evidence.from_json(stored[EVIDENCE_KEY]).pairs == 4
    assert run.examples == sum(trial.examples for trial in run.trials)


@pytest.mark.filterwarnings("ignore::hpo_mab.pruners.AdvantageWarning")
def test_twins_cost_what_the_total_budget_allows(storage: Storage, tiny: Make) -> None:
    spec = tiny(
        budget={"trials": 50, "total": "6epochs", "epochs": 1, "evaluations": 3},
        search={"initial": 4},
        pruner={"kind": "advantage"},
    )
    run = StudyRunner(spec, storage).run(score=False).run
    assert len(run.trials) in (6, 7)
    assert len(_twins(run)) == 3


@pytest.mark.filterwarnings("ignore::hpo_mab.pruners.AdvantageWarning")
@pytest.mark.parametrize("where", [(3, 1), (4, 2), (9, 1)])
def test_an_interrupted_pilot_resumes_to_the_same(
    storage: Storage, tiny: Make, ctrl_c_at: Any, essence: Any, where: tuple[int, int]
) -> None:
    spec = tiny(**_PILOT, pruner={"kind": "advantage"})
    whole = StudyRunner(spec, storage).run("whole", score=False).run
    with ctrl_c_at(*where):
        assert StudyRunner(spec, storage).run("parts", score=False).interrupted
    parts = StudyRunner(spec, storage).run("parts", score=False)
    assert essence(parts.run) == essence(whole)


@pytest.mark.filterwarnings("ignore::hpo_mab.pruners.AdvantageWarning")
def test_more_trials_than_the_pilot_wait_for_its_last_twin(storage: Storage, tiny: Make) -> None:
    sections = {**_PILOT, "budget": {"trials": 5, "epochs": 1, "evaluations": 3}}
    spec = tiny(**sections, pruner={"kind": "advantage"})
    run = StudyRunner(spec, storage).run(score=False).run
    assert [trial.state for trial in run.trials[:8]] == ["complete"] * 8
    twins = ["hpo_mab:twin_of" in trial.attrs for trial in run.trials]
    assert twins == [False, True] * 4 + [False]
    assert len(_twins(run)) == 4


@pytest.mark.filterwarnings("ignore::hpo_mab.pruners.AdvantageWarning")
def test_uniform_studies_have_no_pilot(storage: Storage, tiny: Make) -> None:
    spec = tiny(**_PILOT, sampler={"kind": "uniform"}, pruner={"kind": "advantage"})
    runner = StudyRunner(spec, storage)
    run = runner.run(score=False).run
    assert len(run.trials) == 7
    assert _twins(run) == []


@pytest.mark.filterwarnings("ignore::hpo_mab.pruners.AdvantageWarning")
def test_saved_evidence_needs_no_pilot(tiny: Make) -> None:
    spec = tiny(**_PILOT, pruner={"kind": "advantage", "reference": "tiny-uniform-seed0"})
    assert not spec.has_pilot
    assert tiny(**_PILOT, pruner={"kind": "advantage"}).has_pilot


def test_a_pilot_of_too_few_is_refused(tiny: Make) -> None:
    with pytest.raises(SpecError, match=r"search.initial must be at least 4 .* got 2"):
        tiny(search={"initial": 2}, pruner={"kind": "advantage"})


@pytest.mark.filterwarnings("ignore::hpo_mab.pruners.AdvantageWarning")
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
    seen = OwnHistory(study)
    assert [trial.value for trial in seen.get_trials()] == [0.1, 0.3]
    assert seen.study_name == study.study_name
    add(1, 0.5, sampler="trimmed", twin_of=1)
    assert [trial.value for trial in OwnHistory(study).get_trials()] == [0.1, 0.3]
    add(2, 0.4, sampler="uniform")
    # As it was at the first reading, which a trial's sampler makes once.
    assert [trial.value for trial in seen.get_trials()] == [0.1, 0.3]
    seen = OwnHistory(study)
    assert [trial.value for trial in seen.get_trials(deepcopy=False)] == [0.2, 0.3, 0.4]
    assert [trial.value for trial in seen._get_trials()] == [0.2, 0.3, 0.4]


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
    (shown,) = OwnHistory(study).get_trials(deepcopy=False)
    assert (shown.number, shown.value, shown.last_step) == (1, 0.6, 4)
    assert study.trials[1].value == 0.9


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


def test_scrambled_quasi_random_trials_are_points_of_one_sequence() -> None:
    factory = sampler_factory("qmc", {"scramble": True, "qmc_type": "sobol"})
    study = optuna.create_study(
        direction="maximize", sampler=PlannedSampler(factory, seed=0, initial=0)
    )

    def objective(trial: optuna.Trial) -> float:
        trial.suggest_categorical("kind", ["a", "b"])
        return trial.suggest_float("x", 0.0, 1.0)

    study.optimize(objective, n_trials=9)
    assert {trial.params["kind"] for trial in study.trials} == {"a", "b"}
    found = sorted(trial.params["x"] for trial in study.trials[1:])
    # Eight points of a Sobol sequence lie in the eight eighths.
    assert [int(8 * x) for x in found] == list(range(8))
