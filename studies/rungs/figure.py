"""Draw how early accuracies rank configurations: ``python studies/rungs/figure.py``.

Needs the extra ``docs`` and Chrome or Chromium.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

sys.path.append(str(Path(__file__).parents[1]))
from shared import curve, set_layout

HERE = Path(__file__).resolve().parent
#: The record, and the picture.
TABLES, PICTURE = HERE / "tables.json", HERE / "ranking.svg"
SETS = {
    "fashion_mnist": "Fashion-MNIST, 2 epochs",
    "cifar10": "CIFAR-10, 2 epochs",
    "digits": "digits, 8 epochs",
}
#: The arm of all studies by default.
ARM = {"sampler": "uniform", "schedule": "linear", "average": 0.2}
#: Label and colour of each kind of weights; the averaged curve is drawn last, on top.
KINDS = {
    "raw": ("trained weights", "#D55E00"),
    "averaged": ("averaged weights", "#0072B2"),
}


def taus(table: dict[str, Any], kind: str) -> list[list[float]]:
    """Kendall's tau with its interval at each evaluation but the last."""
    (row,) = [row for row in table["ranking"] if ({**ARM, "kind": kind}).items() <= row.items()]
    return [[float(end) for end in value] for value in row["kendall"]]


def draw(tables: dict[str, Any]) -> go.Figure:
    """One panel per data set, one curve per kind of weights, bars for the intervals."""
    made = make_subplots(
        rows=1,
        cols=len(SETS),
        shared_yaxes=True,
        subplot_titles=list(SETS.values()),
        horizontal_spacing=0.03,
    )
    for column, name in enumerate(SETS, start=1):
        for position, (kind, (label, colour)) in enumerate(KINDS.items()):
            found = taus(tables["sets"][name], kind)
            shift = 0.008 * (2 * position - 1)
            trace = curve(
                [(at + 1) / (len(found) + 1) + shift for at in range(len(found))],
                [value for value, _, _ in found],
                above=[high - value for value, _, high in found],
                below=[value - low for value, low, _ in found],
                label=label,
                colour=colour,
                marker={"size": 6},
            )
            made.add_trace(trace.update(showlegend=column == 1), row=1, col=column)
    made.update_xaxes(
        tickvals=[1 / 8, 1 / 4, 1 / 2, 3 / 4],
        ticktext=["1/8", "1/4", "1/2", "3/4"],
        range=[0.06, 0.94],
    )
    made.update_xaxes(title_text="share of the budget", row=1, col=2)
    made.update_yaxes(range=[0, 1], title_text="Kendall's tau", row=1, col=1)
    set_layout(
        made,
        title="Rank agreement of early and final accuracy",
        note="24 configurations, means of 3 seeds; bar: 95% interval",
        height=340,
        top=70,
        bottom=60,
        legend=-0.2,
    )
    return made


def main() -> None:
    """Write the picture."""
    draw(json.loads(TABLES.read_text(encoding="utf-8"))).write_image(PICTURE)


if __name__ == "__main__":
    main()
