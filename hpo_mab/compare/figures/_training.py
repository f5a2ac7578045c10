"""What the batch samplers did during training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from hpo_mab.compare.figures._style import (
    add_band,
    add_line,
    arms_run,
    figure,
    note_if_empty,
    thin,
)

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from hpo_mab.storage import StudyRun
    from hpo_mab.training import Evaluation

_Field = Callable[["Evaluation"], float | None]


def reward_rate(runs: Sequence[StudyRun], *, max_points: int = 200) -> go.Figure:
    """Share of the draws that were rewarded, over training: median and middle half of trials.

    Args:
        runs: Studies of any arms and seeds.
        max_points: Most points a curve.
    """
    made = figure(
        title="Reward rate during training",
        x="budget t of one trial (training examples)",
        y="rewarded draws since the last evaluation (%)",
    )
    _add_field(made, runs, lambda evaluation: evaluation.reward_rate, max_points)
    return note_if_empty(made, "No sampler of these studies has rewards.")


def concentration(runs: Sequence[StudyRun], *, max_points: int = 200) -> go.Figure:
    """Share of the draws on the most-drawn tenth of the examples: median and middle half of trials.

    Args:
        runs: Studies of any arms and seeds.
        max_points: Most points a curve.
    """
    made = figure(
        title="Concentration of the draws",
        x="budget t of one trial (training examples)",
        y="draws on the most-drawn tenth of the examples (%)",
    )
    _add_field(made, runs, lambda evaluation: evaluation.concentration, max_points)
    if made.data:
        made.add_hline(
            y=10, line={"color": "#888888", "width": 1}, annotation_text="uniform, in the long run"
        )
    return note_if_empty(made, "No sampler of these studies counts its draws.")


def _add_field(made: go.Figure, runs: Sequence[StudyRun], field: _Field, max_points: int) -> None:
    arms = arms_run(runs)
    for arm in arms:
        by_index: dict[int, list[tuple[float, float]]] = {}
        for run in (run for run in runs if run.arm == arm):
            for trial in run.trials:
                for evaluation in trial.curve:
                    value = field(evaluation)
                    if value is not None:
                        point = (float(evaluation.examples), 100 * value)
                        by_index.setdefault(evaluation.index, []).append(point)
        indices = sorted(by_index)
        if not indices:
            continue
        kept = [by_index[indices[position]] for position in thin(len(indices), max_points)]
        examples = [float(np.median([at for at, _ in points])) for points in kept]
        quartiles = np.asarray(
            [np.percentile([value for _, value in points], [25, 50, 75]) for points in kept]
        )
        low, middle, high = quartiles.T
        add_band(made, examples, low, high, name=arm, arms=arms, label="middle half of the trials")
        add_line(made, examples, middle, name=arm, arms=arms, mode="lines+markers")
