"""The figures of a study or a comparison, small enough for the study's attributes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

from hpo_mab.compare import figures
from hpo_mab.compare._records import CURRENCIES

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from hpo_mab.compare import ComparisonSummary
    from hpo_mab.storage import StudyRun

_POINTS = 60
_SCATTERED = 200
_FEWEST_TRIALS = 10


def study_figures(
    runs: Sequence[StudyRun], studies: Sequence[optuna.Study]
) -> dict[str, go.Figure]:
    """Figures of studies by name, in the order to be shown; those without data are left out.

    Args:
        runs: The studies, read.
        studies: The same as Optuna has them.
    """
    shares = {}
    for run, study in zip(runs, studies, strict=True):
        shares.setdefault(run.arm, importances(study))
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
    """Figures of a comparison by name, in the order to be shown; those without data are left out.

    Args:
        summary: From `hpo_mab.compare.summarise`.
    """
    made = {
        f"{draw.__name__.replace('_', '-')}-{currency}": draw(summary, currency=currency)
        for draw in (figures.paired_advantage, figures.acceleration)
        for currency in CURRENCIES
    }
    made["fidelity"] = figures.fidelity(summary)
    made["cost-to-target"] = figures.cost_to_target(summary)
    return _ready(made)


def importances(study: optuna.Study) -> dict[str, float]:
    """Importance of each parameter; empty while there are too few complete trials to tell.

    PED-ANOVA: the evaluator of Optuna whose time hardly grows with the number of trials.
    """
    complete = study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.COMPLETE])
    if len(complete) < _FEWEST_TRIALS:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())


def _ready(made: dict[str, go.Figure]) -> dict[str, go.Figure]:
    shown = {name: figure for name, figure in made.items() if figure.data}
    for figure in shown.values():
        # The template is 7 kB of every figure's 10, and hides the dashboard's dark mode.
        figure.layout.template = None
    return shown
