"""``hpo-mab examples`` lists the training examples whose labels are likely wrong."""

from __future__ import annotations

import base64
import csv
import dataclasses
import html
import io
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hpo_mab._errors import ArgumentError
from hpo_mab._machine import expanded
from hpo_mab.cli import _options as opt
from hpo_mab.cli._files import refuse_unwritable, write_file

if TYPE_CHECKING:
    from hpo_mab.search._examples import Example, StudyExamples

_COLUMNS = ("index", "label", "predicted", "score", "visits", "file")


def examples(
    study: opt.Study,
    top: Annotated[int, typer.Option(callback=opt.within(1), help="Examples of each list.")] = 10,
    storage: opt.StorageUrl = opt.DEFAULT_URL,
    data_root: opt.DataRoot = None,
    page: Annotated[
        Path | None, typer.Option("--html", help="Write the lists with pictures to this page.")
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option("--csv", help="Write all scores of the drawn examples to this file."),
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
            "--output",
            "-o",
            help="The file that --drop writes. One that exists is replaced only if it is named.",
            show_default="exclude.json",
        ),
    ] = None,
    as_json: opt.Json = False,
) -> None:
    """List the training examples that are most likely mislabelled, hardest and most ambiguous.

    Every trial adds what it saw of each example to the study's record. Nothing is trained.
    The score of a likely mislabelled example is another class's logit minus the label's, on
    average. The score of a hard example is its loss relative to the average loss at that time,
    on average. That of an ambiguous one is the standard deviation of the label's probability. Look
    at the pictures before you drop any.

    Examples:

    ```
    hpo-mab examples digits-mab-seed0
    hpo-mab examples cifar10-auto-seed0 --html examples.html --csv examples.csv --top 100
    hpo-mab examples cifar10-auto-seed0 --drop 500 -o exclude.json
    hpo-mab run cifar10 --set data.exclude=exclude.json --name cleaned
    ```
    """
    from hpo_mab.search._examples import RANKINGS, StudyExamples
    from hpo_mab.storage import Storage

    opt.silence_optuna()
    if output is not None and drop is None:
        raise ArgumentError(f"--output needs --drop N, got --output {output} alone.")
    output = None if drop is None else output or _default_list()
    refuse_unwritable(page, table, output)
    with opt.user_prints_to_stderr(when=as_json):
        ranked = StudyExamples.read(Storage(storage, create=False), study, data_root=data_root)
    _refuse_own_list(ranked, output)
    lists = {ranking: ranked.top(ranking, top) for ranking in RANKINGS}
    # These may raise: before any file is written.
    pictures = "" if page is None else _examples_page(ranked, lists)
    dropped = "" if drop is None or output is None else _write_exclusion(ranked, drop, output)
    if table is not None:
        write_file(table, _examples_csv(ranked))
    if page is not None:
        write_file(page, pictures)
    if as_json:
        typer.echo(_examples_json(ranked, lists))
        return
    _print_examples(ranked, lists)
    for path in (page, table):
        if path is not None:
            typer.echo(f"\nWritten: {path}")
    if dropped:
        typer.echo(dropped)


def _default_list() -> Path:
    """What --drop writes unless --output names another file."""
    path = Path("exclude.json")
    if path.exists():
        # A study made with that list could not continue with another one.
        raise ArgumentError(f"{path} exists; name a file with --output.")
    return path


def _refuse_own_list(ranked: StudyExamples, path: Path | None) -> None:
    """Refuse to replace the list of the study, which needs it as it is."""
    current = ranked.excluded
    if path is not None and current and path.resolve() == expanded(current.path).resolve():
        raise ArgumentError(
            f"--output must be another file: study '{ranked.name}' leaves out what {path} lists."
        )


def _write_exclusion(ranked: StudyExamples, drop: int, path: Path) -> str:
    """Write the most suspicious examples to a file; returns what to do with it."""
    before = ranked.excluded
    listed = ranked.exclusion(drop)
    write_file(path, listed.to_json())
    count = len(listed.indices) - (0 if before is None else len(before.indices))
    kept = "" if count == drop else f" (without {drop - count}: the last one of a class stays)"
    more = "" if before is None else f", and {len(before.indices)} that the study leaves out"
    doubtful = min(count, ranked.record.suspicious)
    option = shlex.quote(f"data.exclude={path}")
    return (
        f"\n{count} examples in {path}{kept}, {doubtful} of them with a score above 0{more}. To "
        f"leave them out, add --set {option} --name NAME to the study's hpo-mab run."
    )


