"""What ``hpo-mab compare`` says and writes at the end."""

from __future__ import annotations

import dataclasses
import json
import os
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from hpo_mab._errors import ArgumentError
from hpo_mab.cli._dashboard import PORT

if TYPE_CHECKING:
    from hpo_mab.compare import ComparisonRuns, ComparisonSummary
    from hpo_mab.storage import Storage, StudyRun

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
    from hpo_mab.compare import outcome

    console = Console(highlight=False)
    print_result(summary, verbose=verbose)
    link = f"http://127.0.0.1:{PORT}{comparison_path(storage, found.runs)}"
    steps = [
        (dashboard, "notes and figures in the browser"),
        (link, "there: the arms side by side"),
    ]
    if "is not distinguishable" in map(outcome, summary.contrasts):
        steps.append((more_seeds, "more seeds, narrower intervals"))
    console.print("\nNext:")
    for step, purpose in steps:
        console.print(f"  {escape(step)}   [dim]# {purpose}[/dim]", soft_wrap=True)


def print_result(summary: ComparisonSummary, *, verbose: bool = False) -> None:
    """Print tables, the essential ones or all, and below them the verdict."""
    from hpo_mab.compare import comparison_tables, outcome, verdict

    console = Console(highlight=False)
    for table in comparison_tables(summary, essential=not verbose):
        console.print(table)
        console.print()
    if not verbose and any(contrast.pairs for contrast in summary.contrasts):
        console.print("[dim]--verbose shows cost, advantage and fidelity by budget.[/dim]\n")
    console.print("[bold]Verdict[/bold]")
    colours = [_COLOURS[outcome(contrast)] for contrast in summary.contrasts]
    for line, colour in zip_longest(verdict(summary).splitlines(), colours, fillvalue="none"):
        # What was found, then by which figures.
        found, comma, figures = line.partition(", at ")
        console.print(f"[bold {colour}]{escape(found)}[/]{escape(comma + figures)}")


def comparison_path(storage: Storage, runs: tuple[StudyRun, ...]) -> str:
    """Path of the dashboard's page that compares the studies."""
    ids = [storage.optuna.get_study_id_from_name(run.name) for run in runs]
    return f"/dashboard/compare-studies?ids={','.join(map(str, ids))}"


def comparison_record(found: ComparisonRuns, summary: ComparisonSummary) -> str:
    """The whole comparison as JSON: environments, summary and every run's values."""
    from hpo_mab.compare import verdict

    record = {
        "environment": ran_on(found),
        "environments": _environments(found),
        "verdict": verdict(summary).splitlines(),
        "summary": summary.to_json(),
        "retrained": [
            {"arm": arm, "seed": seed, "test_accuracies": list(scores)}
            for (arm, seed), scores in found.retrained.items()
        ],
        "studies": [_study_record(run) for run in found.runs],
    }
    return json.dumps(record, separators=(",", ":"))


def ran_on(found: ComparisonRuns) -> dict[str, Any]:
    """Versions and hardware of the machine that began the first study."""
    from hpo_mab.compare import environment

    first = next(iter(found.environments.values()), None)
    return environment() if first is None else dict(first)


def _environments(found: ComparisonRuns) -> list[dict[str, Any]]:
    """Every machine that began a study, with the arms and seeds of its studies."""
    told: dict[str, dict[str, Any]] = {}
    for (arm, seed), environment in found.environments.items():
        key = json.dumps(environment, sort_keys=True)
        entry = told.setdefault(key, {"environment": dict(environment), "studies": []})
        entry["studies"].append({"arm": arm, "seed": seed})
    return list(told.values())


def write_text(path: Path, text: str) -> None:
    """Write a file the user asked for.

    Raises:
        ArgumentError: It cannot be written.
    """
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ArgumentError(
            f"{path} cannot be written: {error.strerror}. Name a file in a folder that exists."
        ) from None


def refuse_unwritable(*paths: Path | None) -> None:
    """Say before anything runs that a file cannot be written after it.

    Raises:
        ArgumentError: It is a folder, or its folder does not exist or must not be written to.
    """
    for path in paths:
        if path is not None and path.is_dir():
            raise ArgumentError(f"{path} is a folder; name a file to write.")
        if path is not None and not os.access(path.absolute().parent, os.W_OK | os.X_OK):
            raise ArgumentError(
                f"{path} cannot be written: {path.absolute().parent} is not a folder that can be "
                "written to. Name a file in one that is."
            )


def _study_record(run: StudyRun) -> dict[str, Any]:
    plain = dataclasses.asdict(run)
    for trial in plain["trials"]:
        curve = trial.pop("curve")
        # A column an entry: a tenth of the size of one object an evaluation.
        trial["curve"] = {
            key: [_short(e[key]) for e in curve] for key in (curve[0] if curve else ())
        }
    plain["spec"]["data"].pop("root", None)
    return plain


def _short(value: Any) -> Any:
    return round(value, 6) if isinstance(value, float) else value
