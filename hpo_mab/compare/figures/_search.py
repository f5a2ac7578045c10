"""Figures of a search and its trials.

Incumbent accuracy and cost to target, what the batch samplers did, and how knobs and parameters
mattered.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hpo_mab._errors import UnknownNameError
from hpo_mab.advantage import Estimate
from hpo_mab.advantage._pairs import Floats
from hpo_mab.compare._incumbents import incumbent_curve
from hpo_mab.compare._records import CURRENCIES, ComparisonSummary, CostToTarget, Currency
from hpo_mab.compare._tables import TARGETS, too_wide
from hpo_mab.compare.figures._style import (
    add_interval,
    add_line,
    add_reference,
    add_reference_arm,
    arms_compared,
    arms_run,
    colours,
    explain,
    figure,
    hover_text,
    note_if_empty,
    thin,
)

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from hpo_mab.storage import StudyRun
    from hpo_mab.training import Evaluation

#: Fewest seeds whose extremes hold the median with 95%: 1 - 2 * 0.5**6.
_FEWEST_FOR_INTERVAL = 6


def anytime_incumbent(
    runs: Sequence[StudyRun], *, currency: Currency = "examples", max_points: int = 200
) -> go.Figure:
    """Median over seeds of the incumbent's validation accuracy, against cumulative spend.

    From 6 seeds on, the band is the distribution-free 95% interval of the median (order
    statistics). Below that it is the seeds' range. A curve starts where all its seeds have an
    incumbent and ends where the first of its studies ends. An arm with a seed that has none is left
    out.

    Args:
        runs: Studies of any arms and seeds.
        currency: ``"examples"`` or ``"seconds"``.
        max_points: Most points per curve.
    """
    arms = arms_run(runs)
    made = figure(
        title=f"Best configuration found so far, by {currency}",
        x=f"training {currency}, all trials so far",
        y="validation accuracy (%)",
    )
    left_out: list[str] = []
    for arm in arms:
        curves = [incumbent_curve(run, currency) for run in runs if run.arm == arm]
        # A median over fewer seeds could not be compared with those of the other arms.
        if any(not len(curve.spent) for curve in curves):
            left_out.append(arm)
            continue
        # One study may end before another has an incumbent: the curve is then a single point.
        spent = np.linspace(
            max(curve.spent[0] for curve in curves),
            max(min(curve.total for curve in curves), max(curve.spent[0] for curve in curves)),
            max(max_points, 2),
        )
        # Sorted over seeds at each spend: order statistics bound the median.
        values = 100 * np.sort([curve.at(spent) for curve in curves], axis=0)
        if len(curves) > 1:
            low, high, label = _band(values)
            add_interval(
                made,
                spent,
                low,
                high,
                name=arm,
                arms=arms,
                curves=len(arms),
                label=label,
                step=True,
            )
        # Steps: an incumbent stays until the next one is found. A line of one point is invisible.
        mode = "lines" if spent[0] < spent[-1] else "markers"
        middle = np.median(values, axis=0)
        add_line(made, spent, middle, name=arm, arms=arms, mode=mode, line={"shape": "hv"})
    if left_out and made.data:
        explain(made, f"without {', '.join(left_out)}: a seed has no complete trial of known cost")
    return note_if_empty(made, "No arm has a complete trial of known cost for every seed.")


def _band(values: Floats) -> tuple[Floats, Floats, str]:
    """Band around the median of sorted seeds [S, G]."""
    from scipy import stats

    seeds = len(values)
    if seeds < _FEWEST_FOR_INTERVAL:
        return values[0], values[-1], f"range of {seeds} seeds"
    # The k-th smallest and k-th largest hold the median unless fewer than k fall on one side.
    rank = int(stats.binom.ppf(0.025, seeds, 0.5))
    return values[rank - 1], values[seeds - rank], "95% interval of the median"


def cost_to_target(summary: ComparisonSummary, *, currency: Currency = "examples") -> go.Figure:
    """Cost to target of every arm over the reference's, with its interval over seeds.

    Args:
        summary: From `hpo_mab.compare.summarise`.
        currency: ``"examples"`` or ``"seconds"``.

    Raises:
        UnknownNameError: An unknown currency.
    """
    if currency not in CURRENCIES:
        raise UnknownNameError("currency", currency, CURRENCIES)
    chosen = colours(arms_compared(summary))
    made = figure(
        title=f"Cost to target in {currency}, relative to {summary.reference}",
        x=f"ratio of {currency} (below 1 = cheaper; log scale)",
        y="target",
    )
    targets = list(TARGETS)
    for number, contrast in enumerate(summary.contrasts):
        costs = [
            cost
            for cost in contrast.cost
            if cost.currency == currency and math.isfinite(cost.ratio.value)
        ]
        # Next to each other. Plotly's own grouping of points would change the ratios.
        shift = 0.6 * ((number + 0.5) / len(summary.contrasts) - 0.5)
        if costs:
            made.add_scatter(
                x=[cost.ratio.value for cost in costs],
                y=[targets.index(cost.target) + shift for cost in costs],
                name=contrast.arm,
                legendgroup=contrast.arm,
                mode="markers",
                marker={
                    "color": chosen[contrast.arm],
                    "size": 11,
                    "symbol": [
                        "triangle-right" if cost.ratio.censored else "circle" for cost in costs
                    ],
                },
                error_x=_error_bars(costs),
                text=[_cost_text(cost) for cost in costs],
                hovertemplate="%{text}<extra>%{fullData.name}</extra>",
            )
            _explain_marks(made, [cost.ratio for cost in costs])
    made.update_layout(
        xaxis={"type": "log"},
        yaxis={
            "title": {"standoff": 12},
            "zeroline": False,
            "tickvals": list(range(len(targets))),
            # Two lines each: a telephone has no room for one.
            "ticktext": ["<br>".join(textwrap.wrap(text, 14)) for text in TARGETS.values()],
        },
    )
    if made.data:
        places = [y for trace in made.data for y in trace.y]
        add_reference_arm(made, summary, [1, 1], [min(places) - 0.4, max(places) + 0.4])
    return note_if_empty(made, "No seed has complete trials of known cost in both arms.")


def _error_bars(costs: Sequence[CostToTarget]) -> dict[str, object]:
    """Error bars of the ratios; an open end, or an interval that is too wide, is not drawn."""
    ratios = [cost.ratio for cost in costs]
    drawn = [not too_wide(ratio) for ratio in ratios]
    # Plotly needs a length for every point; a length of 0 draws nothing.
    return {
        "type": "data",
        "symmetric": False,
        "array": [
            r.high - r.value if shown and math.isfinite(r.high) else 0.0
            for r, shown in zip(ratios, drawn, strict=True)
        ],
        "arrayminus": [
            r.value - r.low if shown and r.low > 0.0 else 0.0
            for r, shown in zip(ratios, drawn, strict=True)
        ],
    }


def _explain_marks(made: go.Figure, ratios: Sequence[Estimate]) -> None:
    if any(ratio.bounded and not too_wide(ratio) for ratio in ratios):
        explain(made, f"bar: {ratios[0].confidence:.0%} interval over seeds")
    if any(ratio.bounded and too_wide(ratio) for ratio in ratios):
        explain(made, "no bar: its ends differ by more than a factor of 100")
    if any(ratio.censored for ratio in ratios):
        explain(made, "triangle: lower bound")


def _cost_text(cost: CostToTarget) -> str:
    return f"{hover_text(cost.ratio)}, reached in {sum(cost.reached)} of {len(cost.reached)} seeds"


_Field = Callable[["Evaluation"], float | None]


def reward_rate(runs: Sequence[StudyRun], *, max_points: int = 200) -> go.Figure:
    """Share of the draws that were rewarded, over training: median and middle half of trials.

    Args:
        runs: Studies of any arms and seeds.
        max_points: Most points per curve.
    """
    made = figure(
        title="Rewarded draws since the previous evaluation",
        x="training examples of one trial",
        y="rewarded draws (%)",
    )
    _add_quartiles(made, runs, lambda evaluation: evaluation.reward_rate, max_points)
    return note_if_empty(made, "No sampler of these studies has rewards.")


def concentration(runs: Sequence[StudyRun], *, max_points: int = 200) -> go.Figure:
    """Share of the draws on the most-drawn tenth of the examples: median and middle half of trials.

    The grey line is the share under passes in random order: a pass draws every example once.

    Args:
        runs: Studies of any arms and seeds.
        max_points: Most points per curve.
    """
    made = figure(
        title="Share of the draws on the most-drawn tenth of the examples",
        x="training examples of one trial",
        y="share of all draws so far (%)",
    )
    _add_quartiles(made, runs, lambda evaluation: evaluation.concentration, max_points)
    size = next((size for run in runs if (size := run.epoch_examples)), None)
    if made.data and size:
        at = [float(x) / size for trace in made.data for x in trace.x]
        passes = _curve_places(min(at), max(at), max_points)
        shares = (100 * shuffled_concentration(passes)).tolist()
        add_reference(made, (passes * size).tolist(), shares, name="uniform, shuffled")
    return note_if_empty(made, "No sampler of these studies counts its draws.")


def _curve_places(first: float, last: float, max_points: int) -> Floats:
    """Places of the shuffled curve: both ends, its corners at 0 and 0.1 of each pass, and more."""
    corners = np.add.outer(np.arange(math.floor(last) + 1), [0.0, 0.1, 0.25, 0.5, 0.75]).ravel()
    inside = corners[(corners > first) & (corners < last)]
    places = np.unique([first, *inside, last])
    return places[thin(len(places), max_points)]


def shuffled_concentration(passes: Floats) -> Floats:
    """Share of the draws on the most-drawn tenth after passes in random order.

    Let there be ``k + r`` passes, ``0 <= r < 1``. Then a share ``r`` of the examples has been drawn
    ``k + 1`` times, the rest ``k`` times. So the share is ``(0.1 k + min(r, 0.1)) / (k + r)``.

    Args:
        passes: Passes over the training set, above 0, [G].

    Returns:
        Shares, [G].
    """
    whole = np.floor(passes)
    return (0.1 * whole + np.minimum(passes - whole, 0.1)) / passes


def _add_quartiles(
    made: go.Figure, runs: Sequence[StudyRun], field: _Field, max_points: int
) -> None:
    arms = arms_run(runs)
    by_arm = {
        arm: points
        for arm in arms
        if (points := _by_index([run for run in runs if run.arm == arm], field))
    }
    for arm, by_index in by_arm.items():
        indices = sorted(by_index)
        kept = [by_index[indices[position]] for position in thin(len(indices), max_points)]
        # With other batch sizes the same evaluation comes after other numbers of examples.
        examples = [float(np.median([at for at, _ in points])) for points in kept]
        quartiles = np.asarray(
            [np.percentile([value for _, value in points], [25, 50, 75]) for points in kept]
        )
        low, middle, high = quartiles.T
        add_interval(
            made,
            examples,
            low,
            high,
            name=arm,
            arms=arms,
            curves=len(by_arm),
            label="middle half of the trials",
        )
        add_line(made, examples, middle, name=arm, arms=arms, mode="lines+markers")


def _by_index(runs: Sequence[StudyRun], field: _Field) -> dict[int, list[tuple[float, float]]]:
    """Examples and percentage of every evaluation that has the field, by its index."""
    by_index: dict[int, list[tuple[float, float]]] = {}
    tried = (trial for run in runs for trial in run.once if trial.state != "fail")
    for evaluation in (evaluation for trial in tried for evaluation in trial.curve):
        value = field(evaluation)
        if value is not None:
            point = (float(evaluation.examples), 100 * value)
            by_index.setdefault(evaluation.index, []).append(point)
    return by_index


def knob_slices(
    runs: Sequence[StudyRun], *, prefix: str = "sampler.", max_points: int = 500
) -> go.Figure:
    """Final accuracy of every complete trial against each searched knob, a panel a knob.

    Args:
        runs: Studies of any arms and seeds.
        prefix: Which parameters to show; ``""`` shows all.
        max_points: Most points per arm and panel.
    """
    from plotly.subplots import make_subplots

    arms = arms_run(runs)
    trials = {
        arm: [t for run in runs if run.arm == arm for t in run.trials if t.is_comparable]
        for arm in arms
    }
    every = (trial for listed in trials.values() for trial in listed)
    knobs = sorted({name for trial in every for name in trial.params if name.startswith(prefix)})
    title = "Accuracy against the sampler's knobs" if prefix else "Accuracy against parameters"
    made = figure(title=title, x="value of the knob", y="final accuracy (%)")
    if not knobs:
        return note_if_empty(made, "No such parameter was searched.")
    panels = make_subplots(rows=1, cols=len(knobs), shared_yaxes=True, figure=made)
    chosen, shown = colours(arms), set[str]()
    for column, knob in enumerate(knobs, start=1):
        searched = [t for listed in trials.values() for t in listed if knob in t.params]
        numeric = all(_is_number(trial.params[knob]) for trial in searched)
        if not numeric:
            # Plotly infers an axis of numbers from mixed values, and drops the texts.
            panels.update_xaxes(type="category", row=1, col=column)
        # A value that a user has enqueued may be 0, which a logarithmic axis lacks.
        elif _is_log(runs, knob) and all(trial.params[knob] > 0 for trial in searched):
            panels.update_xaxes(type="log", row=1, col=column)
        for arm in arms:
            points = [trial for trial in trials[arm] if knob in trial.params]
            kept = [points[position] for position in thin(len(points), max_points)]
            if kept:
                panels.add_scatter(
                    x=[x if numeric else str(x) for x in (t.params[knob] for t in kept)],
                    y=[100 * (trial.value or 0.0) for trial in kept],
                    name=arm,
                    legendgroup=arm,
                    # One entry for all panels.
                    showlegend=arm not in shown,
                    mode="markers",
                    marker={"color": chosen[arm], "opacity": 0.7},
                    row=1,
                    col=column,
                )
                shown.add(arm)
        panels.update_xaxes(title_text=f"{knob} (as searched)", row=1, col=column)
    return panels


def _is_log(runs: Sequence[StudyRun], parameter: str) -> bool:
    """Whether a study searches a parameter on a logarithmic scale."""
    found = (run.settings.ranges.get(parameter, {}) for run in runs)
    return any(one.get("log", False) for one in found)


def _is_number(value: Any) -> bool:
    # Booleans are integers in Python, and their axis would run from 0 to 1.
    return isinstance(value, int | float) and not isinstance(value, bool)


def knob_importance(importances: Mapping[str, Mapping[str, float]]) -> go.Figure:
    """Importance of each searched parameter, one bar per arm.

    Args:
        importances: By arm, then by parameter: shares as from PED-ANOVA by
            `optuna.importance.get_param_importances`. An arm without shares has no bar.
    """
    made = figure(
        title="Which parameters mattered",
        x="importance for reaching the best tenth (%)",
        y="parameter",
    )
    chosen = colours(importances)
    highest: dict[str, float] = {}
    for shares in importances.values():
        for name, share in shares.items():
            highest[name] = max(share, highest.get(name, 0.0))
    # Ascending: horizontal bars are drawn from the bottom up.
    order = sorted(highest, key=lambda name: (highest[name], name))
    for arm, shares in sorted(importances.items()):
        if shares:
            made.add_bar(
                x=[100 * shares.get(name, 0.0) for name in order],
                y=order,
                orientation="h",
                name=arm,
                legendgroup=arm,
                marker={"color": chosen[arm]},
                hovertemplate="%{y}: %{x:.1f} %<extra>%{fullData.name}</extra>",
            )
    made.update_layout(barmode="group")
    made.update_yaxes(automargin=True, title=None)
    return note_if_empty(made, "Too few complete trials to measure importance.")
