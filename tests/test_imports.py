"""Modules that are imported without the libraries that only some of their functions need."""

from __future__ import annotations

import subprocess
import sys

_LIGHT = (
    "hpo_mab._plan",
    "hpo_mab.samplers",
    "hpo_mab.advantage",
    "hpo_mab.compare",
    "hpo_mab.compare.figures",
)
_HEAVY = {
    "matplotlib", "optuna", "pandas", "plotly", "rich", "scipy", "sklearn", "sqlalchemy", "torch",
}  # fmt: skip


def test_light_modules_import_no_heavy_library() -> None:
    # One after the other in one process: the first that is at fault is named.
    code = "import importlib, sys\n"
    for name in _LIGHT:
        code += f"importlib.import_module({name!r})\n"
        code += f"print({name!r}, sorted({_HEAVY} & sys.modules.keys()))\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"{name} []" for name in _LIGHT]


def test_stored_studies_are_read_without_torch() -> None:
    # Importing it takes seconds, which a listing or the completion of names does not have.
    code = "import sys, hpo_mab.storage._runs, hpo_mab.cli._report\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_users_pruner_needs_neither_sqlalchemy_nor_torch() -> None:
    code = "import sys, hpo_mab.pruners\nprint({'sqlalchemy', 'torch'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_bandits_are_imported_without_scipy() -> None:
    code = "import sys, hpo_mab.samplers._mab\nprint('scipy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
