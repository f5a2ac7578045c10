"""The commands on one study that exists: ``worker``, ``replay``, ``copy`` and ``examples``."""

from __future__ import annotations

import base64
import csv
import dataclasses
import html
import io
import json
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hpo_mab._errors import ArgumentError
from hpo_mab.cli import _options as opt
from hpo_mab.cli._options import study_names

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

    from hpo_mab.search import Replay
    from hpo_mab.search._stored import Example, StudyExamples


def worker(
    study: Annotated[
        str,
        typer.Option(
            help="Name of the study; hpo-mab studies lists them.", autocompletion=study_names
        ),
    ],
    storage: opt.StorageUrl = opt.DEFAULT_STORAGE,
    device: opt.Device = None,
    slots: opt.Slots = None,
    data_root: opt.DataRoot = None,
    quiet: opt.Quiet = False,
    as_json: opt.Json = False,
    until_eof: Annotated[
        bool, typer.Option("--until-eof", hidden=True, help="Stop when standard input closes.")
    ] = False,
) -> None:
    """Run trials of a stored study until it is complete.

    Any number of workers, on any number of machines, can share a study; they need its storage and
    its data. Put a URL with a password into HPO_MAB_STORAGE: other users can read command lines.

    Example: `hpo-mab worker --storage postgresql://me@host/studies --study cifar10-auto-seed0`.
    """
    from hpo_mab.cli._main import interrupt_at_eof, stoppable

    if until_eof:
        interrupt_at_eof()
    with stoppable():
        from hpo_mab.cli._progress import StudyProgress
        from hpo_mab.search import Target, join_study
        from hpo_mab.storage import Storage, open_study

        opt.silence_optuna()
        store = Storage(storage, create=False)
        target = Target.load(open_study(store, study)).trials
        here: list[FrozenTrial] = []
        with StudyProgress(
            trials=target, label=study, quiet=quiet or as_json, curves=store.curves
        ) as progress:

            def on_trial(joined: optuna.Study, trial: FrozenTrial) -> None:
                here.append(trial)
                progress(joined, trial)

            interrupted = join_study(
                store,
                study,
                device=device,
                data_root=data_root,
                slots=None if slots is None else opt.slot_count(slots),
                on_trial=on_trial,
            )
    if as_json:
        typer.echo(_worker_json(study, target, here, interrupted=interrupted))
    if interrupted:
        raise typer.Exit(130)


def _worker_json(study: str, target: int, here: Sequence[FrozenTrial], *, interrupted: bool) -> str:
    """What this worker has done; ``run`` and ``report`` describe the whole study."""
    from hpo_mab._plan import Plan

    facts = {
        "study": study,
        "target": target,
        "trials": Plan(here).counts(twins=True),
        "numbers": [trial.number for trial in here],
        "interrupted": interrupted,
    }
    return json.dumps(facts, indent=1)


#: In place of a trial's number.
_BEST = "best"


def _trial_number(given: str) -> str:
    if given != _BEST and not given.isdecimal():
        raise typer.BadParameter(f"must be a trial's number or '{_BEST}', got '{given}'")
    return given


def replay(
    study: opt.Study,
    trial: Annotated[
        str, typer.Argument(callback=_trial_number, help="Number of the trial, or 'best'.")
    ],
    storage: opt.StorageUrl = opt.DEFAULT_STORAGE,
    device: opt.Device = None,
    data_root: opt.DataRoot = None,
    tolerance: Annotated[
        float,
        typer.Option(
            callback=opt.within(0), help="Largest difference of accuracies that counts as equal."
        ),
    ] = 0.0,
    save: Annotated[
        Path | None,
        typer.Option(
            help="File to write the trained network to; hpo_mab.search.load_network reads it."
        ),
    ] = None,
    as_json: opt.Json = False,
) -> None:
    """Train a recorded trial again, alone, and compare its learning curve with the record.

    On a CPU both are equal bit for bit. On a GPU rounding may differ; set --tolerance. A trial from
    a slot (--slots) had other batches than alone and differs. Exit status 1: the curves differ.

    Studies keep no networks; --save writes that of the trial, also where the curves differ.

    Examples: `hpo-mab replay digits-mab-seed0 7`;
    `hpo-mab replay digits-mab-seed0 best --save best.pt`.
    """
    from hpo_mab.cli._main import stoppable
    from hpo_mab.search import replay as train_again
    from hpo_mab.storage import Storage

    with stoppable():
        opt.refuse_unwritable(save)
        number = None if trial == _BEST else int(trial)
        found = train_again(
            Storage(storage, create=False), study, number, device=device, data_root=data_root
        )
    # Without a tolerance every figure must be equal, not only accuracies.
    same = found.is_identical or found.largest_difference <= tolerance > 0
    typer.echo(_replay_json(found, study) if as_json else _replay_text(found, study))
    if save is not None:
        _save(found, save)
    if not same:
        raise typer.Exit(1)


