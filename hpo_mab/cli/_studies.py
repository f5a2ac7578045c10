"""``hpo-mab studies``: what is stored."""

from __future__ import annotations

import json
from typing import Any

import typer

from hpo_mab.cli import _options as opt


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
    from hpo_mab.storage import Storage

    store = Storage(storage, create=False)
    summaries = optuna.get_all_study_summaries(storage=store.optuna)
    rows: list[dict[str, Any]] = [
        {
            "study": summary.study_name,
            "trials": summary.n_trials,
            "best": None if summary.best_trial is None else summary.best_trial.value,
            "started": summary.datetime_start and summary.datetime_start.isoformat(" ", "minutes"),
        }
        for summary in summaries
    ]
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    table = Table("Study", "Trials", "Best", "Started", box=None, padding=(0, 2, 0, 0))
    for row in rows:
        best = "" if row["best"] is None else f"{row['best']:.2%}"
        table.add_row(row["study"], str(row["trials"]), best, row["started"] or "")
    console().print(table if rows else f"No studies in {store.shown_url}; 'hpo-mab run' makes one.")
