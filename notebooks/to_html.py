"""Run a notebook and write it as one HTML file that loads nothing from other hosts.

``python notebooks/to_html.py notebooks/explore.ipynb build/explore.html``
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import Any

import nbformat
import plotly.io
from jinja2 import DictLoader
from nbclient import NotebookClient
from nbconvert import HTMLExporter

_FIGURE = "application/vnd.plotly.v1+json"
# nbconvert's own page without the scripts that it takes from a content delivery network.
_TEMPLATE = """
{%- extends 'lab/index.html.j2' -%}
{%- block html_head_js_requirejs -%}{%- endblock -%}
{%- block html_head_js_mathjax -%}{%- endblock -%}
{%- block html_head_js_mermaidjs -%}{%- endblock -%}
"""


def to_html(notebook: nbformat.NotebookNode) -> str:
    """Write an executed notebook as one HTML page, with plotly.js once.

    Args:
        notebook: With its outputs.
    """
    figures = 0
    for cell in notebook.cells:
        outputs = [one for one in cell.get("outputs", []) if not _only_loads_plotly(one)]
        for output in outputs:
            if _FIGURE in output.get("data", {}):
                output["data"] = {"text/html": _drawn(output["data"][_FIGURE], first=not figures)}
                figures += 1
        if "outputs" in cell:
            cell["outputs"] = outputs
    loader = DictLoader({"offline.html.j2": _TEMPLATE})
    exporter = HTMLExporter(extra_loaders=[loader], template_file="offline.html.j2")
    page: str = exporter.from_notebook_node(notebook)[0]
    return page


def _only_loads_plotly(output: Any) -> bool:
    data = output.get("data", {})
    return _FIGURE not in data and "PlotlyConfig" in data.get("text/html", "")


def _drawn(figure: dict[str, Any], *, first: bool) -> str:
    plain = {key: figure[key] for key in ("data", "layout") if key in figure}
    text: str = plotly.io.to_html(
        plain,
        full_html=False,
        include_plotlyjs=first,
        include_mathjax=False,
        default_height="450px",
        config={"displaylogo": False, "responsive": True},
    )
    return text


def main() -> None:
    """Run the notebook of the command line and write its page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("notebook", type=Path)
    parser.add_argument("page", type=Path)
    given = parser.parse_args()
    notebook = nbformat.read(given.notebook, as_version=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Jupyter's packages raise warnings about each other.
        NotebookClient(notebook, kernel_name="python3", timeout=None).execute()
    notebook.metadata.title = given.notebook.stem
    given.page.parent.mkdir(parents=True, exist_ok=True)
    given.page.write_text(to_html(notebook), encoding="utf-8")
    print(f"{given.notebook} in {given.page}")


if __name__ == "__main__":
    main()
