"""``hpo-mab studies``: what is stored."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import typer

from hpo_mab.cli import _options as opt

if TYPE_CHECKING:
    from optuna.study import StudySummary


def studies(storage: opt.StorageUrl = "sqlite:///hpo_mab.db", as_json: opt.Json = False) -> None:
    """List the studies in a database.

    Examples:

    ```
    hpo-mab studies
    hpo-mab studies --storage postgresql+psycopg://me@host/db --json
    ```
    """
    import optuna
    from rich.table import Table

    from hpo_mab.cli._console import console
    from hpo_mab.storage import Definition, Storage

    store = Storage(storage, create=False)
    summaries = optuna.get_all_study_summaries(storage=store.optuna)
    rows: list[dict[str, Any]] = [
        {
            "study": summary.study_name,
            "trials": summary.n_trials,
            "best": _best(summary),
            "started": summary.datetime_start and summary.datetime_start.isoformat(" ", "minutes"),
        }
        for summary in summaries
    ]
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    table = Table("Study", "Trials", "Best", "Started", box=None, padding=(0, 2, 0, 0))
    ours = {one.study_name for one in summaries if Definition.is_in(one.user_attrs)}
    for row in rows:
        # Of a study that is not ours, nobody knows the unit.
        form = ".2%" if row["study"] in ours else ".6g"
        best = "" if row["best"] is None else f"{row['best']:{form}}"
        table.add_row(row["study"], str(row["trials"]), best, row["started"] or "")
    console().print(table if rows else f"No studies in {store.shown_url}; 'hpo-mab run' makes one.")


def _best(summary: StudySummary) -> float | None:
    """The best value; None without one, and where it is not finite, which JSON does not have."""
    # Of several objectives there is no best one.
    if summary.best_trial is None:
        return None
    value = summary.best_trial.value
    return value if value is not None and math.isfinite(value) else None
