"""Helpers of several studies: search space, networks, records, pictures for READMEs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

# Each process of a peer imports this file within its time: what is large is imported on use.
if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import plotly.graph_objects as go
    from torch import Tensor, nn

    from hpo_mab.data import ImageData


@dataclasses.dataclass(frozen=True, kw_only=True)
class Range:
    """Bounds of a hyperparameter, and whether its scale is logarithmic."""

    low: float
    high: float
    log: bool = False

    def draw(self, rng: np.random.Generator) -> float:
        """A random value, uniform on the range's scale."""
        import numpy as np

        if self.log:
            return float(np.exp(rng.uniform(*np.log((self.low, self.high)))))
        return float(rng.uniform(self.low, self.high))


#: The hyperparameters that the studies' definitions search, in the order in which they are drawn.
SPACE: Mapping[str, Range] = {
    "lr": Range(low=0.003, high=1.0, log=True),
    "momentum": Range(low=0.5, high=0.98),
    "weight_decay": Range(low=1e-6, high=1e-2, log=True),
    "label_smoothing": Range(low=0.0, high=0.2),
}


def write(path: Path, text: str) -> None:
    """Write a record in one step: a script that is killed leaves the earlier one."""
    part = path.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def resumed(path: Path, **about: Any) -> dict[str, Any]:
    """The existing record, or a new one; refuses a record about something else."""
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for name, value in about.items():
        if record.setdefault(name, value) != value:
            raise SystemExit(f"{path} has {name} {record[name]}, not {value}.")
    return record


def configurations(count: int, *, seed: int) -> list[dict[str, float]]:
    """Random points of `SPACE`.

    Args:
        count: Number of points.
        seed: Seed of the points.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    return [{name: one.draw(rng) for name, one in SPACE.items()} for _ in range(count)]


def flip(labels: Tensor, *, share: float, classes: int, seed: int) -> Tensor:
    """Labels [N] of which a share is replaced by any other class, with equal probability."""
    import torch

    generator = torch.Generator().manual_seed(1000 + seed)
    rows = torch.randperm(len(labels), generator=generator)[: round(share * len(labels))]
    flipped = labels.clone()
    other = torch.randint(1, classes, (len(rows),), generator=generator)
    flipped[rows] = (labels[rows] + other) % classes
    return flipped


def network(train: ImageData, seed: int, model: str = "small_cnn") -> nn.Module:
    """An untrained network for a data set; sets torch's seed."""
    import torch

    from hpo_mab import models

    torch.manual_seed(seed)
    return models.create(
        model,
        in_channels=train.channels,
        num_classes=train.num_classes,
        image_size=train.image_size,
    )


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
    import plotly.graph_objects as go

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
