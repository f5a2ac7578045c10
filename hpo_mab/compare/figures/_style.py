"""What all figures share: colours, bands, axes, size."""

from __future__ import annotations

import textwrap
import zlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from hpo_mab.compare._tables import unbounded

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from hpo_mab.advantage import Estimate
    from hpo_mab.advantage._pairs import Floats
    from hpo_mab.compare._records import ComparisonSummary
    from hpo_mab.storage import StudyRun

#: Okabe and Ito's palette, which people with any common colour vision can distinguish.
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
#: Colours for more arms than the palette has; most are of Tol's muted scheme.
_MORE_COLOURS = {
    "olive": "#999933",
    "wine": "#882255",
    "teal": "#44AA99",
    "brown": "#8C510A",
    "indigo": "#332288",
    "rose": "#CC6677",
}
#: Arms that definitions of this package compare; no two of one colour.
_RESERVED = {
    "uniform": OKABE_ITO["black"],
    "mab": OKABE_ITO["blue"],
    "unpruned": OKABE_ITO["vermillion"],
    "uniform_hyperband": OKABE_ITO["orange"],
    "uniform_median": OKABE_ITO["purple"],
    "mab_hyperband": OKABE_ITO["green"],
    "mab_advantage": OKABE_ITO["sky"],
    "psgd": _MORE_COLOURS["olive"],
    "csgd": _MORE_COLOURS["wine"],
    "auto": _MORE_COLOURS["teal"],
    "gradnorm": _MORE_COLOURS["brown"],
}
_UNRESERVED = [OKABE_ITO[name] for name in ("sky", "green", "vermillion", "purple", "orange")]
_BELOW_TITLE = "<br><sup>"
#: Characters per line of titles and subtitles, so that a telephone shows them.
_TITLE, _SUBTITLE = 42, 56
#: Most intervals drawn as bands: more of them hide each other.
_BANDS = 2
#: Most points of a curve that has a bar at each of them. A longer one has a bar at its last.
_BARS = 20
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")


def colours(arms: Iterable[str]) -> dict[str, str]:
    """Colour of each arm: a reserved one for known names, by a hash of the name for others.

    If that colour is taken, a name takes the next free one, in order of name. So an arm's colour is
    the same in all figures of the same arms. Up to twelve arms, all colours differ.
    """
    names = sorted(set(arms))
    chosen = {name: _RESERVED[name] for name in names if name in _RESERVED}
    for name in names:
        if name not in chosen:
            chosen[name] = _free_colour(name, set(chosen.values()))
    return chosen


def dashes(arms: Iterable[str]) -> dict[str, str]:
    """Line style of each arm, which distinguishes arms of one colour."""
    names = sorted(set(arms))
    chosen = colours(names)
    styles: dict[str, str] = {}
    for name in names:
        same = [other for other in styles if chosen[other] == chosen[name]]
        styles[name] = _DASHES[len(same) % len(_DASHES)]
    return styles


def figure(*, title: str, x: str, y: str) -> go.Figure:
    """An empty figure with a title and axis titles, which name their units.

    The legend is below, and titles are wrapped: the same figure fits 390 and 1,400 pixels.
    """
    import plotly.graph_objects as go

    # All at once: a figure that is made first and laid out later copies its template twice.
    made = go.Figure(
        layout={
            "title": {"font": {"size": 15}, "x": 0.02, "y": 0.97, "yanchor": "top"},
            "template": "plotly_white",
            "xaxis": {"title": {"text": x, "font": {"size": 12}}},
            "yaxis": {"title": {"text": y, "font": {"size": 12}}, "automargin": True},
            "legend": {"orientation": "h", "x": 0, "y": -0.25, "yanchor": "top"},
            "showlegend": True,
            "hovermode": "closest",
            "margin": {"l": 50, "r": 15, "b": 60},
        }
    )
    _set_title(made, title, [])
    return made


def _set_title(target: go.Figure, title: str, marks: Sequence[str]) -> None:
    """Set the title and what marks mean below it, wrapped, with the room they need."""
    target.layout.meta = {"title": title, "marks": list(marks)}
    lines = textwrap.wrap(title, _TITLE)
    below = textwrap.wrap("; ".join(marks), _SUBTITLE)
    # Subtitles of plotly 5.20 on are not shown by older copies of plotly.js.
    subtitle = f"{_BELOW_TITLE}{'<br>'.join(below)}</sup>" if below else ""
    target.layout.title.text = "<br>".join(lines) + subtitle
    target.layout.margin.t = 22 + 18 * len(lines) + 13 * len(below)


def add_line(
    target: go.Figure, x: ArrayLike, y: ArrayLike, *, name: str, arms: Iterable[str], **options: Any
) -> None:
    """Add an arm's curve in its colour; points that are not finite are left out."""
    at, values = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    seen = np.isfinite(at) & np.isfinite(values)
    if "text" in options:
        options["text"] = [text for text, keep in zip(options["text"], seen, strict=True) if keep]
    arms = list(arms)
    line = {"color": colours(arms)[name], "dash": dashes(arms)[name]}
    line |= options.pop("line", {})
    target.add_scatter(
        x=at[seen].tolist(),
        y=values[seen].tolist(),
        name=name,
        legendgroup=name,
        line=line,
        **({"mode": "lines"} | options),
    )