def _save(found: Replay, path: Path) -> None:
    import torch

    if not found.network:
        raise ArgumentError("The replay has diverged, so there is no network to save.")
    file = io.BytesIO()
    torch.save(dict(found.network), file)
    opt.write_file(path, file.getvalue())
    typer.echo(f"Its network is in {path}.", err=True)


def _replay_json(found: Replay, study: str) -> str:
    curves = {"recorded": found.trial.curve, "replayed": found.curve}
    diverged = math.isinf(found.largest_difference)
    facts = {
        "study": study,
        "trial": found.trial.number,
        "identical": found.is_identical,
        "largest_difference": None if diverged else found.largest_difference,
        "slots": found.slots,
        **{name: [e.accuracy for e in curve] for name, curve in curves.items()},
    }
    return json.dumps(facts, indent=1)


def _replay_text(found: Replay, study: str) -> str:
    lines = [f"{'examples':>12}  {'recorded':>10}  {'replayed':>10}"]
    for index, one in enumerate(found.trial.curve):
        other = f"{found.curve[index].accuracy:.4%}" if index < len(found.curve) else "diverged"
        lines.append(f"{one.examples:>12,}  {one.accuracy:>10.4%}  {other:>10}")
    if found.is_identical:
        verdict = "is reproduced bit for bit"
    elif math.isinf(found.largest_difference):
        verdict = "diverged before the end of its record"
    else:
        verdict = f"differs by up to {found.largest_difference:.2%} in accuracy"
    lines.append(f"Trial {found.trial.number} of {study} {verdict}.")
    if found.slots is not None and not found.is_identical:
        lines.append(
            f"A difference is expected: the trial was one of up to {found.slots} in a stack, with "
            "other batches and other rounding than alone."
        )
    return "\n".join(lines)


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
        bool, typer.Option("--move", help="Delete the study once the copy is complete.")
    ] = False,
    storage: opt.StorageUrl = opt.DEFAULT_STORAGE,
    as_json: opt.Json = False,
) -> None:
    """Copy or move a study with its trials, learning curves, notes and artifacts.

    Optuna's own `copy_study` does not copy the learning curves to another database.

    Examples:

    ```
    hpo-mab copy digits-mab-seed0 --to sqlite:///archive.db
    hpo-mab copy digits-mab-seed0 --to postgresql+psycopg://me@host/studies --move
    hpo-mab copy digits-mab-seed0 --name before
    ```
    """
    from hpo_mab.cli._main import stoppable
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


_COLUMNS = ("index", "label", "predicted", "score", "visits", "file")


def examples(
    study: opt.Study,
    top: Annotated[int, typer.Option(callback=opt.within(1), help="Examples of each list.")] = 10,
    storage: opt.StorageUrl = opt.DEFAULT_STORAGE,
    data_root: opt.DataRoot = None,
    page: Annotated[
        Path | None, typer.Option("--html", help="Write the lists with pictures to this page.")
    ] = None,
    table: Annotated[
        Path | None, typer.Option("--csv", help="Write all scores of all examples to this file.")
    ] = None,
    drop: Annotated[
        int | None,
        typer.Option(
            help="How many of the most suspicious examples to write to --output, for data.exclude."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="The file that --drop writes.", show_default="exclude.json"
        ),
    ] = None,
    as_json: opt.Json = False,
) -> None:
    """List the training examples that are likely mislabelled, hardest and most ambiguous.

    Every trial adds what it saw of each example to the study's record. Nothing is trained.
    The score of a likely mislabelled example is another class's logit minus the label's, on
    average. The score of a hard example is its mean loss divided by the average loss. That of an
    ambiguous one is the standard deviation of the label's probability. Look at the pictures before
    you drop any.

    Examples:

    ```
    hpo-mab examples digits-mab-seed0
    hpo-mab examples cifar10-auto-seed0 --html examples.html --csv examples.csv --top 100
    hpo-mab examples cifar10-auto-seed0 --drop 500 -o exclude.json
    hpo-mab run cifar10 --set data.exclude=exclude.json --name cleaned
    ```
    """
    from hpo_mab.search._stored import RANKINGS, StudyExamples
    from hpo_mab.storage import Storage

    opt.silence_optuna()
    if output is not None and drop is None:
        raise ArgumentError(f"--output needs --drop N, got --output {output} alone.")
    output = output or Path("exclude.json")
    opt.refuse_unwritable(page, table, output if drop is not None else None)
    found = StudyExamples.read(Storage(storage, create=False), study, data_root=data_root)
    lists = {ranking: found.top(ranking, top) for ranking in RANKINGS}
    if table is not None:
        opt.write_file(table, _examples_csv(found))
    if page is not None:
        opt.write_file(page, _examples_page(found, lists))
    dropped = "" if drop is None else _write_exclusion(found, drop, output)
    if as_json:
        typer.echo(_examples_json(found, lists))
        return
    _print_examples(found, lists)
    for path in (page, table):
        if path is not None:
            typer.echo(f"\nWritten: {path}")
    if dropped:
        typer.echo(dropped)


