"""The command ``examples``: what trials saw of each training example, listed, drawn, exported."""

from __future__ import annotations

import base64
import csv
import dataclasses
import html
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hpo_mab._errors import ArgumentError
from hpo_mab.cli import _options as opt
from hpo_mab.cli._options import study_names

if TYPE_CHECKING:
    from hpo_mab.search._stored import Example, StudyExamples

_HEAD = ("index", "label", "networks say", "score", "visits", "file")


def examples(
    study: Annotated[
        str,
        typer.Argument(
            help="Name of the study, as hpo-mab studies lists it.", autocompletion=study_names
        ),
    ],
    top: Annotated[int, typer.Option(callback=opt.within(1), help="Examples of each list.")] = 10,
    storage: opt.StorageUrl = "sqlite:///hpo_mab.db",
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
            help="Write the so many most suspicious examples to --output, for data.exclude."
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The file that --drop writes.")
    ] = Path("exclude.json"),
    as_json: opt.Json = False,
) -> None:
    """List the training examples that are likely mislabelled, hardest and most ambiguous.

    Every trial adds what it saw of each example to the study's record. Nothing is trained.
    The score of a likely mislabelled example is by how much another class's logit exceeds the
    label's, on average; below 0 the label's is higher. The score of a hard example is its mean loss
    divided by the average loss. That of an ambiguous one is the standard deviation of the label's
    probability. Look at the pictures before you drop any.

    Examples:

    ```
    hpo-mab examples digits-mab-seed0
    hpo-mab examples cifar10-mab-seed0 --html examples.html --csv examples.csv --top 100
    hpo-mab examples cifar10-mab-seed0 --drop 500 -o exclude.json
    hpo-mab run cifar10 --set data.exclude=exclude.json --name cleaned
    ```
    """
    from hpo_mab.search._stored import RANKINGS, StudyExamples
    from hpo_mab.storage import Storage

    opt.silence_optuna()
    opt.refuse_unwritable(page, table, output if drop is not None else None)
    found = StudyExamples.read(Storage(storage, create=False), study, data_root=data_root)
    lists = {ranking: found.top(ranking, top) for ranking in RANKINGS}
    if table is not None:
        opt.write_text(table, _csv(found))
    if page is not None:
        opt.write_text(page, _page(found, lists))
    if drop is not None:
        opt.write_text(output, found.exclusion(drop).to_json())
    if as_json:
        typer.echo(_json(found, lists))
        return
    _print(found, lists)
    for path in (page, table):
        if path is not None:
            typer.echo(f"\nWritten: {path}")
    if drop is not None:
        doubtful = min(drop, int((found.record.suspicion() > 0).sum()))
        typer.echo(
            f"\n{drop} examples in {output}, {doubtful} of them with a score above 0. To leave "
            f"them out, add --set data.exclude={output} --name NAME to the study's hpo-mab run."
        )


def _print(found: StudyExamples, lists: dict[str, list[Example]]) -> None:
    from rich.table import Table

    from hpo_mab.cli._output import console
    from hpo_mab.search._stored import RANKINGS, SCORES

    out = console()
    out.print(_headline(found))
    for ranking, listed in lists.items():
        # A column that is empty in all rows is left out.
        kept = [place for place in range(len(_HEAD)) if any(_cells(one)[place] for one in listed)]
        shown = Table(*(_HEAD[place] for place in kept), box=None, padding=(0, 2, 0, 0))
        for one in listed:
            shown.add_row(*(_cells(one)[place] for place in kept))
        out.print(f"\n{RANKINGS[ranking].capitalize()}", style="bold")
        out.print(f"score: {SCORES[ranking]}", style="dim")
        out.print(shown)


def _headline(found: StudyExamples) -> str:
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


def _cells(one: Example) -> tuple[str, ...]:
    return (
        str(one.index),
        one.label,
        one.preferred,
        f"{one.score:.3f}",
        str(one.visits),
        one.file,
    )


def _json(found: StudyExamples, lists: dict[str, list[Example]]) -> str:
    facts = {
        "study": found.name,
        "trials": found.record.trials,
        "examples": len(found.record.examples),
        "total": found.record.total,
        **{name: [dataclasses.asdict(one) for one in listed] for name, listed in lists.items()},
    }
    return json.dumps(facts, indent=1)


def _csv(found: StudyExamples) -> str:
    """Every recorded example that was drawn, in order of suspicion."""
    from hpo_mab.search._stored import RANKINGS

    scores = {ranking: found.scores(ranking) for ranking in RANKINGS}
    everything = found.top("suspicious", len(found.record.examples))
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


def _page(found: StudyExamples, lists: dict[str, list[Example]]) -> str:
    """The lists with pictures, one self-contained page."""
    from hpo_mab.search._stored import RANKINGS, SCORES

    parts = []
    for ranking, listed in lists.items():
        figures = "".join(_figure(found, one) for one in listed)
        parts.append(
            f"<h2>{RANKINGS[ranking].capitalize()}</h2><p>score: {SCORES[ranking]}</p>"
            f"<section>{figures}</section>"
        )
    title = html.escape(f"Examples of {found.name}")
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{title}</h1>"
        f"<p>{html.escape(_headline(found))}</p>{''.join(parts)}</body></html>\n"
    )


def _figure(found: StudyExamples, one: Example) -> str:
    said = f"networks say {one.preferred}" if one.preferred else ""
    lines: Sequence[str] = [f"label {one.label}", said, f"score {one.score:.3f}", f"{one.index}"]
    caption = "<br>".join(html.escape(line) for line in [*lines, one.file] if line)
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
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(held, "PNG")
    return f"data:image/png;base64,{base64.b64encode(held.getvalue()).decode()}"
