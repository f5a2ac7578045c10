"""Every script of the studies and benchmarks can be loaded with the package as it is."""

from __future__ import annotations

import importlib.util
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted([*(ROOT / "studies").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")])
#: What some of them need, of the extra `peers`.
EXTRA = {"on_neps.py": "neps", "on_ray_tune.py": "ray", "on_syne_tune.py": "syne_tune"}


FOLDERS = {str(path.parent) for path in SCRIPTS}


@pytest.fixture
def apart() -> Iterator[None]:
    """Without the modules next to other scripts: several folders have one of the same name."""
    before = _take_scripts()
    yield
    _take_scripts()
    sys.modules.update(before)


def _take_scripts() -> dict[str, ModuleType]:
    files = {name: getattr(known, "__file__", None) or "" for name, known in sys.modules.items()}
    names = [name for name, file in files.items() if file.rpartition("/")[0] in FOLDERS]
    return {name: sys.modules.pop(name) for name in names}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
@pytest.mark.usefixtures("apart")
def test_a_script_can_be_loaded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = EXTRA.get(path.name)
    if needed is not None and importlib.util.find_spec(needed) is None:
        pytest.skip(f"needs {needed}, of the extra 'peers'")
    monkeypatch.setattr(sys, "path", [str(path.parent), *sys.path])
    assert runpy.run_path(str(path), run_name="loaded")["__doc__"]
