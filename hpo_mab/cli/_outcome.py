"""What ``hpo-mab compare`` says at the end."""

from __future__ import annotations

from itertools import zip_longest
from typing import TYPE_CHECKING, get_args

from rich.text import Text

from hpo_mab.cli._console import console
from hpo_mab.cli._dashboard import PORT
from hpo_mab.cli._summary import print_next

if TYPE_CHECKING:
    from hpo_mab.compare import ComparisonRuns, ComparisonSummary
    from hpo_mab.storage import Storage

_COLOURS = {"helps": "green", "hurts": "red", "is not distinguishable": "yellow"}


def print_comparison(
    summary: ComparisonSummary,
    found: ComparisonRuns,
    storage: Storage,
    *,
    dashboard: str,
    more_seeds: str,
    verbose: bool = False,
) -> None:
    """Print tables and verdict, and where to look next.

    Args:
        summary: The comparison.
        found: The studies.
        storage: Where they are.
        dashboard: Command that opens the dashboard.
        more_seeds: Command that goes on where these seeds cannot tell.
        verbose: Whether to print every table.
    """
    from hpo_mab.compare import Question, outcome
    from hpo_mab.dashboard import comparison_path

    print_result(summary, verbose=verbose)
    ids = [storage.optuna.get_study_id_from_name(run.name) for run in found.runs]
    link = f"http://127.0.0.1:{PORT}{comparison_path(ids)}"
    steps = [
        (dashboard, "notes and figures in the browser"),
        (link, "there: the arms side by side"),
    ]
    answers = {outcome(one, asked) for one in summary.contrasts for asked in get_args(Question)}
    if "is not distinguishable" in answers:
        steps.append((more_seeds, "more seeds, narrower intervals"))
    print_next(steps)


def print_result(summary: ComparisonSummary, *, verbose: bool = False) -> None:
    """Print tables, the essential ones or all, and below them the verdict."""
    from hpo_mab.compare import comparison_tables, outcome, verdict

    out = console()
    for table in comparison_tables(summary, essential=not verbose):
        out.print(table)
        out.print()
    if not verbose and any(contrast.pairs for contrast in summary.contrasts):
        out.print("--verbose shows cost, advantage and fidelity by budget.\n", style="dim")
    out.print("Verdict", style="bold")
    colours = [_COLOURS[outcome(contrast)] for contrast in summary.contrasts]
    for line, colour in zip_longest(verdict(summary).splitlines(), colours, fillvalue="none"):
        # What was found, then by which figures.
        found, comma, figures = line.partition(", at ")
        out.print(Text.assemble((found, f"bold {colour}"), comma + figures))
