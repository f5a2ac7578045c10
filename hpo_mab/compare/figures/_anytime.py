"""Incumbent accuracy against what the search has spent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hpo_mab.compare._incumbent import incumbent_curve
from hpo_mab.compare._records import Currency
from hpo_mab.compare.figures._style import add_band, add_line, arms_run, figure, note_if_empty

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from hpo_mab.storage import StudyRun

Floats = NDArray[np.float64]

#: Fewest seeds whose extremes hold the median with 95%: 1 - 2 * 0.5**6.
_FEWEST_FOR_INTERVAL = 6

UNITS = {"examples": "training examples", "seconds": "training seconds, sampler included"}


def anytime_incumbent(
    runs: Sequence[StudyRun], *, currency: Currency = "examples", max_points: int = 200
) -> go.Figure:
    """Median over seeds of the incumbent's validation accuracy, against cumulative spend.

    The band is the distribution-free 95% interval of the median (order statistics) from 6 seeds
    on, the range of the seeds below that. A curve starts where all its seeds have an incumbent and
    ends where the first of its studies ends.

    Args:
        runs: Studies of any arms and seeds.
        currency: ``"examples"`` or ``"seconds"``.
        max_points: Most points a curve.
    """
    arms = arms_run(runs)
    made = figure(
        title=f"Best configuration found so far, by {currency}",
        x=f"spent by the whole search ({UNITS.get(currency, currency)})",
        y="validation accuracy of the incumbent (%)",
    )
    for arm in arms:
        curves = [incumbent_curve(run, currency) for run in runs if run.arm == arm]
        if any(not len(curve.spent) for curve in curves):
            continue
        spent = np.linspace(
            max(curve.spent[0] for curve in curves),
            max(min(curve.total for curve in curves), max(curve.spent[0] for curve in curves)),
            max(max_points, 2),
        )
        values = 100 * np.sort([curve.at(spent) for curve in curves], axis=0)
        if len(curves) > 1:
            low, high, label = _band(values)
            add_band(made, spent, low, high, name=arm, arms=arms, label=label, step=True)
        add_line(made, spent, np.median(values, axis=0), name=arm, arms=arms, line={"shape": "hv"})
    return note_if_empty(made, "No arm has a complete trial for every seed yet.")


def _band(values: Floats) -> tuple[Floats, Floats, str]:
    """Band around the median of sorted seeds [S, G]."""
    from scipy import stats

    seeds = len(values)
    if seeds < _FEWEST_FOR_INTERVAL:
        return values[0], values[-1], f"range of {seeds} seeds"
    # The k-th smallest and k-th largest hold the median unless fewer than k fall on one side.
    rank = int(stats.binom.ppf(0.025, seeds, 0.5))
    return values[rank - 1], values[seeds - rank], "95% interval of the median"
