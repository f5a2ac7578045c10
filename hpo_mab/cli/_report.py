"""``hpo-mab report``: the comparison of stored studies; nothing is run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hpo_mab._errors import ArgumentError
from hpo_mab.cli import _options as opt
from hpo_mab.cli._complete import study_names

if TYPE_CHECKING:
    from hpo_mab.compare import ComparisonSummary
    from hpo_mab.storage import StudyRun


def report(
    studies: Annotated[
        list[str],
        typer.Argument(
            metavar="STUDY",
            autocompletion=study_names,
            help="Names of stored studies or patterns such as 'digits-*', each with a database of "
            "its own (one.db#digits-*) or another arm's name (old=digits-mab-*) if need be; or one "
            "record (.json) that --record wrote.",
        ),
    ],
    storage: opt.Storages = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The page to write.")] = Path(
        "report.html"
    ),
    reference: Annotated[
        str | None,
        typer.Option(help="Arm the others are compared with; default uniform if it is there."),
    ] = None,
    record: Annotated[
        Path | None, typer.Option(help="Write the raw record (JSON) to this file.")
    ] = None,
    title: Annotated[str | None, typer.Option(help="Heading of the page.")] = None,
    verbose: opt.Verbose = False,
    quiet: opt.Quiet = False,
    as_json: opt.Json = False,
) -> None:
    """Compare studies that exist, from any number of databases, as if they had been run together.

    Writes one self-contained HTML file (verdict, tables, figures, record) and shows the verdict and
    the essential tables here. Studies are compared under the name of the arm they were made as,
    paired by seed and configuration. Nothing is run.

    Examples:

    ```
    hpo-mab report digits-mab-seed0 digits-uniform-seed0
    hpo-mab report 'digits-*' --storage one.db --storage two.db -o digits.html --record all.json
    hpo-mab report 'old=one.db#digits-mab-*' 'new=two.db#digits-mab-*' --reference old
    hpo-mab report record.json
    ```
    """
    from hpo_mab.cli._files import refuse_unwritable, write_text
    from hpo_mab.cli._outcome import print_result
    from hpo_mab.compare import report_html

    opt.silence_optuna()
    refuse_unwritable(output, record)
    runs, summary, environment, text = _read(studies, storage or [], reference)
    if record is not None:
        write_text(record, text)
    shown = title or ", ".join(dict.fromkeys(str(run.spec.get("name", run.name)) for run in runs))
    write_text(output, report_html(runs, summary, title=shown, record=environment))
    if as_json:
        typer.echo(text)
    elif not quiet:
        print_result(summary, verbose=verbose)
        typer.echo(f"\n{len(runs)} {'study' if len(runs) == 1 else 'studies'} in {output}")


def _read(
    studies: list[str], storages: list[str], reference: str | None
) -> tuple[tuple[StudyRun, ...], ComparisonSummary, dict[str, object], str]:
    """Studies, summary, environment, and all of it as a record."""
    from hpo_mab.compare import comparison_record, read_record, stored_comparison, summarise
    from hpo_mab.compare._stored import is_record

    if any(is_record(name, storages=storages) for name in studies):
        if len(studies) > 1 or reference:
            raise ArgumentError(
                "A record is read alone, its reference is in it; got "
                f"{' '.join([*studies, *filter(None, [reference])])}."
            )
        path = Path(studies[0])
        stored = read_record(path)
        text = path.read_text(encoding="utf-8")
        return stored.runs, stored.summary, dict(stored.environment), text
    found = stored_comparison(studies, storages=storages, reference=reference)
    summary = summarise(found.runs, reference=found.reference, retrained=found.retrained)
    return found.runs, summary, found.environment, comparison_record(found, summary)
