"""Fill the documentation from the code, the definitions and the records."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
_PLOTLY = "assets/plotly.min.js"


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Replace the marks in a page, such as ``<!-- cli -->``, and links into the repository."""
    markdown = _link_site(markdown, up="../" * page.file.src_uri.count("/"))
    markdown = re.sub(
        r"<!-- api ([\w.]+)(?:: ([\w ]+?))? -->",
        lambda found: _public(found[1], (found[2] or "").split()),
        markdown,
    )
    mark = r"<!-- figure (\w+) (\S+) -->"
    # Loaded once, before the first figure.
    script = f'<script src="../{_PLOTLY}"></script>\n\n'
    markdown = re.sub(mark, lambda found: script + found[0], markdown, count=1)
    markdown = re.sub(mark, lambda found: _figure(found[1], found[2]), markdown)
    for mark, text in (
        ("<!-- cli -->", _cli),
        ("<!-- definitions -->", _definitions),
        ("<!-- records -->", _records),
    ):
        if mark in markdown:
            markdown = markdown.replace(mark, text())
    return markdown


def on_post_page(output: str, **_: Any) -> str:
    """Remove private modules from names: ``hpo_mab._models.x`` becomes ``hpo_mab.x``."""
    return re.sub(r"(hpo_mab(?:\.[a-z]\w*)*)\._[a-z]\w*\.", r"\1.", output)


def on_files(files: Any, config: Any, **_: Any) -> Any:
    """Add the pages of the folders of studies."""
    from mkdocs.structure.files import File, InclusionLevel

    for path in sorted((ROOT / "studies").glob("*/*.md")):
        text = path.read_text(encoding="utf-8")
        # Pictures lie next to the README in the repository, and in one folder of the site.
        text = re.sub(r"!\[([^\]]*)\]\(([\w.-]+)\)", _picture, text)
        folder = path.parent.name
        text = _link_pages(text, folder)
        text = text.replace("](../../docs/", "](../")
        page = File.generated(
            config,
            f"evidence/{_page(folder, path.stem)}",
            content=text,
            inclusion=InclusionLevel.NOT_IN_NAV,
        )
        files.append(page)
    return files


def _link_site(text: str, *, up: str) -> str:
    """Links to the files and pictures of studies, as links to the site's pages."""
    above = r"(?:\.\./)+studies"
    text = re.sub(rf"\]\({above}/README\.md", f"]({up}reference/definitions.md", text)
    text = re.sub(
        rf"\]\({above}/(\w+)/(\w+)\.md",
        lambda found: f"]({up}evidence/{_page(found[1], found[2])}",
        text,
    )
    return re.sub(rf'src="{above}/\w+/', 'src="../assets/', text)


def _link_pages(text: str, folder: str) -> str:
    link = r"\]\((?:\.\./(\w+)/)?(\w+)\.md"
    return re.sub(link, lambda found: f"]({_page(found[1] or folder, found[2])}", text)


def _page(folder: str, stem: str) -> str:
    """The page of a file in a folder of studies."""
    return f"{folder}.md" if stem == "README" else f"{folder}-{stem}.md"


def _picture(found: re.Match[str]) -> str:
    alt = " ".join(found[1].split())
    return f'<img src="../../assets/{found[2]}" alt="{alt}">'


def on_post_build(config: Any, **_: Any) -> None:
    """Copy plotly.js and the pictures into the site, so that it loads nothing from other hosts."""
    from plotly.offline import get_plotlyjs

    target = Path(config["site_dir"]) / _PLOTLY
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(get_plotlyjs(), encoding="utf-8")
    for picture in (ROOT / "studies").glob("*/*.svg"):
        shutil.copy(picture, target.parent / picture.name)


def _public(module: str, first: list[str]) -> str:
    """Every public name of a module. Those of `hpo_mab` itself are listed on its own page only.

    Args:
        module: The module.
        first: Names to list first, in this order.
    """
    names = importlib.import_module(module).__all__
    top = set() if module == "hpo_mab" else set(importlib.import_module("hpo_mab").__all__)
    ordered = dict.fromkeys([*first, *names])
    return "\n\n".join(f"::: {module}.{name}" for name in ordered if name not in top)


