"""The notebooks run from top to bottom, on small budgets, and are kept without outputs."""

from __future__ import annotations

import contextlib
import os
import re
import runpy
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import nbformat
import pytest

from hpo_mab.storage import Storage, open_study

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


@pytest.fixture(name="small")
def _small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HPO_MAB_TRIALS", "5")
    monkeypatch.setenv("HPO_MAB_EPOCHS", "1")
    monkeypatch.setenv("HPO_MAB_STORAGE", f"sqlite:///{tmp_path / 'notebook.db'}")
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    return tmp_path


def run(name: str, folder: Path) -> nbformat.NotebookNode:
    with warnings.catch_warnings():
        # Jupyter's packages raise warnings about each other.
        warnings.simplefilter("ignore")
        from nbclient import NotebookClient

        notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
        client = NotebookClient(
            notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": folder}}
        )
        done: nbformat.NotebookNode = client.execute()
    return done


def to_html(notebook: nbformat.NotebookNode) -> str:
    """As ``make notebook-html`` does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        page: str = runpy.run_path(str(NOTEBOOKS / "to_html.py"))["to_html"](notebook)
    return page


def outputs(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def text_of(notebook: nbformat.NotebookNode) -> str:
    return "".join(output.get("text", "") for output in outputs(notebook))


def test_explore_goes_from_a_comparison_to_a_conclusion(small: Path) -> None:
    done = run("explore.ipynb", small)
    shown = [o.data["application/vnd.plotly.v1+json"] for o in outputs(done) if _is_figure(o)]
    assert len(shown) == 9
    # With few trials there are no importances; all other figures have curves.
    assert sum(bool(figure["data"]) for figure in shown) >= 8
    assert "mab: higher best validation accuracy at equal examples? cannot tell" in text_of(done)
    assert "--seeds 5" in text_of(done)
    page = to_html(done)
    # Nothing is loaded from other hosts, and plotly.js is there once.
    assert not re.findall(r"<(?:script|img|iframe)[^>]*\ssrc=[\"']?(?!data:)[^>]*>", page)
    assert "<link" not in page
    assert not re.findall(r"""(?:import|from)\s*["']https?:""", page)
    assert page.count("Plotly.newPlot(") >= 9
    assert 4_000_000 < len(page) < 8_000_000


def test_the_command_of_a_notebook_names_its_database() -> None:
    cells = nbformat.read(NOTEBOOKS / "own_model.ipynb", as_version=4).cells
    source = "".join(cell.source for cell in cells)
    (database,) = re.findall(r"sqlite:///(\w+\.db)", source)
    assert f'hpo-mab report "own-*" --storage {database}`' in source


def _is_figure(output: nbformat.NotebookNode) -> bool:
    return "application/vnd.plotly.v1+json" in output.get("data", {})


def test_explore_that_is_interrupted_shows_no_results() -> None:
    cells = nbformat.read(NOTEBOOKS / "explore.ipynb", as_version=4).cells
    (cell,) = (cell for cell in cells if "run_comparison(" in cell.source)
    names: dict[str, Any] = dict.fromkeys(("storage", "TRIALS", "EPOCHS"))
    names |= {"load_spec": mock.Mock(), "compare": mock.Mock()}
    names["compare"].run_comparison.return_value.interrupted = True
    with pytest.raises(KeyboardInterrupt, match="again to continue"):
        exec(cell.source, names)


def test_own_model_pairs_two_studies(small: Path) -> None:
    text = text_of(run("own_model.ipynb", small))
    assert text.count("5 pairs") == 4
    assert text.count("points [") == 4


def test_own_model_that_is_run_again_repeats_no_configuration(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = nbformat.read(NOTEBOOKS / "own_model.ipynb", as_version=4).cells
    (cell,) = (cell for cell in cells if ".optimize(" in cell.source)
    monkeypatch.setattr("optuna.logging.set_verbosity", lambda _: None)
    objective = mock.Mock(return_value=lambda trial: trial.suggest_float("lr", 0.0, 1.0))
    monkeypatch.setattr("hpo_mab.TrainingObjective", objective)
    names = dict.fromkeys(("make_network", "train", "validation"), mock.Mock())
    for trials in (2, 5):
        exec(cell.source, {**names, "os": os, "EPOCHS": 1.0, "TRIALS": trials})
    with contextlib.closing(Storage(str(small / "notebook.db"))) as storage:
        rates = [
            [trial.params["lr"] for trial in open_study(storage, name).trials]
            for name in ("own-mab", "own-uniform")
        ]
    assert rates[0] == rates[1]
    assert len(set(rates[0])) == 5


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.name)
def test_kept_without_outputs(path: Path) -> None:
    for cell in nbformat.read(path, as_version=4).cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