def add_interval(
    target: go.Figure,
    x: ArrayLike,
    low: ArrayLike,
    high: ArrayLike,
    *,
    name: str,
    arms: Sequence[str],
    curves: int,
    label: str,
    step: bool = False,
) -> None:
    """Add an arm's interval in its colour, where both ends are finite.

    Args:
        target: The figure.
        x: Places of the curve's points, [G].
        low: Lower ends, [G].
        high: Upper ends, [G].
        name: The arm.
        arms: All arms of the figure.
        curves: How many arms have an interval. Two are drawn as bands. More are bars, next to each
            other: at every point of a short curve, at the last of a long one.
        label: What the interval is.
        step: Whether the curve is a step function.
    """
    at, under, over = (np.asarray(part, dtype=np.float64) for part in (x, low, high))
    seen = np.isfinite(at) & np.isfinite(under) & np.isfinite(over)
    if not seen.any():
        return
    at, under, over = at[seen], under[seen], over[seen]
    if curves > _BANDS:
        _add_bars(target, at, under, over, name=name, arms=arms, label=label)
        return
    common = {
        "x": at.tolist(),
        "mode": "lines",
        "legendgroup": name,
        "showlegend": False,
        "hoverinfo": "skip",
        "name": f"{name}: {label}",
        "line": {"width": 0, "shape": "hv" if step else "linear"},
    }
    # A band is two lines without width, the upper one filled down to the one before it.
    target.add_scatter(y=under.tolist(), **common)
    fill = _translucent(colours(arms)[name])
    target.add_scatter(y=over.tolist(), fill="tonexty", fillcolor=fill, **common)
    explain(target, f"shaded: {label}")


def _add_bars(
    target: go.Figure,
    at: Floats,
    low: Floats,
    high: Floats,
    *,
    name: str,
    arms: Sequence[str],
    label: str,
) -> None:
    if len(at) > _BARS:
        at, low, high = at[-1:], low[-1:], high[-1:]
    # Next to each other: bars at one place hide each other. Each is nearest to its own point: 20
    # points are 5% apart.
    width = float(np.ptp(at)) or float(abs(at[-1]))
    shift = min(0.008, 0.05 / len(arms)) * width * (arms.index(name) - (len(arms) - 1) / 2)
    # The bar is that of an invisible point in its middle: intervals need not be symmetric.
    middle = (low + high) / 2
    target.add_scatter(
        x=(at + shift).tolist(),
        y=middle.tolist(),
        mode="markers",
        marker={"opacity": 0, "color": colours(arms)[name]},
        error_y={"type": "data", "array": (high - middle).tolist(), "thickness": 1.2},
        legendgroup=name,
        showlegend=False,
        hoverinfo="skip",
        name=f"{name}: {label}",
    )
    explain(target, f"bar: {label}")


def add_open_ends(
    target: go.Figure, x: Sequence[float], y: Sequence[float], *, name: str, arms: Iterable[str]
) -> None:
    """Add arrows where an arm's interval has no upper end."""
    if not len(x):
        return
    target.add_scatter(
        x=list(x),
        y=list(y),
        mode="markers",
        marker={"symbol": "arrow-up", "size": 10, "color": colours(arms)[name]},
        name=f"{name}: no upper bound",
        legendgroup=name,
        showlegend=False,
        hoverinfo="skip",
    )
    explain(target, "arrow: no upper bound")


def add_reference(
    target: go.Figure,
    x: Sequence[Any],
    y: Sequence[Any],
    *,
    name: str,
    colour: str = "#888888",
) -> None:
    """Add a dotted line that arms are compared with, and its entry in the legend."""
    line = {"color": colour, "width": 1.5, "dash": "dot"}
    # A line of one point is invisible.
    mode = "lines" if len({*zip(x, y, strict=True)}) > 1 else "markers"
    target.add_scatter(x=list(x), y=list(y), name=name, mode=mode, line=line, hoverinfo="skip")


def add_reference_arm(
    target: go.Figure, summary: ComparisonSummary, x: Sequence[Any], y: Sequence[Any]
) -> None:
    """Add the line of the reference arm, in its colour."""
    reference = summary.reference
    colour = colours(arms_compared(summary))[reference]
    add_reference(target, x, y, name=reference, colour=colour)


def explain(target: go.Figure, text: str) -> None:
    """Add to the line below the title what marks mean, each text once."""
    title, marks = target.layout.meta["title"], target.layout.meta["marks"]
    if text not in marks:
        _set_title(target, title, [*marks, text])


def thin(size: int, max_points: int) -> list[int]:
    """At most ``max_points`` (at least 2) of ``size`` positions, evenly spread, both ends kept."""
    kept = np.unique(np.linspace(0, size - 1, min(size, max(max_points, 2))).round().astype(int))
    return [int(position) for position in kept]


def note_if_empty(target: go.Figure, text: str) -> go.Figure:
    """Add the reason to a figure that has no curves."""
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
    """An estimate as the text at the pointer."""
    bound = "at least " if estimate.censored else ""
    low, high = (f"{end * scale:,.4g}" for end in (estimate.low, estimate.high))
    interval = "" if unbounded(estimate) else f" [{low}, {high}]"
    return f"{bound}{estimate.value * scale:,.4g}{interval}, n = {estimate.n}"


def _free_colour(name: str, taken: set[str]) -> str:
    # Not `hash`, which differs from process to process.
    start = zlib.crc32(name.encode()) % len(_UNRESERVED)
    # Yellow last: it is faint on white.
    turn = [
        *_UNRESERVED[start:],
        *_UNRESERVED[:start],
        *_MORE_COLOURS.values(),
        OKABE_ITO["yellow"],
    ]
    return next((colour for colour in turn if colour not in taken), turn[0])


def _translucent(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.18)"