def _cli() -> str:
    import typer

    from hpo_mab.cli._main import app

    group: Any = typer.main.get_command(app)
    return "\n\n".join(_command(name, command) for name, command in group.commands.items())


def _command(name: str, command: Any) -> str:
    rows = []
    for parameter in command.params:
        if parameter.name == "help" or getattr(parameter, "hidden", False):
            continue
        option = str(getattr(parameter, "param_type_name", "")) == "option"
        shown = (
            ", ".join(f"`{opt}`" for opt in parameter.opts)
            if option
            else (f"`{(parameter.metavar or parameter.name).upper()}`")
        )
        text = " ".join(str(getattr(parameter, "help", "") or "").split()).replace("|", "\\|")
        # Help shows this text where the default follows from something else.
        shown_default = getattr(parameter, "show_default", None)
        default = shown_default if isinstance(shown_default, str) else parameter.default
        if isinstance(default, str | int | float | Path) and not isinstance(default, bool):
            text += f" Default `{default}`."
        if getattr(parameter, "envvar", None):
            text += f" Environment: `{parameter.envvar}`."
        rows.append(f"| {shown} | {text} |")
    table = "\n".join(["| option | meaning |", "|---|---|", *rows])
    return f"## hpo-mab {name}\n\n{_unindent(command.help or '')}\n\n{table}"


def _unindent(text: str) -> str:
    return re.sub(r"^ {4}", "", text, flags=re.MULTILINE).strip()


def _definitions() -> str:
    text = (ROOT / "studies/README.md").read_text(encoding="utf-8")
    text = re.sub(r"\]\((\w+)/(\w+)\.md", lambda f: f"](../evidence/{_page(f[1], f[2])}", text)
    return text.replace("](../docs/", "](../")


@dataclasses.dataclass(frozen=True)
class _Row:
    """A row of the table of records.

    Attributes:
        path: The record, below ``studies/``.
        arm: The arm shown.
        question: One of `_MEASURES`.
        words: Description of the arm, if its name is not clear.
    """

    path: str
    arm: str
    question: str = "model"
    words: str = ""


_FORGETS_NOTHING = "bandit, nothing forgotten"
_QUARTER = "bandit, memory 1/4"
#: In the order of the sections below the table.
_ROWS = (
    _Row("fashion_mnist/pairs.json", "mab"),
    _Row("cifar10/pairs.json", "mab"),
    _Row("digits/promotion.json", "promotion", "hyperparameters"),
    _Row("fashion_mnist/promotion.json", "promotion", "hyperparameters"),
    _Row("fashion_mnist/pruning.json", "mab_advantage", "hyperparameters"),
    _Row("fashion_mnist/auto.json", "auto", "search"),
    _Row("cifar10/arms.json", "mab_advantage", "hyperparameters"),
    _Row("paper/small-fashion_mnist.json", "mab_paper", words=_FORGETS_NOTHING),
    _Row("paper/small-cifar10.json", "mab_paper", words=_FORGETS_NOTHING),
    _Row("paper/small-cifar100.json", "mab"),
    _Row("paper/paper-cifar10.json", "mab"),
    _Row("defaults/fashion_mnist.json", "memory_100", words="bandit, memory 100"),
    _Row("defaults/cifar10.json", "memory_100", words="bandit, memory 100"),
    _Row("defaults/cifar10_half.json", "quarter", words=_QUARTER),
    _Row("defaults/cifar10_passes.json", "passes_quarter", words=_QUARTER),
)
_MEASURES = {
    "model": "same configuration",
    "search": "best validation accuracy, equal examples",
    "hyperparameters": "winners, re-trained",
}
_SETS = {
    "digits": "digits",
    "fashion_mnist": "Fashion-MNIST",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
}


def _records() -> str:
    """One row per record: data, what is compared, the difference and its interval."""
    listed = {row.path for row in _ROWS}
    rows = [*_ROWS, *(row for row in _others() if row.path not in listed)]
    head = "| data | epochs | compared | measure | difference [95% interval] | n |"
    lines = [head, "|---|---|---|---|---|---|", *_ranking_rows(), *_replay_rows(), *map(_row, rows)]
    return '<div class="records" markdown>\n\n' + "\n".join(lines) + "\n\n</div>"


