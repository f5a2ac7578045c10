"""A comparison on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpo_mab.compare._grids import Grid, essential_grids, grids
from hpo_mab.compare._records import ComparisonSummary

if TYPE_CHECKING:
    from rich.table import Table


def comparison_tables(summary: ComparisonSummary, *, essential: bool = False) -> list[Table]:
    """The comparison as rich tables that can be read at 80 to 100 columns.

    The arms first, then gains and costs over the reference, then, for each arm with pairs,
    advantage and acceleration, and fidelity, by budget.

    Args:
        summary: From `summarise`.
        essential: Only the first three: what each arm found, what it spent, what it gained.
    """
    chosen = essential_grids(summary) if essential else grids(summary)
    return [_table(grid) for grid in chosen]


def _table(grid: Grid) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    # All as texts: brackets in strings are markup.
    made = Table(
        title=Text(grid.title, style="table.title"),
        caption=Text(grid.caption, style="table.caption"),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for position, heading in enumerate(grid.columns):
        made.add_column(Text(heading), justify="left" if position == 0 else "right")
    for row in grid.rows:
        made.add_row(*map(Text, row))
    return made
