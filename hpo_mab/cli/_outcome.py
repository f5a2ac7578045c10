"""What ``hpo-mab compare`` says and writes at the end."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from hpo_mab._errors import ArgumentError

if TYPE_CHECKING:
    from hpo_mab.compare import ComparisonRuns, ComparisonSummary
    from hpo_mab.storage import Storage, StudyRun


def print_comparison(summary: ComparisonSummary, found: ComparisonRuns, storage: Storage) -> None:
    """Print verdict and tables, and where to look next."""
    from hpo_mab.compare import comparison_tables, verdict

    console = Console(highlight=False)
    for table in comparison_tables(summary):
        console.print(table)
    console.print(verdict(summary), markup=False)
    console.print("\nExplore: hpo-mab dashboard, then", end=" ")
    console.print(comparison_path(storage, found.runs), markup=False)


def comparison_path(storage: Storage, runs: tuple[StudyRun, ...]) -> str:
    """Path of the dashboard's page that compares the studies."""
    ids = [storage.optuna.get_study_id_from_name(run.name) for run in runs]
    return f"/dashboard/compare-studies?ids={','.join(map(str, ids))}"


def comparison_record(found: ComparisonRuns, summary: ComparisonSummary) -> str:
    """The whole comparison as JSON: environment, summary and every run's values."""
    from hpo_mab.compare import environment, verdict

    record = {
        "environment": environment(),
        "verdict": verdict(summary).splitlines(),
        "summary": summary.to_json(),
        "retrained": [
            {"arm": arm, "seed": seed, "test_accuracies": list(scores)}
            for (arm, seed), scores in found.retrained.items()
        ],
        "studies": [_study_record(run) for run in found.runs],
    }
    return json.dumps(record, separators=(",", ":"))


def write_text(path: Path, text: str) -> None:
    """Write a file the user asked for.

    Raises:
        ArgumentError: It cannot be written.
    """
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ArgumentError(f"{path} cannot be written: {error.strerror}.") from None


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
