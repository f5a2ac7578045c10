"""Draw what each sampler gains over uniform sampling: ``python studies/portfolio/figure.py``.

Needs the extra ``docs`` and Chrome or Chromium.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import plotly.graph_objects as go
from plotly.subplots import make_subplots
from tables import Cell, read_cells

from hpo_mab.advantage._signed_rank import signed_rank_estimate

sys.path.append(str(Path(__file__).parents[1]))
from shared import curve, set_layout

PICTURE = Path(__file__).resolve().parent / "gains.svg"
SETS = {"fashion_mnist": "Fashion-MNIST", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
LABELS = {"0%": "labels as they are", "20%": "20% of the labels flipped"}
EPOCHS = ("0.5", "1", "2")
#: Label and colour of each sampler.
ARMS = {
    "mab": ("mab", "#0072B2"),
    "easy_first": ("easy first", "#009E73"),
    "trimmed": ("trimmed", "#E69F00"),
    "hard_half": ("hard half", "#D55E00"),
}
#: Points; larger losses are drawn at the edge.
LOWEST, HIGHEST = -5.0, 3.0


def draw(cells: Sequence[Cell]) -> go.Figure:
    """One panel per data set and share of flipped labels, one curve per sampler."""
    found = {cell.name: cell for cell in cells}
    made = make_subplots(
        rows=len(LABELS),
        cols=len(SETS),
        shared_yaxes=True,
        shared_xaxes=True,
        subplot_titles=[
            f"{name}, {labels}" for labels in LABELS.values() for name in SETS.values()
        ],
        horizontal_spacing=0.03,
        vertical_spacing=0.12,
    )
    for row, flipped in enumerate(LABELS, start=1):
        for column, name in enumerate(SETS, start=1):
            for place, arm in enumerate(ARMS):
                trace = _curve([found[name, e, flipped] for e in EPOCHS], arm, place)
                made.add_trace(trace.update(showlegend=row == column == 1), row=row, col=column)
            made.add_hline(0, line={"color": "#555555", "width": 1}, row=row, col=column)
    made.update_xaxes(tickvals=list(range(len(EPOCHS))), ticktext=EPOCHS)
    made.update_xaxes(title_text="epochs of a training", row=len(LABELS), col=2)
    made.update_yaxes(range=[LOWEST - 0.3, HIGHEST], title_text="points", col=1)
    made.update_annotations(font_size=12)
    set_layout(
        made,
        title="Accuracy minus uniform sampling's",
        note="centre of 48 pairs; bar: 95% interval; "
        f"what loses over {-LOWEST:g} points is at the edge",
        height=560,
        top=80,
        bottom=70,
        legend=-0.12,
    )
    return made


def _curve(cells: Sequence[Cell], arm: str, place: int) -> go.Scatter:
    label, colour = ARMS[arm]
    gains = [
        signed_rank_estimate(100 * cell.gains(arm, judged="examples"), error=0.025)
        for cell in cells
    ]
    shown = [max(gain.value, LOWEST) for gain in gains]
    return curve(
        [number + 0.06 * (place - 1.5) for number in range(len(gains))],
        shown,
        above=[max(gain.high, y) - y for gain, y in zip(gains, shown, strict=True)],
        below=[y - max(min(gain.low, y), LOWEST) for gain, y in zip(gains, shown, strict=True)],
        label=label,
        colour=colour,
        marker={
            "size": 7,
            "symbol": ["circle" if gain.value >= LOWEST else "triangle-down" for gain in gains],
        },
    )


def main() -> None:
    """Write the picture."""
    draw(list(read_cells())).write_image(PICTURE)


if __name__ == "__main__":
    main()
