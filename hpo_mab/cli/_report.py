"""The commands that show what is stored: ``report``, ``evidence``, ``studies``, ``dashboard``."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hpo_mab._errors import ArgumentError
from hpo_mab._plan import Attempt
from hpo_mab.cli import _options as opt
from hpo_mab.cli._options import study_names

if TYPE_CHECKING:
    from optuna.study import StudySummary
    from optuna.trial import FrozenTrial

    from hpo_mab.advantage import Evidence
    from hpo_mab.compare import ComparisonSummary
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
        typer.Option(help="Arm to compare the others with; default: uniform, else the first."),
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
    from hpo_mab.compare import report_html

    opt.silence_optuna()
    opt.refuse_unwritable(output, record, read=studies)
    runs, summary, environment, text = _read_comparison(studies, opt.storages(storage), reference)
    if record is not None:
        opt.write_file(record, text)
    shown = title or ", ".join(dict.fromkeys(run.title for run in runs))
    opt.write_file(output, report_html(runs, summary, title=shown, environment=environment))
    if as_json:
        typer.echo(text)
    elif not quiet:
        print_result(summary, verbose=verbose)
        typer.echo(f"\n{len(runs)} {'study' if len(runs) == 1 else 'studies'} in {output}")


def _read_comparison(
    studies: list[str], storages: list[str], reference: str | None
) -> tuple[tuple[StudyRun, ...], ComparisonSummary, dict[str, object], str]:
    """Studies, summary, environment, and all of it as a record."""
    from hpo_mab.compare import comparison_record, read_record, stored_comparison
    from hpo_mab.compare._stored import is_record

    if any(is_record(name, storages=storages) for name in studies):
        if len(studies) > 1:
            raise ArgumentError(f"A record is read alone, got {' '.join(studies)}.")
        found = read_record(Path(studies[0]))
        found = dataclasses.replace(found, reference=reference or found.reference)
    else:
        found = stored_comparison(studies, storages=storages, reference=reference)
    summary = found.summarise()
    return found.runs, summary, found.environment, comparison_record(found, summary)


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
    arm: Annotated[str | None, typer.Option(help="Arm with bandit sampling; default mab.")] = None,
    reference: Annotated[str, typer.Option(help="Arm with uniform sampling.")] = "uniform",
    margin: Annotated[
        float, typer.Option(callback=opt.within(0, 1), help="Tolerated loss of fidelity.")
    ] = 0.1,
    as_json: opt.Json = False,
) -> None:
    """Save what studies have measured for later ones: the early advantage, the choice of a sampler.

    Complete trials of both arms with the same seed and configuration form a pair. Four pairs are
    required; twenty or more are advisable. Nothing is trained. A study of the same data and network
    then prunes earlier where that is safe. Its definition names the file:
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
    opt.refuse_unwritable(output, read=studies)
    found = _evidence(studies, opt.storages(storage), arm=arm, reference=reference, margin=margin)
    text = json.dumps(found.to_json())
    opt.write_file(output, text + "\n")
    typer.echo(text if as_json else _evidence_text(found, output))


def _evidence(
    studies: list[str], storages: list[str], *, arm: str | None, reference: str, margin: float
) -> Evidence:
    """Evidence of two arms; of a study that held a race where one arm is missing."""
    from hpo_mab.compare import evidence_of
    from hpo_mab.compare._stored import is_record, race_evidence

    runs = _read_runs(studies, storages)
    arms = {run.arm for run in runs}
    # The arm is not there, so the studies may be those of a race.
    if arm is None and "mab" not in arms and "auto" in {run.settings.sampler.kind for run in runs}:
        names = [name for name in studies if not is_record(name, storages=storages)]
        raced = race_evidence(names, storages=storages, margin=margin) if names else ()
        if len(raced) > 1:
            several = ", ".join(one.source.removeprefix("study ") for one in raced)
            raise ArgumentError(f"Evidence holds the choice of one study, got {several}; name one.")
        if raced:
            return raced[0]
    return evidence_of(runs, arm=arm or "mab", reference=reference, margin=margin)