def _others() -> list[_Row]:
    """All records of comparisons, each with its first arm."""
    found = []
    for path in sorted((ROOT / "studies").rglob("*.json")):
        raw = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(raw, dict) and {"summary", "studies"} <= raw.keys():
            name = path.relative_to(ROOT / "studies").as_posix()
            for one in raw["summary"]["contrasts"][:1]:
                question = "model" if one["paired"] else "hyperparameters"
                found.append(_Row(name, one["arm"], question))
    return found


def _row(row: _Row) -> str:
    from hpo_mab.compare import read_record

    record = read_record(ROOT / "studies" / row.path)
    summary = record.summarise()
    (contrast,) = [one for one in summary.contrasts if one.arm == row.arm]
    if row.question == "model":
        measured = contrast.paired[-1].advantage
    elif row.question == "search":
        measured = contrast.gain["examples"]
    else:
        measured = contrast.retrained_gain
    epochs = record.runs[0].spec["budget"]["epochs"]
    topic = row.path.split("/")[0]
    data = summary.data
    cells = (
        f"[{_SETS.get(data, data)}](evidence/{topic}.md)",
        f"{epochs:g}",
        f"{row.words or row.arm} against {contrast.reference}",
        _MEASURES[row.question],
        f"{_bold(measured)} points",
        f"{measured.n} {'pairs' if row.question == 'model' else 'seeds'}",
    )
    return f"| {' | '.join(cells)} |"


def _bold(estimate: Any, scale: float = 100.0) -> str:
    """A difference with its interval, in bold if the interval excludes zero."""
    low, high = scale * estimate.low, scale * estimate.high
    text = f"{scale * estimate.value:+.2f} [{low:+.2f}, {high:+.2f}]"
    return f"**{text}**" if low > 0 or high < 0 else text


def _ranking_rows() -> list[str]:
    """Tau that averaged weights gain at a quarter of the budget, by data set."""
    from hpo_mab.advantage import Estimate

    path = ROOT / "studies/rungs/tables.json"
    sets = json.loads(path.read_text(encoding="utf-8"))["sets"]
    rows = []
    for name, table in sets.items():
        wanted = ("uniform", "linear", 0.2, "averaged less raw")
        keys = ("sampler", "schedule", "average", "kind")
        (row,) = [r for r in table["ranking"] if tuple(r[key] for key in keys) == wanted]
        value, low, high = row["kendall"][1]
        gain = Estimate(value=value, low=low, high=high, n=table["configurations"])
        data = re.sub(r"_\d+epochs$", "", name)
        cells = (
            f"[{_SETS[data]}](evidence/rungs.md)",
            f"{table['epochs']:g}",
            "averaged against trained weights",
            "ranking at 1/4",
            f"{_bold(gain, 1.0)} tau",
            f"{gain.n} x {table['seeds']} seed{'' if table['seeds'] == 1 else 's'}",
        )
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def _replay_rows() -> list[str]:
    """Cost that `AdvantagePruner` saves against uniform Hyperband, by data set.

    Without intervals: replays are of one set of configurations, and could be any number.
    """
    rows = []
    for name in ("fashion_mnist", "cifar10", "digits"):
        path = ROOT / f"studies/replay/{name}_record.json"
        record = json.loads(path.read_text(encoding="utf-8"))
        saved, null = (
            record[case]["rows"]["bandit, advantage"]["saved against uniform, hyperband"][0]
            for case in ("recorded", "null")
        )
        cells = (
            f"[{_SETS[name]}](evidence/replay.md)",
            "8" if name == "digits" else "0.5",
            "bandit, advantage against uniform, Hyperband",
            "cost saved, replayed",
            f"{100 * saved:.0f} %; {100 * null:.0f} % without a difference of samplers",
            f"{record['configurations']}",
        )
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def _figure(name: str, path: str) -> str:
    """A figure of a record of a comparison."""
    from hpo_mab.compare import figures, read_record

    record = read_record(ROOT / "studies" / path)
    runs = name in ("anytime_incumbent", "learning_curves")
    drawn = getattr(figures, name)(record.runs if runs else record.summarise())
    kind = record.runs[0].settings.data.kind
    data = _SETS.get(kind, kind)
    drawn.layout.title.text = f"{data}. {drawn.layout.title.text}"
    return str(drawn.to_html(full_html=False, include_plotlyjs=False, default_height="400px"))
