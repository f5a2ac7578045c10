"""``hpo-mab copy`` copies or moves a study."""

from __future__ import annotations

from typing import Annotated

import typer

from hpo_mab._errors import ArgumentError
from hpo_mab._interrupts import stoppable
from hpo_mab.cli import _options as opt


def copy(
    study: opt.Study,
    to: Annotated[
        str | None,
        typer.Option("--to", help="Database URL or path of the copy; default: the same database."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the copy; default: the study's name.")
    ] = None,
    move: Annotated[
        bool,
        typer.Option(
            "--move",
            help="Delete the study once the copy is complete; files of its artifacts stay.",
        ),
    ] = False,
    storage: opt.StorageUrl = opt.DEFAULT_URL,
    as_json: opt.Json = False,
) -> None:
    """Copy or move a study with its trials, curves, record of examples, notes and artifacts.

    Optuna's own `copy_study` does not copy the learning curves to another database.

    Examples:

    ```
    hpo-mab copy digits-mab-seed0 --to sqlite:///archive.db
    hpo-mab copy digits-mab-seed0 --to postgresql://me@host/studies --move
    hpo-mab copy digits-mab-seed0 --name before
    ```
    """
    from hpo_mab.search import copy_study
    from hpo_mab.storage import Storage

    opt.silence_optuna()
    source = Storage(storage, create=False)
    target = source if to is None else Storage(to)
    if target.in_memory:
        raise ArgumentError(f"--to must be a file or a server, got {to}: the copy would be lost.")
    with stoppable():
        trials = copy_study(source, study, target, to_name=name, move=move)
    chosen = name or study
    if as_json:
        typer.echo(opt.json_text({"name": chosen, "trials": trials, "moved": move}))
        return
    done = "Moved" if move else "Copied"
    typer.echo(f"{done} '{study}' to '{chosen}' in {target.shown_url}: {trials} trials.")
