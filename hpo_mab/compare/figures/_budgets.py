"""Figures against the budget of a trial: learning curves, advantage, acceleration, fidelity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from hpo_mab._errors import UnknownNameError
from hpo_mab.advantage import Estimate, mean_estimate
from hpo_mab.compare._records import CONFIDENCE, CURRENCIES, ComparisonSummary, Currency
from hpo_mab.compare._text import weights_evaluated
from hpo_mab.compare.figures._style import (
    add_interval,
    add_line,
    add_open_ends,
    add_reference_arm,
    arms_compared,
    arms_run,
    explain,
    figure,
    hover_text,
    note_if_empty,
    thin,
)

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from hpo_mab.storage import StudyRun, TrialRun

Metric = Literal["accuracy", "train_loss"]

_METRICS = {
    "accuracy": ("Validation accuracy during training", "validation accuracy (%)", 100.0),
    "train_loss": ("Training loss during training", "mean loss of the batches (nats)", 1.0),
}


def learning_curves(
    runs: Sequence[StudyRun],
    *,
    metric: Metric = "accuracy",
    max_points: int = 200,
) -> go.Figure:
    """Mean learning curve of each arm over its seeds, with the interval of the mean.

    A seed's value is the mean over its trials whose configuration every arm shares, or over all if
    none is marked as shared. Failed trials are left out. Pruned trials count up to their last
    evaluation. The line below the title names the weights evaluated.

    Args:
        runs: Studies of any arms and seeds.
        metric: ``"accuracy"`` or ``"train_loss"``. The latter is the mean loss of the batches drawn
            since the previous evaluation. An importance sampler draws harder batches.
        max_points: Most points per curve.

    Raises:
        UnknownNameError: An unknown metric.
    """
    if metric not in _METRICS:
        raise UnknownNameError("metric", metric, _METRICS)
    title, label, scale = _METRICS[metric]
    made = figure(title=title, x="training examples of one trial", y=label)
    arms = arms_run(runs)
    for arm in arms:
        points = _mean_points([run for run in runs if run.arm == arm], metric)
        kept = [points[position] for position in thin(len(points), max_points)]
        at = [place for place, _ in kept]
        value, low, high = (
            [scale * getattr(mean, field) for _, mean in kept] for field in ("value", "low", "high")
        )
        add_interval(
            made,
            at,
            low,
            high,
            name=arm,
            arms=arms,
            curves=len(arms),
            label=f"{CONFIDENCE:.0%} interval",
        )
        if kept:
            add_line(made, at, value, name=arm, arms=arms, mode="lines+markers")
    if any(trial.state == "pruned" for run in runs for trial in _drawn(run)):
        explain(made, "stopped trials count up to their last evaluation")
    if metric == "accuracy" and made.data:
        explain(made, f"accuracy of {weights_evaluated(runs)}")
    return note_if_empty(made, "No trial has been evaluated yet.")


def _drawn(run: StudyRun) -> list[TrialRun]:
    """Trials whose curves are averaged: the paired ones, all if there are none."""
    usable = [trial for trial in run.once if trial.state != "fail" and trial.curve]
    # Later configurations differ between arms, so their curves cannot be compared.
    return [trial for trial in usable if trial.paired] or usable


def _mean_points(runs: Sequence[StudyRun], metric: Metric) -> list[tuple[float, Estimate]]:
    """Training examples and mean over seeds, by evaluation."""
    positions: dict[int, list[float]] = {}
    values: dict[int, list[float]] = {}
    for run in runs:
        seen: dict[int, list[float]] = {}
        for evaluation in (evaluation for trial in _drawn(run) for evaluation in trial.curve):
            positions.setdefault(evaluation.index, []).append(float(evaluation.examples))
            seen.setdefault(evaluation.index, []).append(float(getattr(evaluation, metric)))
        # Trials of one seed are not independent, so each seed gives one value.
        for index, found in seen.items():
            values.setdefault(index, []).append(float(np.mean(found)))
    return [
        (
            float(np.median(positions[index])),
            mean_estimate(np.asarray(values[index])),
        )
        for index in sorted(values)
    ]


_NO_PAIRS = "There are no pairs of the same configuration."


def paired_advantage(summary: ComparisonSummary, *, currency: Currency = "examples") -> go.Figure:
    """``D(t)`` of every arm by budget, with its interval over pairs.

    Args:
        summary: From `hpo_mab.compare.summarise`.
        currency: Whether arms are compared at equal ``"examples"`` or equal ``"seconds"``.
    """
    arms = arms_compared(summary)
    made = figure(
        title=f"Accuracy minus {summary.reference}'s, same configurations, at equal {currency}",
        x=_budget_axis(summary, currency),
        y="difference in accuracy (points)",
    )
    curves = len(summary.contrasts)
    shown: list[Estimate] = []
    for contrast in summary.contrasts:
        rows = contrast.paired
        chosen = [
            row.advantage if currency == "examples" else row.advantage_seconds for row in rows
        ]
        shown += chosen
        _add_estimates(
            made,
            [row.examples for row in rows],
            chosen,
            contrast.arm,
            arms,
            curves=curves,
            scale=100.0,
        )
    if made.data:
        add_reference_arm(made, summary, _first_and_last(summary), [0, 0])
        _cut_wide(made, shown)
    return note_if_empty(made, _NO_PAIRS)


def acceleration(summary: ComparisonSummary, *, currency: Currency = "examples") -> go.Figure:
    """``k(t)`` of every arm by budget; triangles are lower bounds ("at least").

    Args:
        summary: From `hpo_mab.compare.summarise`.
        currency: ``"examples"`` or ``"seconds"``.
    """
    arms = arms_compared(summary)
    made = figure(
        title=f"Acceleration: how many times the {currency} "
        f"{summary.reference} needs for the same accuracy",
        x=_budget_axis(summary, currency),
        y=f"k, ratio of {currency} (1 = as fast)",
    )
    curves = len(summary.contrasts)
    for contrast in summary.contrasts:
        rows = contrast.paired
        chosen = [
            row.acceleration if currency == "examples" else row.acceleration_seconds for row in rows
        ]
        budgets = [row.examples for row in rows]
        # No k above the last budget over t can be observed, so open intervals are drawn up to it.
        largest = [budgets[-1] / budget for budget in budgets]
        _add_estimates(made, budgets, chosen, contrast.arm, arms, curves=curves, ceiling=largest)
        if any(estimate.censored for estimate in chosen):
            explain(made, "triangle: lower bound")
    if made.data:
        add_reference_arm(made, summary, _first_and_last(summary), [1, 1])
    return note_if_empty(made, _NO_PAIRS)


def fidelity(summary: ComparisonSummary) -> go.Figure:
    """Kendall's tau-b of early accuracies with each arm's own final ones, by budget.

    Args:
        summary: From `hpo_mab.compare.summarise`.
    """
    arms = arms_compared(summary)
    made = figure(
        title="Fidelity: agreement of early accuracy with each arm's own final ranking",
        x=_budget_axis(summary, "examples"),
        y="Kendall's tau-b (-1 to 1)",
    )
    curves = len(arms)
    paired = [contrast for contrast in summary.contrasts if contrast.paired]
    # The reference is drawn once, with the most of its trainings.
    most = max(paired, key=lambda contrast: contrast.pairs, default=None)
    for contrast in paired:
        budgets = [row.examples for row in contrast.paired]
        rows = [row.agreement("kendall", final="own") for row in contrast.paired]
        if contrast is most:
            of_reference = [row.reference for row in rows]
            _add_estimates(made, budgets, of_reference, summary.reference, arms, curves=curves)
        of_arm = [row.arm for row in rows]
        _add_estimates(made, budgets, of_arm, contrast.arm, arms, curves=curves)
    return note_if_empty(made, _NO_PAIRS)


#: Width, in points, from which the interval of a difference of accuracies is cut.
_WIDE = 20.0


def _cut_wide(made: go.Figure, estimates: Sequence[Estimate]) -> None:
    """Cut intervals that are wider than 20 points, which would hide all others."""
    bounds = [
        (100 * estimate.low, 100 * estimate.high) for estimate in estimates if estimate.bounded
    ]
    narrow = [(low, high) for low, high in bounds if high - low <= _WIDE]
    if len(narrow) < len(bounds):
        values = [100 * one.value for one in estimates if np.isfinite(one.value)]
        ends = [*values, *(end for pair in narrow for end in pair), 0.0]
        # Room for lines at the edge.
        room = 0.1 * max(max(ends) - min(ends), 1.0)
        made.update_yaxes(range=[min(ends) - room, max(ends) + room])
        explain(made, f"cut: intervals wider than {_WIDE:.0f} points")


def _budget_axis(summary: ComparisonSummary, currency: Currency) -> str:
    if currency not in CURRENCIES:
        raise UnknownNameError("currency", currency, CURRENCIES)
    if currency == "seconds":
        return f"budget t, {summary.reference}'s training examples"
    return "budget t, training examples"


def _first_and_last(summary: ComparisonSummary) -> tuple[float, float]:
    """The first and the last budget of all pairs."""
    budgets = [row.examples for contrast in summary.contrasts for row in contrast.paired]
    return min(budgets), max(budgets)


def _add_estimates(
    made: go.Figure,
    budgets: Sequence[float],
    estimates: Sequence[Estimate],
    name: str,
    arms: Sequence[str],
    *,
    curves: int,
    scale: float = 1.0,
    ceiling: Sequence[float] | None = None,
) -> None:
    """One arm's estimates as a line with its intervals."""
    value, low, high = (
        np.asarray([getattr(estimate, end) for estimate in estimates], dtype=np.float64)
        for end in ("value", "low", "high")
    )
    if not np.isfinite(value).any():
        return
    censored = np.asarray([estimate.censored for estimate in estimates])
    # A censored value is drawn as a triangle, which shows the open end already.
    opens = np.isposinf(high) & np.isfinite(value) & ~censored
    # Where nothing was measured, the ends are those of all possible values.
    low, high = (np.where(np.isfinite(value), end, np.nan) for end in (low, high))
    if ceiling is not None:
        high = np.minimum(high, np.asarray(ceiling))
        low = np.maximum(low, 0.0)
    label = f"{estimates[0].confidence:.0%} interval over pairs"
    add_interval(
        made, budgets, low * scale, high * scale, name=name, arms=arms, curves=curves, label=label
    )
    if ceiling is not None:
        at = np.asarray(budgets)[opens]
        add_open_ends(made, at.tolist(), (high * scale)[opens].tolist(), name=name, arms=arms)
    add_line(
        made,
        budgets,
        value * scale,
        name=name,
        arms=arms,
        mode="lines+markers",
        marker={
            "size": 8,
            # `add_line` leaves out points that are not finite, but not their symbols.
            "symbol": np.where(censored, "triangle-up", "circle")[np.isfinite(value)].tolist(),
        },
        text=[hover_text(estimate, scale=scale) for estimate in estimates],
        hovertemplate="%{x:,.0f} examples: %{text}<extra>%{fullData.name}</extra>",
    )
