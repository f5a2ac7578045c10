"""What the documentation takes from the code, the definitions and the records themselves."""

from __future__ import annotations

import importlib
import json
import re
import textwrap
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
_PLOTLY = "assets/plotly.min.js"
#: Pairs from which an interval around a ranking says anything.
_RANKED = 8


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill the places that are marked."""
    markdown = re.sub(r"<!-- api (\S+) -->", lambda found: _public(found[1]), markdown)
    for mark, text in (
        ("<!-- cli -->", _cli),
        ("<!-- definitions -->", _definitions),
        ("<!-- evidence -->", _evidence),
    ):
        if mark in markdown:
            markdown = markdown.replace(mark, text())
    return markdown


def on_post_build(config: Any, **_: Any) -> None:
    """Put plotly.js into the site once, so that figures need nothing from elsewhere."""
    from plotly.offline import get_plotlyjs

    target = Path(config["site_dir"]) / _PLOTLY
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(get_plotlyjs(), encoding="utf-8")


def _public(module: str) -> str:
    """Every public name of a module; those that the package itself offers are on a page alone."""
    names = importlib.import_module(module).__all__
    top = set() if module == "hpo_mab" else set(importlib.import_module("hpo_mab").__all__)
    return "\n\n".join(f"::: {module}.{name}" for name in names if name not in top)


def _cli() -> str:
    import typer

    from hpo_mab.cli._main import app

    group: Any = typer.main.get_command(app)
    return "\n\n".join(_command(name, command) for name, command in group.commands.items())


def _command(name: str, command: Any) -> str:
    rows = []
    for parameter in command.params:
        if parameter.name == "help":
            continue
        option = str(getattr(parameter, "param_type_name", "")) == "option"
        shown = (
            ", ".join(f"`{opt}`" for opt in parameter.opts)
            if option
            else (f"`{(parameter.metavar or parameter.name).upper()}`")
        )
        text = " ".join(str(getattr(parameter, "help", "") or "").split()).replace("|", "\\|")
        default = parameter.default
        if option and default not in (None, False, ()) and isinstance(default, str | int | float):
            text += f" Default `{default}`."
        rows.append(f"| {shown} | {text} |")
    table = "\n".join(["| option | meaning |", "|---|---|", *rows])
    return f"## hpo-mab {name}\n\n{_unindent(command.help or '')}\n\n{table}"


def _unindent(text: str) -> str:
    return re.sub(r"^ {4}", "", text, flags=re.MULTILINE).strip()


def _definitions() -> str:
    return (ROOT / "studies/README.md").read_text(encoding="utf-8")


def _evidence() -> str:
    folders = sorted({path.parent for path in (ROOT / "studies").rglob("*.json")})
    found = [section for folder in folders if (section := _topic(folder))]
    if not found:
        return "No comparison is on record yet: `hpo-mab compare --record FILE` makes one."
    return "\n\n".join([f'<script src="../{_PLOTLY}"></script>', *found])


def _topic(folder: Path) -> str:
    """What a folder's README concludes, and its records."""
    readme = folder / "README.md"
    text = readme.read_text(encoding="utf-8") if readme.exists() else f"# {folder.name}\n"
    # The page has a title of its own.
    parts = [re.sub(r"^#", "##", text, flags=re.MULTILINE)]
    parts += [section for path in sorted(folder.glob("*.json")) if (section := _record(path))]
    return "\n\n".join(parts)


def _record(path: Path) -> str:
    """A comparison's verdict and figures; empty for other files."""
    from hpo_mab.compare import figures, read_record, verdict

    raw = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(raw, dict) or not {"summary", "studies"} <= raw.keys():
        return ""
    record = read_record(path)
    drawn = [
        figures.anytime_incumbent(record.runs),
        figures.paired_advantage(record.summary),
    ]
    if max((contrast.pairs for contrast in record.summary.contrasts), default=0) >= _RANKED:
        drawn.append(figures.fidelity(record.summary))
    for figure in drawn:
        _fit_narrow_screens(figure)
    name = path.relative_to(ROOT).as_posix()
    lines = "\n".join(f"- {line}" for line in verdict(record.summary).splitlines())
    divs = "\n\n".join(
        figure.to_html(full_html=False, include_plotlyjs=False, default_height="400px")
        for figure in drawn
        if figure.data
    )
    return f"### `{name}`\n\n{lines}\n\n{divs}"


def _fit_narrow_screens(figure: Any) -> None:
    """On a telephone a legend at the side takes half of the width, and long titles are cut."""
    title, *rest = str(figure.layout.title.text or "").split("<br>")
    wrapped = textwrap.wrap(title, 46)
    figure.update_layout(
        title_text="<br>".join([*wrapped, *rest]),
        title_font_size=14,
        legend={"orientation": "h", "y": -0.25, "x": 0, "title": {"text": ""}},
        margin={"l": 50, "r": 10, "t": 85, "b": 60},
    )
    figure.update_xaxes(title_font_size=12)
    figure.update_yaxes(title_font_size=12)
