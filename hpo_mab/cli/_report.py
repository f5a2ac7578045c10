"""``hpo-mab report``: stored studies as one HTML file."""

from __future__ import annotations

import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hpo_mab._errors import ArgumentError, UnknownNameError
from hpo_mab.cli import _options as opt

if TYPE_CHECKING:
    from hpo_mab.storage import Storage, StudyRun

Scores = dict[tuple[str, int], tuple[float, ...]]


def report(
    studies: Annotated[
        list[str],
        typer.Argument(
            metavar="STUDY",
            help="Names of stored studies, patterns such as 'digits-*', or one record (.json) "
            "that 'hpo-mab compare --record' wrote.",
        ),
    ],
    storage: Annotated[
        list[str] | None,
        typer.Option(
            "--storage",
            envvar="HPO_MAB_STORAGE",
            help="Database URL or path; repeat to take studies from several.",
            show_default="sqlite:///hpo_mab.db",
        ),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")] = Path(
        "report.html"
    ),
    reference: Annotated[
        str | None,
        typer.Option(help="Arm the others are compared with; default uniform if it is there."),
    ] = None,
    title: Annotated[str | None, typer.Option(help="Heading of the page.")] = None,
) -> None:
    """Write stored studies as one self-contained HTML file: verdict, tables, figures, record.

    Studies of several databases are compared as if they were in one. Nothing is run.

    Examples:

    ```
    hpo-mab report digits-mab-seed0 digits-uniform-seed0
    hpo-mab report 'digits-*' --storage one.db --storage two.db -o digits.html
    hpo-mab report record.json
    ```
    """
    from hpo_mab.cli._outcome import write_text
    from hpo_mab.compare import read_record, report_html, summarise

    if len(studies) == 1 and studies[0].endswith(".json"):
        record = read_record(Path(studies[0]))
        runs, summary, environment = record.runs, record.summary, dict(record.environment)
    else:
        runs, scores = _gather(studies, storage or ["sqlite:///hpo_mab.db"])
        _refuse_doubles(runs)
        arms = [run.arm for run in runs]
        chosen = reference or ("uniform" if "uniform" in arms else arms[0])
        summary, environment = summarise(runs, reference=chosen, retrained=scores), None
    shown = title or ", ".join(dict.fromkeys(str(run.spec.get("name", run.name)) for run in runs))
    write_text(output, report_html(runs, summary, title=shown, record=environment))
    typer.echo(f"{len(runs)} {'study' if len(runs) == 1 else 'studies'} in {output}")


def _gather(patterns: list[str], urls: list[str]) -> tuple[tuple[StudyRun, ...], Scores]:
    """The studies that names and patterns mean, from all databases, with their re-trained scores.

    Raises:
        ArgumentError: A pattern that matches nothing.
        UnknownNameError: A name that no database holds.
    """
    from hpo_mab.storage import Storage, open_study, read_run, study_names

    opt.silence_optuna()
    stores = [Storage(url, create=False) for url in urls]
    places: list[tuple[Storage, str]] = [
        (store, name) for store in stores for name in study_names(store)
    ]
    known = [name for _, name in places]
    for pattern in patterns:
        _refuse_nothing(pattern, known, stores)
    runs: list[StudyRun] = []
    scores: Scores = {}
    for store, name in places:
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
            run = read_run(store, name)
            runs.append(run)
            stored = open_study(store, name).user_attrs.get("hpo_mab:retrained", {})
            if run.best is not None and stored.get("trial") == run.best.number:
                scores[run.arm, run.seed] = tuple(stored["accuracies"])
    for store in stores:
        store.close()
    return tuple(runs), scores


def _refuse_nothing(pattern: str, known: list[str], stores: list[Storage]) -> None:
    if fnmatch.filter(known, pattern):
        return
    where = ", ".join(store.shown_url for store in stores)
    if not known:
        raise ArgumentError(f"There is no study in {where}; 'hpo-mab run' makes one.")
    if any(sign in pattern for sign in "*?["):
        raise ArgumentError(
            f"No study in {where} matches '{pattern}'; 'hpo-mab studies' lists them."
        )
    raise UnknownNameError("study", pattern, known)


def _refuse_doubles(runs: tuple[StudyRun, ...]) -> None:
    seen: dict[tuple[str, int], str] = {}
    for run in runs:
        if (run.arm, run.seed) in seen:
            raise ArgumentError(
                f"'{seen[run.arm, run.seed]}' and '{run.name}' are both arm '{run.arm}', seed "
                f"{run.seed}: a report takes one study of an arm and seed. Name only one of them."
            )
        seen[run.arm, run.seed] = run.name
