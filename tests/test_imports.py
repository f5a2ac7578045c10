"""Modules that are imported without the libraries that only some of their functions need."""

from __future__ import annotations

import subprocess
import sys

import pytest

import hpo_mab
from hpo_mab._machine import version_of

_LIGHT = (
    "hpo_mab._results",
    "hpo_mab.samplers",
    "hpo_mab.advantage",
    "hpo_mab.compare",
    "hpo_mab.compare.figures",
)
_HEAVY = {
    "matplotlib", "optuna", "pandas", "plotly", "rich", "scipy", "sklearn", "sqlalchemy", "torch",
}  # fmt: skip


#: Modules with what they may not import, after those before them.
_CHAINS = (
    (
        ("hpo_mab", _HEAVY | {"numpy", "pydantic"}),
        *((name, _HEAVY) for name in _LIGHT),
        ("hpo_mab.pruners", {"sqlalchemy", "torch"}),
        # A listing or the completion of names does not have the seconds that torch takes.
        ("hpo_mab.storage._runs", {"torch"}),
        ("hpo_mab.cli._report", {"torch"}),
    ),
    (("hpo_mab.samplers._mab", {"scipy"}),),
)


def test_the_packages_are_found_by_their_dotted_names() -> None:
    # In a new process, where nothing has imported them.
    code = "import hpo_mab; print(hpo_mab.data.labels_of, hpo_mab.compare.figures, hpo_mab.storage)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with pytest.raises(AttributeError, match="'hpo_mab' has no attribute 'nope'"):
        hpo_mab.nope  # noqa: B018


def test_the_version_is_that_of_the_installed_package() -> None:
    assert hpo_mab.__version__ == version_of("hpo_mab")


@pytest.mark.parametrize("chain", _CHAINS, ids=["light", "bandits"])
def test_a_module_imports_no_library_that_it_does_not_need(
    chain: tuple[tuple[str, set[str]], ...],
) -> None:
    # One after the other in one process: the first that is at fault is named.
    code = "import importlib, sys\n"
    for name, unwanted in chain:
        code += f"importlib.import_module({name!r})\n"
        code += f"print({name!r}, sorted({unwanted} & sys.modules.keys()))\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"{name} []" for name, _ in chain]
