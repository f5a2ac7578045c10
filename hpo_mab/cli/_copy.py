"""``hpo-mab copy``: a study whole, into another database or under another name."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated

import typer

from hpo_mab.cli import _options as opt
from hpo_mab.cli._complete import study_names


def copy(
    study: Annotated[
        str,
        typer.Argument(
            help="Name of the study, as hpo-mab studies lists it.", autocompletion=study_names
        ),
    ],
    to: Annotated[
        str | None,
        typer.Option("--to", help="Database URL or path of the copy; default the study's own."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="The copy's name; default the study's own.")
    ] = None,
    move: Annotated[
        bool, typer.Option("--move", help="Delete the study once the copy is whole.")
    ] = False,
    storage: opt.StorageUrl = "sqlite:///hpo_mab.db",
    as_json: opt.Json = False,
) -> None:
    """Copy a study with its trials, learning curves, notes and artifacts, or move it.

    Optuna's own `copy_study` leaves the learning curves behind when it goes to another database.

    Examples:

    ```
    hpo-mab copy digits-mab-seed0 --to sqlite:///archive.db
    hpo-mab copy digits-mab-seed0 --to postgresql+psycopg://me@host/studies --move
    hpo-mab copy digits-mab-seed0 --name before
    ```
    """
    from hpo_mab.cli._signals import stoppable
    from hpo_mab.search import copy_study
    from hpo_mab.storage import Storage

    opt.silence_optuna()
    source = Storage(storage, create=False)
    target = source if to is None else Storage(to)
    with stoppable():
        copied = copy_study(source, study, target, to_name=name, move=move)
    if as_json:
        typer.echo(json.dumps({**dataclasses.asdict(copied), "moved": move}, indent=1))
        return
    done = "Moved" if move else "Copied"
    typer.echo(
        f"{done} '{study}' to '{copied.name}' in {target.shown_url}: {copied.trials} trials, "
        f"{copied.curves} learning curves."
    )
