"""The report of a comparison as one self-contained HTML page."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hpo_mab.compare import figures
from hpo_mab.compare._answers import verdict
from hpo_mab.compare._record_file import ComparisonRuns
from hpo_mab.compare._records import CURRENCIES, ComparisonSummary
from hpo_mab.compare._tables import Grid, essential_grids, grids, percent
from hpo_mab.compare._text import (
    parameter,
    parameter_rows,
    study_facts,
    trial_text,
    weights_evaluated,
)

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from hpo_mab.storage import StudyRun

# The page loads nothing from elsewhere, so it can be sent and archived as one file.

_CSS = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 62rem;
  margin: 2rem auto; padding: 0 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
.verdict { border-left: 4px solid #0072B2; background: #f2f7fb; padding: .6rem 1rem; }
.verdict p { margin: .4rem 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; text-align: right; white-space: nowrap; overflow-wrap: normal; }
th:first-child, td:first-child { text-align: left; }
thead th { border-bottom: 2px solid #555; white-space: normal; vertical-align: bottom; }
tbody tr:nth-child(even) { background: #f6f6f6; }
.note { color: #555; font-size: .85rem; margin: .3rem 0 1rem; }
dl { display: grid; grid-template-columns: 9rem 1fr; gap: .2rem .8rem; font-size: .9rem; }
dt { color: #555; } dd { margin: 0; }
summary { cursor: pointer; font-weight: 600; margin-top: 1rem; }
pre { background: #f6f6f6; padding: .8rem; overflow-x: auto; font-size: .8rem; }
@media (max-width: 640px) {
  .scroll th, .scroll td { padding: .25rem .3rem; }
  .scroll table { font-size: .78rem; }
  dl { display: block; } dd { margin-bottom: .5rem; }
}
"""
#: A folded part has no width when Plotly draws into it, so unfolding must resize its figures.
_SCRIPT = """
document.querySelectorAll("details").forEach(part => part.addEventListener("toggle", () =>
  part.querySelectorAll(".js-plotly-plot").forEach(plot => Plotly.Plots.resize(plot))));
"""


def report_html(
    comparison: ComparisonRuns, summary: ComparisonSummary, *, title: str | None = None
) -> str:
    """One HTML page that needs nothing else.

    First the best configuration with network, data, search space and budget, then the verdict,
    one table and the main figures. Folded below: all other figures, tables, trials and versions.

    Args:
        comparison: The studies compared.
        summary: From `summarise`, of the same studies.
        title: Heading of the page; None takes that of the comparison.

    Returns:
        The page, plotly.js included once (about 5 MB); nothing is loaded from elsewhere.
        Write it as UTF-8.
    """
    runs, heading = comparison.runs, html.escape(title or comparison.title)
    lines = [f"<p>{html.escape(line)}</p>" for line in verdict(summary).splitlines()]
    drawn = _figures(runs, summary)
    essential = essential_grids(summary)
    more = grids(summary)[len(essential) :]
    shown, folded = drawn[:_UNFOLDED], drawn[_UNFOLDED:]
    note = (
        f"Accuracies along the curves are of {weights_evaluated(runs)}." if drawn else "None yet."
    )
    versions = html.escape(json.dumps(comparison.environment, indent=2))
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{heading}</title>",
            f"<style>{_CSS}</style></head><body>",
            f"<h1>{heading}</h1>",
            "<h2>Best configuration</h2>",
            *_winner_html(runs, summary),
            "<h2>Verdict</h2>",
            f'<div class="verdict">{"".join(lines)}</div>',
            "<h2>Results</h2>",
            *map(_table_html, essential),
            "<h2>Figures</h2>",
            f'<p class="note">{note}</p>',
            *_figure_divs(shown),
            *([_folded("More figures", *_figure_divs(folded, first=len(shown)))] if folded else []),
            "<h2>Record</h2>",
            *([_folded("More tables", *map(_table_html, more))] if more else []),
            _trials_html(runs),
            _folded("Versions and hardware", f"<pre>{versions}</pre>"),
            f"<script>{_SCRIPT}</script>",
            "</body></html>",
        ]
    )


