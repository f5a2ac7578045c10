"""``hpo-mab studies`` lists studies, their trials, and one trial's evaluations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hpo_mab._errors import ArgumentError
from hpo_mab._plan import Attempt
from hpo_mab._results import Results
from hpo_mab.cli import _options as opt
from hpo_mab.cli._options import study_names

if TYPE_CHECKING:
    from optuna.study import StudySummary
    from optuna.trial import FrozenTrial


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
    storage: opt.StorageUrl = opt.DEFAULT_URL,
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
    from rich.table import Column, Table

    from hpo_mab.cli._output import console
    from hpo_mab.storage import Storage, open_study
    from hpo_mab.storage._definition import StoredDefinition

    def trials(summary: StudySummary) -> int:
        """Finished trials of a study that hpo-mab made; all trials of another one."""
        if not StoredDefinition.is_in(summary.user_attrs):
            return summary.n_trials
        return Results(open_study(store, summary.study_name).get_trials(deepcopy=False)).finished

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
    # A name that is cut could not be given to other commands.
    study = Column("Study", overflow="fold")
    table = Table(study, "Trials", "Best", "Started", box=None, padding=(0, 2, 0, 0))
    for row, summary in zip(rows, summaries, strict=True):
        best = "" if row["best"] is None else f"{row['best']:{_value_form(summary.user_attrs)}}"
        table.add_row(row["study"], str(row["trials"]), best, row["started"] or "")
    console().print(table if rows else f"No studies in {store.shown_url}; 'hpo-mab run' makes one.")


def _show_trials(storage: str, name: str, *, as_json: bool) -> None:
    """Print every trial of a study: its state, last value, evaluations and parameters."""
    from rich.table import Table

    from hpo_mab.cli._output import console
    from hpo_mab.compare._text import parameters
    from hpo_mab.storage import Storage, open_study
    from hpo_mab.storage._definition import StoredDefinition

    study = open_study(Storage(storage, create=False), name)
    ours = StoredDefinition.is_in(study.user_attrs)
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
    from hpo_mab._attributes import PRUNED_KEY
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
    trial, attrs = trials[number], trials[number].user_attrs
    state = trial.state.name.lower()
    form = _value_form(study.user_attrs)
    why = {"pruned": why_pruned(attrs, form=form), "fail": _why_failed(attrs)}.get(state)
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


def _why_failed(attrs: Mapping[str, Any]) -> str | None:
    """Why a trial failed; None if that is not known."""
    from hpo_mab._attributes import INTERRUPTED_KEY, LOST_KEY, REASON_KEY

    ends = {INTERRUPTED_KEY: "it was interrupted.", LOST_KEY: "its worker was lost."}
    return attrs.get(REASON_KEY) or next((ends[key] for key in ends if key in attrs), None)


def _promoted(trials: Sequence[FrozenTrial]) -> list[str]:
    """Of each trial, which one continues it or trains it in full; empty if none does."""
    promoted = Results(trials).numbers_promoted
    texts = {one.promotes: f", see trial {one.number}" for one in map(Attempt.of, trials)}
    return [texts[t.number] if t.number in promoted else "" for t in trials]


def _value_form(study_attrs: Mapping[str, Any]) -> str:
    """Format of a study's values; their unit is not known where another program made it."""
    from hpo_mab.storage._definition import StoredDefinition

    return ".2%" if StoredDefinition.is_in(study_attrs) else ".6g"


def _value_of(trial: FrozenTrial) -> float | None:
    """A trial's value, the last report of a pruned one.

    None if it has several objectives, or if it is not finite.
    """
    values = trial.values or []
    return values[0] if len(values) == 1 and math.isfinite(values[0]) else None
