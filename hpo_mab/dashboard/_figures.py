"""The figures of a study or a comparison, small enough for the study's attributes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import create_trial

from hpo_mab.compare import figures
from hpo_mab.compare._records import CURRENCIES
from hpo_mab.search import StudySpec

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from hpo_mab.compare import ComparisonSummary
    from hpo_mab.storage import StudyRun

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
    """Figures of studies by name, which sorts as they are to be shown; none without data.

    Args:
        runs: The studies.
    """
    shares: dict[str, dict[str, float]] = {}
    for run in runs:
        if not shares.get(run.arm):
            shares[run.arm] = importances(run)
    made = {
        "incumbent-examples": figures.anytime_incumbent(runs, max_points=_POINTS),
        "incumbent-seconds": figures.anytime_incumbent(
            runs, currency="seconds", max_points=_POINTS
        ),
        "importance": figures.knob_importance(shares),
        "knobs": figures.knob_slices(runs, max_points=_SCATTERED),
        "reward-rate": figures.reward_rate(runs, max_points=_POINTS),
        "concentration": figures.concentration(runs, max_points=_POINTS),
    }
    return _ready(made)


def comparison_figures(summary: ComparisonSummary) -> dict[str, go.Figure]:
    """Figures of a comparison by name, which sorts as they are to be shown; none without data.

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
    return _ready(made)


def importances(run: StudyRun) -> dict[str, float]:
    """Importance of each parameter; empty while there are too few complete trials to tell.

    PED-ANOVA: the evaluator of Optuna whose time hardly grows with the number of trials.

    Args:
        run: A study made from a definition, whose ranges are its search space.
    """
    complete = [trial for trial in run.trials if trial.value is not None]
    if len(complete) < _FEWEST_TRIALS:
        return {}
    # A study in memory: reading the stored one again is what would take longest.
    study = _quiet_study()
    # Not `make_spec`: what the definition names need not be here any more.
    ranges = StudySpec.model_validate(run.spec).searched()
    for trial in complete:
        study.add_trial(
            create_trial(
                value=trial.value,
                params={name: trial.params[name] for name in ranges if name in trial.params},
                distributions={name: ranges[name] for name in ranges if name in trial.params},
            )
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())


def _quiet_study() -> optuna.Study:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(before, optuna.logging.WARNING))
    try:
        return optuna.create_study(direction="maximize")
    finally:
        optuna.logging.set_verbosity(before)


def _ready(made: dict[str, go.Figure]) -> dict[str, go.Figure]:
    shown = {f"{_ORDER.index(name):02}-{name}": f for name, f in made.items() if f.data}
    for figure in shown.values():
        # The template is 7 kB of every figure's 10, and hides the dashboard's dark mode.
        figure.layout.template = None
    return shown
