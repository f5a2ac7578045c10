"""Learning curves of the arms: mean over seeds with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from hpo_mab._errors import UnknownNameError
from hpo_mab.advantage import mean_estimate
from hpo_mab.compare._words import weights_evaluated
from hpo_mab.compare.figures._style import (
    add_band,
    add_line,
    arms_run,
    explain,
    figure,
    note_if_empty,
    thin,
)

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from hpo_mab.advantage import Estimate
    from hpo_mab.storage import StudyRun

Metric = Literal["accuracy", "train_loss"]
Axis = Literal["examples", "steps"]

_METRICS = {
    "accuracy": ("Validation accuracy during training", "validation accuracy (%)", 100.0),
    "train_loss": ("Training loss during training", "mean loss of the batches drawn (nats)", 1.0),
}
_AXES = {
    "examples": "budget t of one trial (training examples)",
    "steps": "iterations of one trial (optimiser steps)",
}


def learning_curves(
    runs: Sequence[StudyRun],
    *,
    metric: Metric = "accuracy",
    against: Axis = "examples",
    confidence: float = 0.95,
    max_points: int = 200,
) -> go.Figure:
    """Mean learning curve of each arm over its seeds, with the interval of the mean.

    Of each study the trials that every arm shares count (all of them where none is marked), those
    that failed left out; their mean is the seed's value. Trials that were pruned count as far as
    they went. Below the title of accuracies is which weights they are of.

    Args:
        runs: Studies of any arms and seeds.
        metric: ``"accuracy"`` or ``"train_loss"``, the mean loss of the batches drawn since the
            previous evaluation: an importance sampler's are harder than the data.
        against: ``"examples"`` or ``"steps"``.
        confidence: Coverage of the intervals.
        max_points: Most points a curve.

    Raises:
        UnknownNameError: An unknown metric or axis.
    """
    if metric not in _METRICS:
        raise UnknownNameError("metric", metric, _METRICS)
    if against not in _AXES:
        raise UnknownNameError("axis", against, _AXES)
    title, label, scale = _METRICS[metric]
    made = figure(title=title, x=_AXES[against], y=label)
    arms = arms_run(runs)
    for arm in arms:
        points = _points([run for run in runs if run.arm == arm], metric, against, confidence)
        kept = [points[position] for position in thin(len(points), max_points)] if points else []
        at = [place for place, _ in kept]
        value, low, high = (
            [scale * getattr(mean, field) for _, mean in kept] for field in ("value", "low", "high")
        )
        add_band(made, at, low, high, name=arm, arms=arms, label=f"{confidence:.0%} interval")
        if kept:
            add_line(made, at, value, name=arm, arms=arms, mode="lines+markers")
    if metric == "accuracy" and made.data:
        explain(made, f"accuracy of {weights_evaluated(runs)}")
    return note_if_empty(made, "No trial has been evaluated yet.")


def _points(
    runs: Sequence[StudyRun], metric: Metric, against: Axis, confidence: float
) -> list[tuple[float, Estimate]]:
    """Place and mean over seeds, by evaluation."""
    places: dict[int, list[float]] = {}
    values: dict[int, list[float]] = {}
    for run in runs:
        usable = [trial for trial in run.trials if trial.state != "fail" and trial.curve]
        shared = [trial for trial in usable if trial.paired] or usable
        seen: dict[int, list[float]] = {}
        for evaluation in (evaluation for trial in shared for evaluation in trial.curve):
            places.setdefault(evaluation.index, []).append(float(getattr(evaluation, against)))
            seen.setdefault(evaluation.index, []).append(float(getattr(evaluation, metric)))
        for index, found in seen.items():
            values.setdefault(index, []).append(float(np.mean(found)))
    return [
        (
            float(np.median(places[index])),
            mean_estimate(np.asarray(values[index]), confidence=confidence),
        )
        for index in sorted(values)
    ]