def _read_runs(studies: list[str], storages: list[str]) -> list[StudyRun]:
    from hpo_mab.compare import read_record, stored_comparison
    from hpo_mab.compare._stored import is_record

    records = [name for name in studies if is_record(name, storages=storages)]
    names = [name for name in studies if name not in records]
    runs = [run for name in records for run in read_record(Path(name)).runs]
    return [*runs, *(stored_comparison(names, storages=storages).runs if names else ())]


def _evidence_text(found: Evidence, output: Path) -> str:
    from hpo_mab.compare._tables import points, ratio

    lines = []
    if found.race is not None:
        choice = found.race["choice"]
        lines = [
            f"Study '{found.race['study']}' chose {choice['sampler']}: {choice['why']}.",
            f'Next: sampler = {{ kind = "auto", evidence = "{output}" }}',
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
            f"{budget:>8.0%}{points(ahead):>26}{ratio(faster):>26}{rung.decided_at:>12.0%}"
        )
    lines.append(f"{moved} of {len(found.rungs)} rungs are decided earlier than under uniform.")
    if not moved:
        lines.append(
            "With this evidence a study prunes as successive halving does, unless its own first "
            "trials move the first rung."
        )
    lines.append(f'Next: pruner = {{ kind = "advantage", evidence = "{output}" }}')
    return "\n".join(lines)


def studies(
    study: Annotated[
        str | None,
        typer.Argument(
            metavar="[STUDY]", autocompletion=study_names, help="Show the trials of this study."
        ),
    ] = None,
    trial: Annotated[
        int | None,
        typer.Option(help="Show this trial of STUDY: its evaluations, and why it was pruned."),
    ] = None,
    storage: opt.StorageUrl = opt.DEFAULT_STORAGE,
    as_json: opt.Json = False,
) -> None:
    """List the studies in a database, the trials of a study, or one trial.

    Examples:

    ```
    hpo-mab studies
    hpo-mab studies --storage postgresql://me@host/db --json
    hpo-mab studies digits-mab-seed0
    hpo-mab studies digits-mab-seed0 --trial 12
    ```
    """
    if study is not None and trial is not None:
        _show_trial(storage, study, trial, as_json=as_json)
    elif study is not None:
        _show_trials(storage, study, as_json=as_json)
    elif trial is not None:
        raise ArgumentError(f"--trial needs the name of its study, got --trial {trial} alone.")
    else:
        _show_studies(storage, as_json=as_json)


def _show_studies(storage: str, *, as_json: bool) -> None:
    import optuna
    from rich.table import Table

    from hpo_mab._plan import Plan
    from hpo_mab.cli._output import console
    from hpo_mab.storage import Definition, Storage, open_study

    def trials(summary: StudySummary) -> int:
        """Finished trials of a study that hpo-mab made; all trials of another one."""
        if not Definition.is_in(summary.user_attrs):
            return summary.n_trials
        return Plan(open_study(store, summary.study_name).get_trials(deepcopy=False)).finished

    store = Storage(storage, create=False)
    summaries = optuna.get_all_study_summaries(storage=store.optuna)
    rows: list[dict[str, Any]] = [
        {
            "study": summary.study_name,
            "trials": trials(summary),
            # A study of several objectives has no best trial.
            "best": summary.best_trial and _value_of(summary.best_trial),
            "started": summary.datetime_start and summary.datetime_start.isoformat(" ", "minutes"),
        }
        for summary in summaries
    ]
    if as_json:
        typer.echo(opt.json_text(rows))
        return
    table = Table("Study", "Trials", "Best", "Started", box=None, padding=(0, 2, 0, 0))
    for row, summary in zip(rows, summaries, strict=True):
        best = "" if row["best"] is None else f"{row['best']:{_value_form(summary.user_attrs)}}"
        table.add_row(row["study"], str(row["trials"]), best, row["started"] or "")
    console().print(table if rows else f"No studies in {store.shown_url}; 'hpo-mab run' makes one.")