def _winner_html(runs: Sequence[StudyRun], summary: ComparisonSummary) -> list[str]:
    """The best configuration of all studies and what it was found in."""
    complete = [(run, run.best) for run in runs if run.best is not None]
    if not complete:
        return ["<p>No trial is complete yet.</p>"]
    # Of equally accurate ones, the first.
    best, trial = max(complete, key=lambda pair: pair[1].value or 0.0)
    arm = next((arm for arm in summary.arms if arm.arm == best.arm), None)
    retrained = ""
    if arm is not None and arm.retrained is not None:
        retrained = (
            f" The best configurations of this arm, trained again under uniform sampling: "
            f"{percent(arm.retrained)} % on the test set, {arm.retrained.n} "
            f"seed{'' if arm.retrained.n == 1 else 's'}."
        )
    best_trial = (
        f"<p><strong>{trial.value:.2%} validation accuracy</strong>: {html.escape(best.arm)}, "
        f"seed {html.escape(str(best.seed))}, trial {html.escape(trial_text(trial))}."
        f"{html.escape(retrained)}</p>"
    )
    rows = tuple(parameter_rows(best))
    grid = Grid(title="", columns=("hyperparameter", "best value", "searched"), rows=rows)
    facts = "".join(
        f"<dt>{html.escape(label)}</dt><dd>{html.escape(text)}</dd>"
        for label, text in study_facts(best)
    )
    return [best_trial, _table_html(grid), f"<dl>{facts}</dl>"]


#: Figures that are not folded.
_UNFOLDED = 3


def _figures(runs: Sequence[StudyRun], summary: ComparisonSummary) -> list[go.Figure]:
    """Every figure that has data, those that answer a question first."""
    made = [
        figures.anytime_incumbent(runs),
        figures.paired_advantage(summary),
        figures.fidelity(summary),
        figures.anytime_incumbent(runs, currency="seconds"),
        figures.paired_advantage(summary, currency="seconds"),
        *(figures.acceleration(summary, currency=currency) for currency in CURRENCIES),
        *(figures.cost_to_target(summary, currency=currency) for currency in CURRENCIES),
        figures.learning_curves(runs),
        figures.learning_curves(runs, metric="train_loss"),
        figures.reward_rate(runs),
        figures.concentration(runs),
        figures.knob_slices(runs),
    ]
    return [figure for figure in made if figure.data]


def _figure_divs(drawn: Sequence[go.Figure], *, first: int = 0) -> list[str]:
    from plotly import io

    return [
        io.to_html(
            figure,
            full_html=False,
            # plotly.js is about 5 MB: once a page.
            include_plotlyjs=position == 0,
            include_mathjax=False,
            default_height="420px",
            div_id=f"figure-{position}",
            config={"displaylogo": False, "responsive": True},
        )
        for position, figure in enumerate(drawn, start=first)
    ]


def _folded(title: str, *parts: str) -> str:
    return f"<details><summary>{html.escape(title)}</summary>{''.join(parts)}</details>"


def _table_html(grid: Grid) -> str:
    """A table, which is scrolled where it is too wide."""
    head = "".join(f"<th>{html.escape(heading)}</th>" for heading in grid.columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
        for row in grid.rows
    )
    return (
        (f"<h3>{html.escape(grid.title)}</h3>" if grid.title else "")
        + f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
        # Not a caption, which would be as wide as the table and scroll with it.
         + (f'<p class="note">{html.escape(grid.caption)}</p>' if grid.caption else "")
    )


def _trials_html(runs: Sequence[StudyRun]) -> str:
    rows = tuple(
        (
            run.arm,
            str(run.seed),
            run.name,
            str(trial.number),
            trial.state,
            "-" if trial.value is None else f"{trial.value:.4f}",
            "-" if trial.lacks_curve else f"{trial.own_examples:,}",
            "-" if trial.lacks_curve else f"{trial.own_seconds:.1f}",
            ", ".join(f"{name}={parameter(value)}" for name, value in sorted(trial.params.items())),
        )
        for run in sorted(runs, key=lambda run: (run.arm, run.seed))
        for trial in run.trials
    )
    columns = (
        "arm",
        "seed",
        "study",
        "trial",
        "state",
        "accuracy",
        "examples",
        "seconds",
        "hyperparameters",
    )
    grid = Grid(
        title=f"{len(rows)} trials of {len(runs)} studies",
        columns=columns,
        rows=rows,
        caption="A resumed trial's examples and seconds are those since it was resumed.",
    )
    return _folded("Every trial", _table_html(grid))
