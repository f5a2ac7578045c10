"""The figures of a study's page, in their order, small enough for its attributes."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import create_trial

from hpo_mab.compare import figures
from hpo_mab.search._ranges import holds, searched
from hpo_mab.storage import StudyRun

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from hpo_mab.compare import ComparisonSummary

# The page sorts figures by name. The number of a removed figure is not reused: databases hold it.

_POINTS = 60
_SCATTERED = 200
_FEWEST_TRIALS = 10


def study_figures(runs: Sequence[StudyRun]) -> dict[str, go.Figure]:
    """Figures of studies, by name; the names sort in the order of display."""
    by_arm: dict[str, list[dict[str, float]]] = {run.arm: [] for run in runs}
    for run in runs:
        if shares := importances(run):
            by_arm[run.arm].append(shares)
    return _without_template(
        {
            "00-incumbent-examples": figures.anytime_incumbent(runs, max_points=_POINTS),
            "01-incumbent-seconds": figures.anytime_incumbent(
                runs, currency="seconds", max_points=_POINTS
            ),
            "08-importance": figures.knob_importance({k: _mean(one) for k, one in by_arm.items()}),
            "09-knobs": figures.knob_slices(runs, max_points=_SCATTERED),
            "10-reward-rate": figures.reward_rate(runs, max_points=_POINTS),
            "11-concentration": figures.concentration(runs, max_points=_POINTS),
        }
    )


def comparison_figures(summary: ComparisonSummary) -> dict[str, go.Figure]:
    """Figures of a comparison, by name; the names sort in the order of display."""
    return _without_template(
        {
            "02-advantage-examples": figures.paired_advantage(summary),
            "03-advantage-seconds": figures.paired_advantage(summary, currency="seconds"),
            "04-acceleration-examples": figures.acceleration(summary),
            "05-acceleration-seconds": figures.acceleration(summary, currency="seconds"),
            "06-fidelity": figures.fidelity(summary),
            "07-cost-to-target": figures.cost_to_target(summary),
        }
    )


def importances(run: StudyRun) -> dict[str, float]:
    """Importance of each parameter; empty for a loop of one's own or too few complete trials.

    PED-ANOVA: the evaluator of Optuna whose time hardly grows with the number of trials.

    The ranges of the study's definition are the search space.
    """
    # Not the definition: a package that it names may be missing by now.
    distributions = searched(run.settings.ranges)
    # Only final accuracies after one budget are comparable: a pruned trial has none. A value that a
    # user has enqueued may lie outside its range.
    complete = [
        trial
        for trial in run.trials
        if trial.is_comparable
        and all(
            holds(one, trial.params[n]) for n, one in distributions.items() if n in trial.params
        )
    ]
    if len(complete) < _FEWEST_TRIALS or not distributions:
        return {}
    # A study in memory, as reading the stored one again takes longest.
    study = _study_in_memory()
    for trial in complete:
        names = distributions.keys() & trial.params.keys()
        study.add_trial(
            create_trial(
                value=trial.value,
                params={name: trial.params[name] for name in names},
                distributions={name: distributions[name] for name in names},
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


def _without_template(made: dict[str, go.Figure]) -> dict[str, go.Figure]:
    for figure in made.values():
        # The template is 7 kB of every figure's 10.
        figure.layout.template = None
    return made
