"""What all figures share: colours, bands, axes, size."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from hpo_mab.advantage import Estimate
    from hpo_mab.compare._records import ComparisonSummary
    from hpo_mab.storage import StudyRun

Floats = NDArray[np.float64]

#: Okabe and Ito's palette, told apart by people with any common colour vision.
OKABE_ITO = {
    "black": "#000000",
    "orange": "#E69F00",
    "sky": "#56B4E9",
    "green": "#009E73",
    "yellow": "#F0E442",
    "blue": "#0072B2",
    "vermillion": "#D55E00",
    "purple": "#CC79A7",
}
_FIXED = {
    "uniform": OKABE_ITO["black"],
    "mab": OKABE_ITO["blue"],
    "psgd": OKABE_ITO["orange"],
    "csgd": OKABE_ITO["vermillion"],
    "auto": OKABE_ITO["green"],
    "gradnorm": OKABE_ITO["purple"],
    "contextual": OKABE_ITO["sky"],
}
#: Yellow last: it is faint on white.
_FREE = [OKABE_ITO[name] for name in ("sky", "green", "vermillion", "purple", "orange", "yellow")]
_BELOW_TITLE = "<br><sup>"
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")


def colours(arms: Iterable[str]) -> dict[str, str]:
    """Colour of each arm: the samplers' own by name, other names by their hash.

    Other names whose hashes agree take the next free colour in order of name, so an arm's colour
    is the same in all figures of the same arms.
    """
    names = sorted(set(arms))
    found = {name: _FIXED[name] for name in names if name in _FIXED}
    for name in names:
        if name not in found:
            found[name] = _free_colour(name, set(found.values()))
    return found


def dashes(arms: Iterable[str]) -> dict[str, str]:
    """Line style of each arm, which tells arms apart once colours have run out."""
    names = sorted(set(arms))
    chosen = colours(names)
    styles: dict[str, str] = {}
    for name in names:
        same = [other for other in styles if chosen[other] == chosen[name]]
        styles[name] = _DASHES[len(same) % len(_DASHES)]
    return styles


def figure(*, title: str, x: str, y: str) -> go.Figure:
    """An empty figure with a title and axis titles, which name their units."""
    import plotly.graph_objects as go

    # All at once: a figure that is made first and laid out later copies its template twice.
    return go.Figure(
        layout={
            "title": {"text": title},
            "template": "plotly_white",
            "xaxis": {"title": {"text": x}},
            "yaxis": {"title": {"text": y}},
            "legend": {"title": {"text": "arm"}},
            "hovermode": "closest",
            "margin": {"l": 70, "r": 20, "t": 75, "b": 60},
        }
    )


def add_line(
    target: go.Figure, x: ArrayLike, y: ArrayLike, *, name: str, arms: Iterable[str], **options: Any
) -> None:
    """Add an arm's curve in its colour; points that are not finite are left out."""
    import plotly.graph_objects as go

    at, values = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    seen = np.isfinite(at) & np.isfinite(values)
    for key in ("customdata", "text"):
        if key in options:
            options[key] = [item for item, keep in zip(options[key], seen, strict=True) if keep]
    known = list(arms)
    line = {"color": colours(known)[name], "dash": dashes(known)[name]}
    line |= options.pop("line", {})
    target.add_trace(
        go.Scatter(
            x=at[seen].tolist(),
            y=values[seen].tolist(),
            name=name,
            legendgroup=name,
            line=line,
            **({"mode": "lines"} | options),
        )
    )


def add_band(
    target: go.Figure,
    x: ArrayLike,
    low: ArrayLike,
    high: ArrayLike,
    *,
    name: str,
    arms: Iterable[str],
    label: str,
    step: bool = False,
) -> None:
    """Add an arm's interval as a band in its colour, where both ends are finite."""
    import plotly.graph_objects as go

    at, under, over = (np.asarray(part, dtype=np.float64) for part in (x, low, high))
    seen = np.isfinite(at) & np.isfinite(under) & np.isfinite(over)
    if not seen.any():
        return
    common = {
        "x": at[seen].tolist(),
        "mode": "lines",
        "legendgroup": name,
        "showlegend": False,
        "hoverinfo": "skip",
        "line": {"width": 0, "shape": "hv" if step else "linear"},
    }
    target.add_trace(go.Scatter(y=under[seen].tolist(), name=f"{name}: {label}", **common))
    target.add_trace(
        go.Scatter(
            y=over[seen].tolist(),
            name=f"{name}: {label}",
            fill="tonexty",
            fillcolor=_translucent(colours(arms)[name]),
            **common,
        )
    )
    explain(target, f"shaded: {label}")


def explain(target: go.Figure, text: str) -> None:
    """Say below the title what marks mean, once each."""
    title, _, said = (target.layout.title.text or "").partition(_BELOW_TITLE)
    parts = said.removesuffix("</sup>").split("; ") if said else []
    if text not in parts:
        lines = "; ".join([*parts, text])
        # Subtitles of plotly 5.20 on are not shown by older copies of plotly.js.
        target.layout.title.text = f"{title}{_BELOW_TITLE}{lines}</sup>"


def thin(size: int, max_points: int) -> list[int]:
    """At most ``max_points`` (at least 2) of ``size`` positions, evenly spread, both ends kept."""
    kept = np.unique(np.linspace(0, size - 1, min(size, max(max_points, 2))).round().astype(int))
    return [int(position) for position in kept]


def note_if_empty(target: go.Figure, text: str) -> go.Figure:
    """Say why a figure has no curves, if it has none."""
    if not target.data:
        target.add_annotation(text=text, x=0.5, y=0.5, xref="paper", yref="paper", showarrow=False)
    return target


def arms_run(runs: Sequence[StudyRun]) -> list[str]:
    """Names of the arms among studies, sorted."""
    return sorted({run.arm for run in runs})


def arms_compared(summary: ComparisonSummary) -> list[str]:
    """Names of the arms of a comparison, the reference first."""
    return [arm.arm for arm in summary.arms]


def hover_text(estimate: Estimate, *, scale: float = 1.0) -> str:
    """An estimate as it is told where the pointer is."""
    bound = "at least " if estimate.censored else ""
    low, high = (f"{end * scale:.3g}" for end in (estimate.low, estimate.high))
    return f"{bound}{estimate.value * scale:.3g} [{low}, {high}], n = {estimate.n}"


def _free_colour(name: str, taken: set[str]) -> str:
    start = zlib.crc32(name.encode()) % len(_FREE)
    turn = _FREE[start:] + _FREE[:start]
    return next((colour for colour in turn if colour not in taken), turn[0])


def _translucent(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.18)"
