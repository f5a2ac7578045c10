"""``hpo-mab evidence``: what stored studies say of early pruning, saved for studies to come."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hpo_mab.cli import _options as opt
from hpo_mab.cli._complete import study_names

if TYPE_CHECKING:
    from hpo_mab.advantage import Evidence
    from hpo_mab.storage import StudyRun


def evidence(
    studies: Annotated[
        list[str],
        typer.Argument(
            metavar="STUDY",
            autocompletion=study_names,
            help="Studies of both arms, named as for hpo-mab report, or records (.json).",
        ),
    ],
    storage: opt.Storages = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")] = Path(
        "evidence.json"
    ),
    arm: Annotated[str, typer.Option(help="Arm trained with the bandit.")] = "mab",
    reference: Annotated[str, typer.Option(help="Arm trained under uniform sampling.")] = "uniform",
    margin: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Loss of rank correlation put up with.")
    ] = 0.1,
    as_json: opt.Json = False,
) -> None:
    """Save what finished studies say of the bandit's head start, for pruning later studies earlier.

    Trials of both arms with equal seed and configuration that ran to their end are pairs; four is
    the least, twenty or more have something to say. Nothing is run. Another study of the same data
    and network uses the file by `pruner = { kind = "advantage", evidence = "evidence.json" }`.

    Examples:

    ```
    hpo-mab evidence 'digits-*'
    hpo-mab evidence record.json -o evidence.json
    hpo-mab evidence 'digits-*' --arm bandit --reference uniform_median
    ```
    """
    from hpo_mab.cli._files import refuse_unwritable, write_text
    from hpo_mab.compare import evidence_of

    opt.silence_optuna()
    refuse_unwritable(output)
    runs = _read(studies, storage or [])
    found = evidence_of(runs, arm=arm, reference=reference, margin=margin)
    text = json.dumps(found.to_json())
    write_text(output, text + "\n")
    typer.echo(text if as_json else _text(found, output))


def _read(studies: list[str], storages: list[str]) -> list[StudyRun]:
    from hpo_mab.compare import read_record, stored_comparison
    from hpo_mab.compare._stored import is_record

    records = [name for name in studies if is_record(name, storages=storages)]
    names = [name for name in studies if name not in records]
    runs = [run for name in records for run in read_record(Path(name)).runs]
    return [*runs, *(stored_comparison(names, storages=storages).runs if names else ())]


def _text(found: Evidence, output: Path) -> str:
    from hpo_mab.compare._words import points, ratio

    moved = sum(rung.moved for rung in found.rungs)
    lines = [
        f"{found.pairs} pairs: {found.source}.",
        f"{'budget':>8}{'advantage, points':>26}{'acceleration':>26}{'judged at':>12}",
    ]
    for budget, ahead, faster, rung in zip(
        found.budgets, found.advantage, found.acceleration, found.rungs, strict=True
    ):
        lines.append(
            f"{budget:>8.0%}{points(ahead):>26}{ratio(faster):>26}{rung.decided_at:>12.0%}"
        )
    lines.append(f"{moved} of {len(found.rungs)} rungs are judged earlier than uniform's.")
    if not moved:
        lines.append("A study that is given this evidence prunes as by successive halving.")
    lines.append(f'Next: pruner = {{ kind = "advantage", evidence = "{output}" }}')
    return "\n".join(lines)