def _show_trials(storage: str, name: str, *, as_json: bool) -> None:
    """Print every trial of a study: its state, last value, evaluations and parameters."""
    from rich.table import Table

    from hpo_mab.cli._output import console
    from hpo_mab.compare._text import parameters
    from hpo_mab.storage import Definition, Storage, open_study

    study = open_study(Storage(storage, create=False), name)
    ours = Definition.is_in(study.user_attrs)
    trials = study.get_trials(deepcopy=False)
    rows: list[dict[str, Any]] = [
        {
            "trial": trial.number,
            "state": trial.state.name.lower(),
            "value": _value_of(trial),
            "evaluations": len(trial.intermediate_values),
            "params": trial.params,
        }
        for trial in trials
    ]
    if as_json:
        typer.echo(opt.json_text(rows))
        return
    promoted = _promoted(trials)
    head = ("Trial", "State", "Accuracy" if ours else "Value", "Evaluations", "Parameters")
    table = Table(*head, box=None, padding=(0, 2, 0, 0))
    for row in rows:
        value = "" if row["value"] is None else f"{row['value']:{_value_form(study.user_attrs)}}"
        state = row["state"] + promoted[row["trial"]]
        table.add_row(
            str(row["trial"]), state, value, str(row["evaluations"]), parameters(row["params"])
        )
    console().print(table if rows else f"No trials in '{name}' yet.")
    if rows:
        typer.echo("\n--trial NUMBER shows one trial's evaluations, and why it was pruned.")


def _show_trial(storage: str, name: str, number: int, *, as_json: bool) -> None:
    from hpo_mab._attributes import PRUNED_KEY, REASON_KEY, StudySettings, trial_attributes
    from hpo_mab._errors import UnknownNameError
    from hpo_mab.cli._output import console
    from hpo_mab.compare._text import parameters
    from hpo_mab.pruners import why_pruned
    from hpo_mab.storage import Storage, open_study

    study = open_study(Storage(storage, create=False), name)
    # In order of number: Optuna numbers the trials of a study from 0 without gaps.
    trials = study.get_trials(deepcopy=False)
    if not 0 <= number < len(trials):
        raise UnknownNameError("trial", str(number), map(str, range(len(trials))))
    trial, attrs = trials[number], trial_attributes(trials[number])
    state = trial.state.name.lower()
    form = _value_form(study.user_attrs)
    kind = StudySettings.stored_in(study.user_attrs).pruner.kind
    why = {
        "pruned": why_pruned(attrs, pruner=kind, form=form),
        "fail": attrs.get(REASON_KEY),
    }.get(state)
    values = sorted(trial.intermediate_values.items())
    if as_json:
        facts = {
            "study": name,
            "trial": number,
            "state": state,
            "params": trial.params,
            "evaluations": values,
            "pruned_because": attrs.get(PRUNED_KEY),
            "why": why,
        }
        typer.echo(opt.json_text(facts))
        return
    rows = {
        "Trial": f"{number} of {name}, {state}{_promoted(trials)[number]}",
        "Parameters": parameters(trial.params),
        "Evaluations": ", ".join(f"{step}: {value:{form}}" for step, value in values),
        "Why": why,
    }
    for label, text in rows.items():
        if text:
            console().print(f"{label:<13}{text}", soft_wrap=True)


def _promoted(trials: Sequence[FrozenTrial]) -> list[str]:
    """Of each trial, which one continues it or trains it in full; empty if none does."""
    after = {one.promotes: f", see trial {one.number}" for one in map(Attempt.of, trials)}
    return [after.get(trial.number, "") for trial in trials]


def _value_form(study_attrs: Mapping[str, Any]) -> str:
    """Format of a study's values; their unit is not known where another program made it."""
    from hpo_mab.storage import Definition

    return ".2%" if Definition.is_in(study_attrs) else ".6g"


def _value_of(trial: FrozenTrial) -> float | None:
    """A trial's value, the last report of a pruned one.

    None if it has several objectives, or if it is not finite.
    """
    values = trial.values or []
    return values[0] if len(values) == 1 and math.isfinite(values[0]) else None


PORT = 8080


def dashboard(
    storage: opt.StorageUrl = opt.DEFAULT_STORAGE,
    host: Annotated[
        str,
        typer.Option(help="Address to listen on; with any but 127.0.0.1, others can reach it."),
    ] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option(
            callback=opt.within(0, 65535), help="Port; if it is in use, a free one is chosen."
        ),
    ] = PORT,
    artifacts: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the studies' files, e.g. long learning curves; default: next to the "
            "database.",
        ),
    ] = None,
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
    pages = application(store, artifacts=artifacts)
    warn_unpublished(refresh(store, artifacts=artifacts))
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
