"""Optuna's private parts are touched in one place."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
from optuna import pruners
from optuna.storages import RDBStorage

import hpo_mab
from hpo_mab.storage._optuna import StudyView, hyperband_bracket, settings_of

_PACKAGE = Path(hpo_mab.__file__).parent
#: `_lean` is one of Optuna's storages with other statements, `_tables` has its tables.
_ALLOWED = {"storage/_optuna.py", "storage/_lean.py", "storage/_tables.py"}


def _private_names(*things: Any) -> set[str]:
    names = {name for thing in things for name in (*dir(thing), *getattr(thing, "__dict__", ()))}
    return {name for name in names if name.startswith("_") and not name.startswith("__")}


def _used(path: Path, private: set[str]) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and node.attr in private:
            # Our own classes may have a `_storage`, too.
            if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")):
                yield f"{path}:{node.lineno}: {node.attr}"
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("optuna."):
            if "._" in str(node.module):
                yield f"{path}:{node.lineno}: {node.module}"
        elif isinstance(node, ast.Constant) and node.value in private:
            yield f"{path}:{node.lineno}: {node.value!r}"


def test_nothing_else_names_private_parts_of_optuna() -> None:
    study = optuna.create_study()
    private = _private_names(
        study,
        study.ask(),
        optuna.create_trial(value=0.0),
        RDBStorage,
        pruners.HyperbandPruner(),
        pruners.PatientPruner(None, patience=1),
        pruners.PercentilePruner(25.0),
        pruners.SuccessiveHalvingPruner(),
        pruners.ThresholdPruner(lower=0.0),
        pruners.WilcoxonPruner(),
    ) | {"_backend"}  # Of the cache that Optuna puts around a database storage.
    assert {"_trial_id", "_study_id", "_storage", "_percentile", "_get_trials"} <= private
    files = {str(path.relative_to(_PACKAGE)): path for path in _PACKAGE.rglob("*.py")}
    paths = [path for name, path in files.items() if name not in _ALLOWED]
    assert len(paths) > 50
    assert [use for path in paths for use in _used(path, private)] == []
    # The search finds what it looks for.
    assert list(_used(_PACKAGE / "storage/_optuna.py", private))


def test_settings_have_the_names_of_a_pruners_arguments() -> None:
    settings = settings_of(pruners.SuccessiveHalvingPruner(min_resource=2, reduction_factor=3))
    assert (settings["min_resource"], settings["reduction_factor"]) == (2, 3)
    assert settings_of(pruners.PercentilePruner(30.0))["percentile"] == 30.0


def test_a_bracket_has_its_own_pruner_and_trials() -> None:
    pruner = pruners.HyperbandPruner(min_resource=1, max_resource=8, reduction_factor=2)
    study = optuna.create_study(pruner=pruner)
    for _ in range(6):
        trial = study.ask()
        trial.report(0.5, 1)
        trial.should_prune()
        study.tell(trial, 0.5)
    frozen = study.get_trials(deepcopy=False)[-1]
    number, halving, among = hyperband_bracket(pruner, study, frozen)
    assert isinstance(halving, pruners.SuccessiveHalvingPruner)
    shown = among.get_trials(deepcopy=False)
    assert frozen.number in {one.number for one in shown}
    assert all(hyperband_bracket(pruner, study, one)[0] == number for one in shown)


class _Even(StudyView):
    def shown(self, trials: list[optuna.trial.FrozenTrial]) -> list[optuna.trial.FrozenTrial]:
        return [trial for trial in trials if trial.number % 2 == 0]


def test_a_sampler_sees_the_trials_that_a_view_shows() -> None:
    sampler = optuna.samplers.TPESampler(n_startup_trials=1, seed=0)
    study = optuna.create_study(sampler=sampler)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=4)
    view: Any = _Even(study)
    assert [one.number for one in view.get_trials(deepcopy=False)] == [0, 2]
    assert view.study_name == study.study_name
    trial = study.get_trials(deepcopy=False)[-1]
    asked: list[int] = []
    view.shown = lambda trials: asked.extend(t.number for t in trials) or trials
    sampler.sample_independent(view, trial, "x", optuna.distributions.FloatDistribution(0, 1))
    assert asked
