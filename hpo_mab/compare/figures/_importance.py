"""How much each searched parameter mattered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from hpo_mab.compare.figures._style import colours, figure, note_if_empty

if TYPE_CHECKING:
    import plotly.graph_objects as go


def knob_importance(importances: Mapping[str, Mapping[str, float]]) -> go.Figure:
    """Importance of each searched parameter, a bar an arm.

    Args:
        importances: By arm, then by parameter: shares of the variation in accuracy, as from
            `optuna.importance.get_param_importances`.
    """
    import plotly.graph_objects as go

    made = figure(
        title="Which parameters mattered",
        x="importance (share of the explained variation, %)",
        y="parameter",
    )
    chosen = colours(importances)
    highest: dict[str, float] = {}
    for shares in importances.values():
        for name, share in shares.items():
            highest[name] = max(share, highest.get(name, 0.0))
    order = sorted(highest, key=lambda name: (highest[name], name))
    for arm, shares in sorted(importances.items()):
        if shares:
            made.add_trace(
                go.Bar(
                    x=[100 * shares.get(name, 0.0) for name in order],
                    y=order,
                    orientation="h",
                    name=arm,
                    marker={"color": chosen[arm]},
                    hovertemplate="%{y}: %{x:.1f} %<extra>%{fullData.name}</extra>",
                )
            )
    made.update_layout(barmode="group", showlegend=True)
    made.update_yaxes(automargin=True, title=None)
    return note_if_empty(made, "Too few complete trials to tell.")
