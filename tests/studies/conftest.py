from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

STUDIES = Path(__file__).parents[2] / "studies"


@pytest.fixture(scope="session")
def load() -> Callable[[str], ModuleType]:
    """Loads a script of a study, such as ``rungs/tables``, under a name of its own."""

    def load_one(name: str) -> ModuleType:
        found = importlib.util.spec_from_file_location(
            name.replace("/", "_"), STUDIES / f"{name}.py"
        )
        assert found is not None
        assert found.loader is not None
        module = importlib.util.module_from_spec(found)
        # Dataclasses look for their module there.
        sys.modules[found.name] = module
        folder = (STUDIES / name).parent
        path, known = list(sys.path), set(sys.modules)
        try:
            found.loader.exec_module(module)
        finally:
            # Scripts of several studies have the same names.
            sys.path[:] = path
            for other in set(sys.modules) - known:
                if Path(getattr(sys.modules[other], "__file__", None) or "").parent == folder:
                    del sys.modules[other]
        return module

    return load_one