def _write_exclusion(found: StudyExamples, drop: int, path: Path) -> str:
    """Write the most suspicious examples to a file; returns what to do with it."""
    opt.write_file(path, found.exclusion(drop).to_json())
    doubtful = min(drop, int((found.record.suspicion() > 0).sum()))
    return (
        f"\n{drop} examples in {path}, {doubtful} of them with a score above 0. To leave them out, "
        f"add --set {shlex.quote(f'data.exclude={path}')} --name NAME to the study's hpo-mab run."
    )


def _print_examples(found: StudyExamples, lists: dict[str, list[Example]]) -> None:
    from rich.table import Table

    from hpo_mab.cli._output import console
    from hpo_mab.search._stored import RANKINGS, SCORES

    out = console()
    out.print(_record_text(found))
    for ranking, listed in lists.items():
        rows = [_example_cells(one) for one in listed]
        # A column that is empty in all rows is left out.
        kept = [place for place in range(len(_COLUMNS)) if any(row[place] for row in rows)]
        shown = Table(*(_COLUMNS[place] for place in kept), box=None, padding=(0, 2, 0, 0))
        for row in rows:
            shown.add_row(*(row[place] for place in kept))
        out.print(f"\n{RANKINGS[ranking].capitalize()}", style="bold")
        out.print(f"score: {SCORES[ranking]}", style="dim")
        out.print(shown)


def _record_text(found: StudyExamples) -> str:
    record = found.record
    sample = (
        f"a fixed random sample of {len(record.examples):,} of {record.total:,}"
        if record.sampled
        else f"{record.total:,}"
    )
    doubtful = int((record.suspicion() > 0).sum())
    return (
        f"{found.name}: {record.trials:,} trials saw {sample} training examples "
        f"{record.counts.visits.sum():,.0f} times. For {doubtful:,} examples another class's "
        "logit exceeds the label's, on average."
    )


def _example_cells(one: Example) -> tuple[str, ...]:
    return (
        str(one.index),
        one.label,
        one.preferred,
        f"{one.score:.3f}",
        str(one.visits),
        one.file,
    )


def _examples_json(found: StudyExamples, lists: dict[str, list[Example]]) -> str:
    facts = {
        "study": found.name,
        "trials": found.record.trials,
        "examples": len(found.record.examples),
        "total": found.record.total,
        **{name: [dataclasses.asdict(one) for one in listed] for name, listed in lists.items()},
    }
    return json.dumps(facts, indent=1)


def _examples_csv(found: StudyExamples) -> str:
    """Every recorded example that was drawn, in order of suspicion."""
    from hpo_mab.search._stored import RANKINGS

    scores = {ranking: found.scores(ranking) for ranking in RANKINGS}
    everything = found.top("suspicious", len(found.record.examples))
    # The record may be of a sample, so a row of the training part is not a row of the scores.
    place = {int(row): place for place, row in enumerate(found.record.examples)}
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("index", "label", "preferred", *RANKINGS, "visits", "file"))
    for one in everything:
        values = (f"{scores[ranking][place[one.row]]:.6g}" for ranking in RANKINGS)
        rows.writerow((one.index, one.label, one.preferred, *values, one.visits, one.file))
    return text.getvalue()


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 70em; padding: 0 1em; }
section { display: grid; gap: 1em; grid-template-columns: repeat(auto-fill, minmax(9em, 1fr)); }
figure { margin: 0; } img { image-rendering: pixelated; width: 100%; border: 1px solid #ccc; }
figcaption { font-size: 13px; overflow-wrap: anywhere; }
"""


def _examples_page(found: StudyExamples, lists: dict[str, list[Example]]) -> str:
    """The lists with pictures, one self-contained page."""
    from hpo_mab.search._stored import RANKINGS, SCORES

    parts = []
    for ranking, listed in lists.items():
        figures = "".join(_figure_html(found, one) for one in listed)
        parts.append(
            f"<h2>{RANKINGS[ranking].capitalize()}</h2><p>score: {SCORES[ranking]}</p>"
            f"<section>{figures}</section>"
        )
    title = html.escape(f"Examples of {found.name}")
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{title}</h1>"
        f"<p>{html.escape(_record_text(found))}</p>{''.join(parts)}</body></html>\n"
    )


def _figure_html(found: StudyExamples, one: Example) -> str:
    predicted = f"predicted {one.preferred}" if one.preferred else ""
    score, index = f"score {one.score:.3f}", str(one.index)
    lines = (f"label {one.label}", predicted, score, index, one.file)
    caption = "<br>".join(html.escape(line) for line in lines if line)
    return (
        f'<figure><img alt="example {one.index}" src="{_data_url(found, one)}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _data_url(found: StudyExamples, one: Example) -> str:
    from PIL import Image

    pixels = found.picture(one).permute(1, 2, 0).numpy()
    if pixels.shape[2] not in (1, 3):
        raise ArgumentError(f"--html needs grey or RGB images, got {pixels.shape[2]} channels.")
    held = io.BytesIO()
    # Pillow takes grey images without a channel axis.
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(held, "PNG")
    return f"data:image/png;base64,{base64.b64encode(held.getvalue()).decode()}"
