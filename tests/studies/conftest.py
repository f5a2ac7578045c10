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
        found.loader.exec_module(module)
        return module

    return load_one
