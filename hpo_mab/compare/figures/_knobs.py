"""Final accuracy against the knobs of the batch sampler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hpo_mab.compare.figures._style import arms_run, colours, figure, note_if_empty, thin

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from hpo_mab.storage import StudyRun, TrialRun


def knob_slices(
    runs: Sequence[StudyRun], *, prefix: str = "sampler.", max_points: int = 500
) -> go.Figure:
    """Final accuracy of every complete trial against each searched knob, a panel a knob.

    Args:
        runs: Studies of any arms and seeds.
        prefix: Which parameters to show; ``""`` shows all.
        max_points: Most points an arm and panel.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    arms = arms_run(runs)
    trials = {
        arm: [t for run in runs if run.arm == arm for t in run.trials if t.value is not None]
        for arm in arms
    }
    every = (trial for listed in trials.values() for trial in listed)
    knobs = sorted({name for trial in every for name in trial.params if name.startswith(prefix)})
    title = "Accuracy against the sampler's knobs" if prefix else "Accuracy against parameters"
    made = figure(title=title, x="value of the knob", y="final validation accuracy (%)")
    if not knobs:
        return note_if_empty(made, "No knob of the sampler was searched.")
    panels = make_subplots(rows=1, cols=len(knobs), shared_yaxes=True, figure=made)
    chosen = colours(arms)
    for column, knob in enumerate(knobs, start=1):
        for arm in arms:
            points = [trial for trial in trials[arm] if knob in trial.params]
            kept = [points[position] for position in thin(len(points), max_points)]
            if kept:
                panels.add_trace(
                    go.Scatter(
                        x=[_coordinate(trial, knob) for trial in kept],
                        y=[100 * (trial.value or 0.0) for trial in kept],
                        name=arm,
                        legendgroup=arm,
                        showlegend=column == 1,
                        mode="markers",
                        marker={"color": chosen[arm], "opacity": 0.7},
                    ),
                    row=1,
                    col=column,
                )
        panels.update_xaxes(title_text=f"{knob} (as searched)", row=1, col=column)
    return panels


def _coordinate(trial: TrialRun, knob: str) -> float | str:
    value = trial.params[knob]
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    return value if numeric else str(value)
