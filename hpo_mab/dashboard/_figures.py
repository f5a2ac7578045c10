"""The figures of a study's page, in their order, small enough for its attributes."""

from __future__ import annotations

import collections
import itertools
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import create_trial

from hpo_mab.compare import figures
from hpo_mab.compare._records import CURRENCIES
from hpo_mab.search._ranges import holds, parse_value, ranges, without_none
from hpo_mab.storage import StudyRun

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from hpo_mab.compare import ComparisonSummary

#: Order on the study's page: `hpo_mab.dashboard.application` sorts figures by name.
_ORDER = (
    "incumbent-examples",
    "incumbent-seconds",
    "advantage-examples",
    "advantage-seconds",
    "acceleration-examples",
    "acceleration-seconds",
    "fidelity",
    "cost-to-target",
    "importance",
    "knobs",
    "reward-rate",
    "concentration",
)
_POINTS = 60
_SCATTERED = 200
_FEWEST_TRIALS = 10


def study_figures(runs: Sequence[StudyRun]) -> dict[str, go.Figure]:
    """Figures of studies that have data, by name; the names sort in the order of display.

    Args:
        runs: The studies.
    """
    by_arm: dict[str, list[dict[str, float]]] = collections.defaultdict(list)
    for run in runs:
        if shares := importances(run):
            by_arm[run.arm].append(shares)
    made = {
        "incumbent-examples": figures.anytime_incumbent(runs, max_points=_POINTS),
        "incumbent-seconds": figures.anytime_incumbent(
            runs, currency="seconds", max_points=_POINTS
        ),
        "importance": figures.knob_importance({arm: _mean(one) for arm, one in by_arm.items()}),
        "knobs": figures.knob_slices(runs, max_points=_SCATTERED),
        "reward-rate": figures.reward_rate(runs, max_points=_POINTS),
        "concentration": figures.concentration(runs, max_points=_POINTS),
    }
    return _in_order(made)


def comparison_figures(summary: ComparisonSummary) -> dict[str, go.Figure]:
    """Figures of a comparison that have data, by name; the names sort in the order of display.

    Args:
        summary: From `hpo_mab.compare.summarise`.
    """
    made = {
        f"{name}-{currency}": draw(summary, currency=currency)
        for name, draw in (
            ("advantage", figures.paired_advantage),
            ("acceleration", figures.acceleration),
        )
        for currency in CURRENCIES
    }
    made["fidelity"] = figures.fidelity(summary)
    made["cost-to-target"] = figures.cost_to_target(summary)
    return _in_order(made)


def importances(run: StudyRun) -> dict[str, float]:
    """Importance of each parameter; empty for a loop of one's own or too few complete trials.

    PED-ANOVA: the evaluator of Optuna whose time hardly grows with the number of trials.

    Args:
        run: A study; the ranges of its definition are the search space.
    """
    # Not the definition: a package that it names may be missing by now.
    written = run.settings.ranges.items()
    parsed = (ranges(name, parse_value(name, without_none(raw))) for name, raw in written)
    searched = dict(itertools.chain.from_iterable(parsed))
    # Only final accuracies after one budget are comparable: a pruned trial has none. A value that a
    # user has enqueued may lie outside its range.
    complete = [
        trial
        for trial in run.trials
        if trial.ended_in_time
        and all(holds(one, trial.params[n]) for n, one in searched.items() if n in trial.params)
    ]
    if len(complete) < _FEWEST_TRIALS or not searched:
        return {}
    # A study in memory, as reading the stored one again takes longest.
    study = _study_in_memory()
    for trial in complete:
        names = searched.keys() & trial.params.keys()
        study.add_trial(
            create_trial(
                value=trial.value,
                params={name: trial.params[name] for name in names},
                distributions={name: searched[name] for name in names},
            )
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())


def _mean(shares: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean importance of each parameter over studies."""
    names = set(itertools.chain.from_iterable(shares))
    return {name: sum(one.get(name, 0.0) for one in shares) / len(shares) for name in names}


def _study_in_memory() -> optuna.Study:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(before, optuna.logging.WARNING))
    try:
        return optuna.create_study(direction="maximize")
    finally:
        optuna.logging.set_verbosity(before)


def _in_order(made: dict[str, go.Figure]) -> dict[str, go.Figure]:
    shown = {f"{_ORDER.index(name):02}-{name}": f for name, f in made.items() if f.data}
    for figure in shown.values():
        # The template is 7 kB of every figure's 10, and hides the dashboard's dark mode.
        figure.layout.template = None
    return shown
