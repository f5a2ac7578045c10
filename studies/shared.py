"""Helpers of several studies: random configurations, and pictures for READMEs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

#: The ranges of the studies' definitions.
SPACE = {"lr": (0.003, 1.0), "momentum": (0.5, 0.98), "weight_decay": (1e-6, 1e-2)}


def configurations(count: int, *, seed: int) -> list[dict[str, float]]:
    """Random points of `SPACE`, with label smoothing.

    Args:
        count: Number of points.
        seed: Seed of the points.
    """
    rng = np.random.default_rng(seed)
    return [
        {
            "lr": float(np.exp(rng.uniform(*np.log(SPACE["lr"])))),
            "momentum": float(rng.uniform(*SPACE["momentum"])),
            "weight_decay": float(np.exp(rng.uniform(*np.log(SPACE["weight_decay"])))),
            "label_smoothing": float(rng.uniform(0, 0.2)),
        }
        for _ in range(count)
    ]


def curve(
    x: Sequence[float],
    y: Sequence[float],
    *,
    above: Sequence[float],
    below: Sequence[float],
    label: str,
    colour: str,
    marker: dict[str, Any],
) -> go.Scatter:
    """A line with markers and a bar at each point.

    Args:
        x: Positions [n]. Shift curves slightly: bars at one position hide each other.
        y: Values [n].
        above: Lengths of the upper parts of the bars [n].
        below: Lengths of the lower parts [n].
        label: Name in the legend.
        colour: Of line, markers and bars.
        marker: Options of the markers.
    """
    return go.Scatter(
        x=x,
        y=y,
        error_y={
            "type": "data",
            "symmetric": False,
            "array": above,
            "arrayminus": below,
            "thickness": 1.2,
            "width": 3,
        },
        name=label,
        legendgroup=label,
        mode="lines+markers",
        line={"color": colour, "width": 2},
        marker=marker,
    )


def set_layout(
    figure: go.Figure, *, title: str, note: str, height: int, top: int, bottom: int, legend: float
) -> None:
    """Set title, legend and size of a picture that is 860 pixels wide.

    Args:
        figure: The figure.
        title: Its title.
        note: Small text after the title.
        height: Height in pixels.
        top: Margin above the panels in pixels.
        bottom: Margin below them.
        legend: Position of the legend, as a share of the panels' height; below them if negative.
    """
    figure.update_layout(
        template="plotly_white",
        title={"text": f"{title} <sup>{note}</sup>", "font": {"size": 15}, "x": 0.01},
        font={"size": 12},
        paper_bgcolor="white",
        legend={"orientation": "h", "x": 0, "y": legend, "yanchor": "top"},
        margin={"l": 50, "r": 10, "t": top, "b": bottom},
        width=860,
        height=height,
    )