def _print_examples(ranked: StudyExamples, lists: dict[str, list[Example]]) -> None:
    from rich.table import Column, Table

    from hpo_mab.cli._output import console
    from hpo_mab.search._examples import RANKINGS, SCORES

    out = console()
    out.print(f"{ranked.name}: {ranked.record.summary()}")
    for ranking, listed in lists.items():
        rows = [
            (str(e.index), e.label, e.predicted, f"{e.score:.3f}", str(e.visits), e.file)
            for e in listed
        ]
        # A column that is empty in all rows is left out.
        kept = [place for place in range(len(_COLUMNS)) if any(row[place] for row in rows)]
        # A file name that is cut could not be found.
        columns = (Column(_COLUMNS[place], overflow="fold") for place in kept)
        shown = Table(*columns, box=None, padding=(0, 2, 0, 0))
        for row in rows:
            shown.add_row(*(row[place] for place in kept))
        out.print(f"\n{RANKINGS[ranking].capitalize()}", style="bold")
        out.print(f"score: {SCORES[ranking]}", style="dim")
        out.print(shown)


def _examples_json(ranked: StudyExamples, lists: dict[str, list[Example]]) -> str:
    facts = {
        "study": ranked.name,
        "trials": ranked.record.trials,
        "examples": len(ranked.record.examples),
        "total": ranked.record.total,
        **{name: list(map(dataclasses.asdict, listed)) for name, listed in lists.items()},
    }
    return opt.json_text(facts)


def _examples_csv(ranked: StudyExamples) -> str:
    """Every recorded example that was drawn, in order of suspicion."""
    from hpo_mab.search._examples import RANKINGS

    scores = {ranking: ranked.scores(ranking) for ranking in RANKINGS}
    examples = ranked.top("suspicious", len(ranked.record.examples))
    # The record may be of a sample, so a row of the training part is not a row of the scores.
    place = {int(row): place for place, row in enumerate(ranked.record.examples)}
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow((*_COLUMNS[:3], *RANKINGS, *_COLUMNS[4:]))
    for e in examples:
        values = (f"{scores[ranking][place[e.row]]:.6g}" for ranking in RANKINGS)
        rows.writerow((e.index, e.label, e.predicted, *values, e.visits, e.file))
    return text.getvalue()


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 70em; padding: 0 1em; }
section { display: grid; gap: 1em; grid-template-columns: repeat(auto-fill, minmax(9em, 1fr)); }
figure { margin: 0; } img { image-rendering: pixelated; width: 100%; border: 1px solid #ccc; }
figcaption { font-size: 13px; overflow-wrap: anywhere; }
"""


def _examples_page(ranked: StudyExamples, lists: dict[str, list[Example]]) -> str:
    """The lists with pictures, one self-contained page."""
    from hpo_mab.search._examples import RANKINGS, SCORES

    parts = []
    for ranking, listed in lists.items():
        figures = "".join(_figure_html(ranked, example) for example in listed)
        parts.append(
            f"<h2>{RANKINGS[ranking].capitalize()}</h2><p>score: {SCORES[ranking]}</p>"
            f"<section>{figures}</section>"
        )
    title = html.escape(f"Examples of {ranked.name}")
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{title}</h1>"
        f"<p>{html.escape(ranked.record.summary())}</p>{''.join(parts)}</body></html>\n"
    )


def _figure_html(ranked: StudyExamples, example: Example) -> str:
    predicted = f"predicted {example.predicted}" if example.predicted else ""
    score, index = f"score {example.score:.3f}", str(example.index)
    lines = (f"label {example.label}", predicted, score, index, example.file)
    caption = "<br>".join(html.escape(line) for line in lines if line)
    return (
        f'<figure><img alt="example {example.index}" src="{_data_url(ranked, example)}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _data_url(ranked: StudyExamples, example: Example) -> str:
    from PIL import Image

    pixels = ranked.picture(example).permute(1, 2, 0).numpy()
    if pixels.shape[2] not in (1, 3):
        raise ArgumentError(f"--html needs grey or RGB images, got {pixels.shape[2]} channels.")
    png = io.BytesIO()
    # Pillow takes grey images without a channel axis.
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(png, "PNG")
    return f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}"
