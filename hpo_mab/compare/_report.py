"""A comparison's JSON record, and its report as one self-contained HTML page."""

from __future__ import annotations

import dataclasses
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpo_mab._attributes import environment as this_environment
from hpo_mab._errors import ArgumentError
from hpo_mab.compare import figures
from hpo_mab.compare._records import CURRENCIES, ComparisonSummary
from hpo_mab.compare._tables import Grid, grids, parameter, weights_evaluated
from hpo_mab.compare._verdict import answers, verdict

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from hpo_mab.compare._runner import ComparisonRuns
    from hpo_mab.storage import StudyRun, TrialRun


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonRecord:
    """A comparison as it was recorded.

    Attributes:
        runs: Its studies, without the user attributes of studies.
        summary: What was concluded.
        environment: Versions and hardware of the machine that ran it.
    """

    runs: tuple[StudyRun, ...]
    summary: ComparisonSummary
    environment: Mapping[str, Any]


def read_record(path: Path) -> ComparisonRecord:
    """Read a record file.

    Raises:
        ArgumentError: It cannot be read or is no record of a comparison.
    """
    from hpo_mab.compare._records import ComparisonSummary

    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        return ComparisonRecord(
            runs=tuple(_run(study) for study in raw["studies"]),
            summary=ComparisonSummary.from_json(raw["summary"]),
            environment=raw["environment"],
        )
    except OSError as error:
        raise ArgumentError(
            f"{path} cannot be read: {error.strerror}; 'hpo-mab compare --record FILE' writes one."
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise ArgumentError(
            f"{path} is no record of a comparison ({type(error).__name__}: {error}); "
            "'hpo-mab compare --record FILE' writes one."
        ) from None


def comparison_record(found: ComparisonRuns, summary: ComparisonSummary) -> str:
    """The whole comparison as JSON: environments, summary and every run's values."""
    record = {
        "environment": found.environment,
        "environments": _environments(found),
        "verdict": verdict(summary).splitlines(),
        "answers": [one.to_json() for each in summary.contrasts for one in answers(each)],
        "summary": summary.to_json(),
        "retrained": [
            {"arm": arm, "seed": seed, "test_accuracies": list(scores)}
            for (arm, seed), scores in found.retrained.items()
        ],
        "studies": [_plain_run(run) for run in found.runs],
    }
    return json.dumps(record, separators=(",", ":"))


def _run(raw: Mapping[str, Any]) -> StudyRun:
    from hpo_mab.storage import StudyRun

    return StudyRun(**{**raw, "trials": tuple(_trial(trial) for trial in raw["trials"])})


def _trial(raw: Mapping[str, Any]) -> TrialRun:
    from hpo_mab.storage import TrialRun
    from hpo_mab.training import Evaluation

    columns = raw["curve"]
    points = zip(*columns.values(), strict=True)
    curve = tuple(Evaluation(**dict(zip(columns, point, strict=True))) for point in points)
    return TrialRun(**{**raw, "curve": curve})


def _environments(found: ComparisonRuns) -> list[dict[str, Any]]:
    """Every machine that began a study, with the arms and seeds of its studies."""
    grouped: dict[str, dict[str, Any]] = {}
    for (arm, seed), environment in found.environments.items():
        key = json.dumps(environment, sort_keys=True)
        entry = grouped.setdefault(key, {"environment": dict(environment), "studies": []})
        entry["studies"].append({"arm": arm, "seed": seed})
    return list(grouped.values())


def _plain_run(run: StudyRun) -> dict[str, Any]:
    plain = dataclasses.asdict(run)
    for trial in plain["trials"]:
        curve = trial.pop("curve")
        # A column an entry: a tenth of the size of one object an evaluation.
        trial["curve"] = {
            key: [_rounded(e[key]) for e in curve] for key in (curve[0] if curve else ())
        }
    plain["spec"]["data"].pop("root", None)
    return plain


def _rounded(value: Any) -> Any:
    return round(value, 6) if isinstance(value, float) else value


_CSS = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 62rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
.verdict { border-left: 4px solid #0072B2; background: #f2f7fb; padding: .6rem 1rem; }
.verdict p { margin: .4rem 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
thead th { border-bottom: 2px solid #555; white-space: normal; vertical-align: bottom; }
tbody tr:nth-child(even) { background: #f6f6f6; }
caption, .note { color: #555; font-size: .85rem; text-align: left; }
caption { caption-side: bottom; padding-top: .3rem; }
summary { cursor: pointer; font-weight: 600; margin-top: 1rem; }
pre { background: #f6f6f6; padding: .8rem; overflow-x: auto; font-size: .8rem; }
"""


def report_html(
    runs: Sequence[StudyRun],
    summary: ComparisonSummary,
    *,
    title: str,
    record: dict[str, Any] | None = None,
) -> str:
    """One HTML page that needs nothing else: verdict, tables, figures, and the record.

    Args:
        runs: The studies compared.
        summary: From `summarise`, of the same studies.
        title: Heading of the page.
        record: Versions and hardware of the machine that ran the studies; default those of the
            machine that writes the report.

    Returns:
        The page, plotly.js included once (about 5 MB); nothing is loaded from elsewhere.
    """
    sentences = "".join(f"<p>{html.escape(line)}</p>" for line in verdict(summary).splitlines())
    tables = [_table(grid) for grid in grids(summary)]
    drawn = _figures(runs, summary)
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{html.escape(title)}</title>",
            f"<style>{_CSS}</style></head><body>",
            f"<h1>{html.escape(title)}</h1>",
            f'<div class="verdict">{sentences}</div>',
            "<h2>Results</h2>",
            *tables,
            "<h2>Figures</h2>",
            f'<p class="note">Accuracies along the curves are of {weights_evaluated(runs)}.</p>',
            *_divs(drawn),
            "<h2>Record</h2>",
            _versions(record or this_environment()),
            _every_run(runs),
            "</body></html>",
        ]
    )


def _figures(runs: Sequence[StudyRun], summary: ComparisonSummary) -> list[go.Figure]:
    made = [figures.anytime_incumbent(runs, currency=currency) for currency in CURRENCIES]
    for draw in (figures.paired_advantage, figures.acceleration):
        made.extend(draw(summary, currency=currency) for currency in CURRENCIES)
    made.extend([figures.fidelity(summary), figures.fidelity(summary, final="own")])
    made.extend(figures.cost_to_target(summary, currency=currency) for currency in CURRENCIES)
    made.extend([figures.learning_curves(runs), figures.learning_curves(runs, metric="train_loss")])
    made.extend([figures.reward_rate(runs), figures.concentration(runs), figures.knob_slices(runs)])
    return [figure for figure in made if figure.data]


def _divs(drawn: Sequence[go.Figure]) -> list[str]:
    from plotly import io

    return [
        io.to_html(
            figure,
            full_html=False,
            include_plotlyjs=position == 0,
            include_mathjax=False,
            default_height="420px",
            div_id=f"figure-{position}",
            config={"displaylogo": False, "responsive": True},
        )
        for position, figure in enumerate(drawn)
    ]


def _table(grid: Grid) -> str:
    head = "".join(f"<th>{html.escape(heading)}</th>" for heading in grid.columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
        for row in grid.rows
    )
    return (
        f'<h3>{html.escape(grid.title)}</h3><div class="scroll"><table>'
        f"<caption>{html.escape(grid.caption)}</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _versions(record: dict[str, Any]) -> str:
    text = html.escape(json.dumps(record, indent=2))
    return f"<details><summary>Versions and hardware</summary><pre>{text}</pre></details>"


def _every_run(runs: Sequence[StudyRun]) -> str:
    rows = tuple(
        (
            run.arm,
            str(run.seed),
            run.name,
            str(trial.number),
            trial.state,
            "-" if trial.value is None else f"{trial.value:.4f}",
            "-" if trial.lacks_curve else f"{trial.examples:,}",
            "-" if trial.lacks_curve else f"{trial.seconds:.1f}",
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
        "params",
    )
    grid = Grid(title=f"{len(rows)} trials of {len(runs)} studies", columns=columns, rows=rows)
    return f"<details><summary>Every trial</summary>{_table(grid)}</details>"
