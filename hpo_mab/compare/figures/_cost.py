"""Cost to target of every arm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hpo_mab._errors import UnknownNameError
from hpo_mab.advantage import Estimate
from hpo_mab.compare._records import CURRENCIES, ComparisonSummary, CostToTarget, Currency
from hpo_mab.compare.figures._style import (
    arms_compared,
    colours,
    explain,
    figure,
    hover_text,
    note_if_empty,
)

if TYPE_CHECKING:
    import plotly.graph_objects as go

_TARGETS = {
    "reference": "the reference's final accuracy",
    "common": "the accuracy both reach",
    "retrained": "the reference's re-trained accuracy",
}


def cost_to_target(summary: ComparisonSummary, *, currency: Currency = "examples") -> go.Figure:
    """Cost to target of every arm over the reference's, with its interval over seeds.

    Args:
        summary: From `hpo_mab.compare.summarise`.
        currency: ``"examples"`` or ``"seconds"``.

    Raises:
        UnknownNameError: An unknown currency.
    """
    if currency not in CURRENCIES:
        raise UnknownNameError("currency", currency, CURRENCIES)
    import plotly.graph_objects as go

    chosen = colours(arms_compared(summary))
    made = figure(
        title=f"Cost to target in {currency}, over the cost of {summary.reference}",
        x=f"ratio of {currency} spent (below 1 = cheaper; log scale)",
        y="target",
    )
    for contrast in summary.contrasts:
        costs = [cost for cost in contrast.cost if cost.currency == currency]
        if costs:
            made.add_trace(
                go.Scatter(
                    x=[cost.ratio.value for cost in costs],
                    y=[_TARGETS[cost.target] for cost in costs],
                    name=contrast.arm,
                    mode="markers",
                    marker={
                        "color": chosen[contrast.arm],
                        "size": 11,
                        "symbol": [
                            "triangle-right" if cost.ratio.censored else "circle" for cost in costs
                        ],
                    },
                    error_x=_error_bars(costs),
                    text=[_describe(cost) for cost in costs],
                    hovertemplate="%{text}<extra>%{fullData.name}</extra>",
                )
            )
            _explain_marks(made, [cost.ratio for cost in costs])
    made.update_layout(
        showlegend=True,
        xaxis={"type": "log"},
        yaxis={"title": {"standoff": 12}, "automargin": True},
        scattermode="group",
    )
    if made.data:
        made.add_vline(x=1, line={"color": "#888888", "width": 1})
    return note_if_empty(made, "No seed has complete trials in both arms.")


def _error_bars(costs: Sequence[CostToTarget]) -> dict[str, object]:
    """Interval arms; an end the data do not give is not drawn."""
    ratios = [cost.ratio for cost in costs]
    return {
        "type": "data",
        "symmetric": False,
        "array": [r.high - r.value if math.isfinite(r.high) else 0.0 for r in ratios],
        "arrayminus": [r.value - r.low if r.low > 0.0 else 0.0 for r in ratios],
    }


def _explain_marks(made: go.Figure, ratios: Sequence[Estimate]) -> None:
    if any(ratio.bounded for ratio in ratios):
        explain(made, f"bar: {ratios[0].confidence:.0%} interval over seeds")
    if any(ratio.censored for ratio in ratios):
        explain(made, "triangle: at least so much")


def _describe(cost: CostToTarget) -> str:
    return f"{hover_text(cost.ratio)}, reached in {sum(cost.reached)} of {len(cost.reached)} seeds"
