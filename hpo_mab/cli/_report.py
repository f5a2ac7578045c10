"""``hpo-mab report``, ``evidence`` and ``dashboard``, which show what is stored."""

from __future__ import annotations

import dataclasses
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hpo_mab._errors import ArgumentError
from hpo_mab.cli import _options as opt
from hpo_mab.cli._files import refuse_unwritable, write_file
from hpo_mab.cli._options import study_names

if TYPE_CHECKING:
    from hpo_mab.advantage import Evidence
    from hpo_mab.compare import ComparisonRuns
    from hpo_mab.storage import StudyRun


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
    storage: opt.Storages = None,
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
    hpo-mab report 'digits-*' --storage one.db --storage two.db -o digits.html --record all.json
    hpo-mab report 'old=one.db#digits-mab-*' 'new=two.db#digits-mab-*' --reference old
    hpo-mab report record.json
    ```
    """
    from hpo_mab.cli._output import print_result
    from hpo_mab.compare import comparison_record, report_html

    opt.silence_optuna()
    refuse_unwritable(output, record, read=studies)
    found = _read_comparison(studies, opt.storages(storage), reference)
    summary = found.summarise()
    text = comparison_record(found, summary)
    if record is not None:
        write_file(record, text)
    write_file(output, report_html(found, summary, title=title))
    if as_json:
        typer.echo(text)
    elif not quiet:
        print_result(summary, verbose=verbose)
        count = len(found.runs)
        typer.echo(f"\n{count} {'study' if count == 1 else 'studies'} in {output}")


def _read_comparison(
    studies: list[str], storages: list[str], reference: str | None
) -> ComparisonRuns:
    from hpo_mab.compare import read_record, stored_comparison

    records, _ = _records_and_names(studies)
    if records:
        if len(studies) > 1:
            raise ArgumentError(f"A record is read alone, got {' '.join(studies)}.")
        found = read_record(records[0])
        return dataclasses.replace(found, reference=reference or found.reference)
    return stored_comparison(studies, storages=storages, reference=reference)


def _records_and_names(studies: list[str]) -> tuple[list[Path], list[str]]:
    """Record files, and names of stored studies, which never end in ``.json``."""
    names = [name for name in studies if not name.endswith(".json")]
    return [Path(name) for name in studies if name not in names], names


def evidence(
    studies: Annotated[
        list[str],
        typer.Argument(
            metavar="STUDY",
            autocompletion=study_names,
            help="Studies of both arms, named as in hpo-mab report, or records (.json).",
        ),
    ],
    storage: opt.Storages = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="JSON file to write.")] = Path(
        "evidence.json"
    ),
    arm: Annotated[
        str | None, typer.Option(help="Arm that is compared with uniform sampling; default mab.")
    ] = None,
    reference: Annotated[str, typer.Option(help="Arm with uniform sampling.")] = "uniform",
    margin: Annotated[
        float, typer.Option(callback=opt.within(0, 1), help="Tolerated loss of fidelity.")
    ] = 0.1,
    as_json: opt.Json = False,
) -> None:
    """Save what studies measured, for later studies: the early advantage, the choice of a sampler.

    Complete trials of both arms with the same seed and configuration form a pair. Four pairs are
    required; twenty or more are advisable. Nothing is trained. A study of the same data and network
    may then prune earlier. Its definition names the file:
    `pruner = { kind = "advantage", evidence = "evidence.json" }`.

    Of a study whose sampler was `auto` the file also holds the choice. A later study takes it
    without a race if data, network, budget of a trial and portfolio are the same:
    `sampler = { kind = "auto", evidence = "evidence.json" }`.

    Examples:

    ```
    hpo-mab evidence 'digits-*'
    hpo-mab evidence record.json -o evidence.json
    hpo-mab evidence 'digits-*' --arm bandit --reference uniform_median
    hpo-mab evidence cifar10-auto-seed0
    hpo-mab run cifar10 --name later --set sampler.evidence=evidence.json
    ```
    """
    opt.silence_optuna()
    refuse_unwritable(output, read=studies)
    found = _evidence(studies, opt.storages(storage), arm=arm, reference=reference, margin=margin)
    text = json.dumps(found.to_json())
    write_file(output, text + "\n")
    typer.echo(text if as_json else _evidence_text(found, output))


def _evidence(
    studies: list[str], storages: list[str], *, arm: str | None, reference: str, margin: float
) -> Evidence:
    """Evidence of two arms or, if there is no arm ``mab``, of a study that held a race."""
    from hpo_mab.compare import evidence_of
    from hpo_mab.compare._evidence import race_evidence

    runs = _read_runs(studies, storages)
    arms = {run.arm for run in runs}
    # The arm is not there, so the studies may be those of a race.
    if arm is None and "mab" not in arms and "auto" in {run.settings.sampler.kind for run in runs}:
        _, names = _records_and_names(studies)
        raced = race_evidence(names, storages=storages, margin=margin) if names else ()
        if len(raced) > 1:
            several = ", ".join(one.source.removeprefix("study ") for one in raced)
            raise ArgumentError(f"Evidence holds the choice of one study, got {several}; name one.")
        if raced:
            return raced[0]
    return evidence_of(runs, arm=arm or "mab", reference=reference, margin=margin)


def _read_runs(studies: list[str], storages: list[str]) -> list[StudyRun]:
    from hpo_mab.compare import read_record, stored_comparison

    records, names = _records_and_names(studies)
    runs = [run for path in records for run in read_record(path).runs]
    return [*runs, *(stored_comparison(names, storages=storages).runs if names else ())]


def _evidence_text(found: Evidence, output: Path) -> str:
    from hpo_mab.compare._tables import points, ratio

    lines = []
    if found.race is not None:
        choice = found.race["choice"]
        lines = [
            f"Study '{found.race['study']}' chose {choice['sampler']}: {choice['why']}.",
            "Next: hpo-mab run with --sampler auto --set "
            f"sampler.evidence={shlex.quote(str(output))}",
        ]
    if not found.pairs:
        return "\n".join(lines)
    moved = sum(rung.moved for rung in found.rungs)
    lines += [
        f"{found.pairs} pairs: {found.source}.",
        f"{'budget':>8}{'advantage, points':>26}{'acceleration':>26}{'decided at':>12}",
    ]
    for budget, ahead, faster, rung in zip(
        found.budgets, found.advantage, found.acceleration, found.rungs, strict=True
    ):
        lines.append(
            f"{100 * budget:>7.3g}%{points(ahead):>26}{ratio(faster):>26}"
            f"{100 * rung.decided_at:>11.3g}%"
        )
    lines.append(f"{moved} of {len(found.rungs)} rungs are decided earlier than under uniform.")
    if not moved:
        lines.append(
            "With this evidence a study prunes as successive halving does, unless its own first "
            "trials move the first rung."
        )
    lines.append(
        "Next: hpo-mab run with --pruner advantage --set "
        f"pruner.evidence={shlex.quote(str(output))}"
    )
    return "\n".join(lines)


PORT = 8080


def dashboard(
    storage: opt.StorageUrl = opt.DEFAULT_URL,
    host: Annotated[
        str,
        typer.Option(
            help="Address to listen on; with any but 127.0.0.1, everyone on the network can change "
            "and delete studies."
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option(
            callback=opt.within(0, 65535), help="Port; if it is in use, a free one is chosen."
        ),
    ] = PORT,
) -> None:
    """Serve the Optuna dashboard of the storage; Ctrl-C ends it.

    Notes and figures of studies with new trials are updated first.

    Examples:

    ```
    hpo-mab dashboard
    hpo-mab dashboard --storage sqlite:///studies.db --port 9000
    ```
    """
    from hpo_mab.cli._output import warn_unpublished
    from hpo_mab.dashboard import application, refresh
    from hpo_mab.dashboard._serve import make_server
    from hpo_mab.storage import Storage

    opt.silence_optuna()
    store = Storage(storage, create=False)
    # Before the notes are written: this opens the database, and names it in the error if it fails.
    pages = application(store)
    warn_unpublished(refresh(store))
    server = make_server(pages, host=host, port=port)
    # In a URL an IPv6 address has brackets.
    shown = f"[{host}]" if ":" in host else host
    typer.echo(f"Optuna dashboard on {store.shown_url}: http://{shown}:{server.server_port}/")
    typer.echo("Ctrl-C ends it.")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        typer.echo("")
    finally:
        server.server_close()
        store.close()
