"""Every public class has an example in its docstring, which runs and prints what it shows."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

import hpo_mab

ROOT = Path(__file__).parents[2]


def _is_public(name: str) -> bool:
    return not any(part.startswith("_") for part in name.split("."))


def _public_classes() -> dict[str, type]:
    """Public classes by where a user imports them from; each once."""
    packages = pkgutil.walk_packages(hpo_mab.__path__, "hpo_mab.")
    names = ["hpo_mab", *sorted(package.name for package in packages if _is_public(package.name))]
    found: dict[type, str] = {}
    for name in names:
        if name == "hpo_mab.lightning":  # Needs Lightning; its page is run as a whole.
            continue
        module = importlib.import_module(name)
        for own in getattr(module, "__all__", ()):
            value = getattr(module, own)
            if isinstance(value, type):
                found.setdefault(value, f"{name}.{own}")
    return {name: cls for cls, name in found.items()}


CLASSES = _public_classes()


@pytest.mark.parametrize("name", CLASSES)
def test_an_example_runs_and_prints_what_it_shows(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In a folder of its own, with the records of a clone.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "studies").symlink_to(ROOT / "studies")
    text = CLASSES[name].__doc__ or ""
    example = doctest.DocTestParser().get_doctest(text, {}, name, None, 0)
    assert example.examples, f"{name} has no example"
    printed: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    assert runner.run(example, out=printed.append).failed == 0, "".join(printed)
