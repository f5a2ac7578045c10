"""``hpo-mab report`` compares stored studies in one HTML file."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hpo_mab._errors import ArgumentError
from hpo_mab.cli import _options as opt
from hpo_mab.cli._files import refuse_unwritable, write_file
from hpo_mab.cli._options import study_names

if TYPE_CHECKING:
    from hpo_mab.compare import ComparisonRuns


def report(
    studies: Annotated[
        list[str],
        typer.Argument(
            metavar="STUDY",
            autocompletion=study_names,
            help="Names of stored studies or patterns such as `digits-*`, with a database before # "
            "(`one.db#digits-*`) or an arm's name before = (`old=digits-mab-*`) if needed; or one "
            "record (.json) written by --record.",
        ),
    ],
    storage: opt.StorageUrl = opt.DEFAULT_URL,
    output: Annotated[Path, typer.Option("--output", "-o", help="HTML file to write.")] = Path(
        "report.html"
    ),
    reference: Annotated[
        str | None,
        typer.Option(
            help="Arm to compare the others with; default: that of the studies' definition, else "
            "uniform, else the first."
        ),
    ] = None,
    record: opt.Record = None,
    title: Annotated[str | None, typer.Option(help="Title of the page.")] = None,
    verbose: opt.Verbose = False,
    quiet: opt.Quiet = False,
    as_json: opt.Json = False,
) -> None:
    """Compare stored studies, from any number of databases; nothing is trained.

    Writes one self-contained HTML file (verdict, tables, figures, record), and prints the verdict
    and the main tables. Studies are grouped by arm and paired by seed and configuration.

    Examples:

    ```
    hpo-mab report digits-mab-seed0 digits-uniform-seed0
    hpo-mab report 'digits-*' --storage one.db -o digits.html --record all.json
    hpo-mab report 'old=one.db#digits-mab-*' 'new=two.db#digits-mab-*' --reference old
    hpo-mab report record.json
    ```
    """
    from hpo_mab.cli._output import print_result
    from hpo_mab.compare import comparison_record, report_html

    opt.silence_optuna()
    refuse_unwritable(output, record, read=studies)
    comparison = _read_comparison(studies, storage, reference)
    summary = comparison.summarise()
    text = comparison_record(comparison, summary)
    if record is not None:
        write_file(record, text)
    write_file(output, report_html(comparison, summary, title=title))
    if as_json:
        typer.echo(text)
    elif not quiet:
        print_result(summary, verbose=verbose)
        count = len(comparison.runs)
        typer.echo(f"\n{count} {'study' if count == 1 else 'studies'} in {output}")


def _read_comparison(studies: list[str], storage: str, reference: str | None) -> ComparisonRuns:
    from hpo_mab.compare import read_record, stored_comparison

    records, _ = records_and_names(studies)
    if records:
        if len(studies) > 1:
            raise ArgumentError(f"A record is read alone, got {' '.join(studies)}.")
        comparison = read_record(records[0])
        return dataclasses.replace(comparison, reference=reference or comparison.reference)
    return stored_comparison(studies, storages=[storage], reference=reference)


def records_and_names(studies: list[str]) -> tuple[list[Path], list[str]]:
    """Record files, and names of stored studies, which never end in ``.json``."""
    names = [name for name in studies if not name.endswith(".json")]
    return [Path(name) for name in studies if name not in names], names
