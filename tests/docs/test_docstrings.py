"""Public classes that users construct have an example, which runs; named errors are public."""

from __future__ import annotations

import builtins
import doctest
import importlib
import inspect
import pkgutil
import re
import types
from pathlib import Path
from typing import Any

import pytest

import hpo_mab
from hpo_mab import _errors

ROOT = Path(__file__).parents[2]


def _is_public(name: str) -> bool:
    return not any(part.startswith("_") for part in name.split("."))


def _public() -> dict[str, Any]:
    """Public classes and functions by where a user imports them from; each once."""
    packages = pkgutil.walk_packages(hpo_mab.__path__, "hpo_mab.")
    names = ["hpo_mab", *sorted(package.name for package in packages if _is_public(package.name))]
    found: dict[Any, str] = {}
    for name in names:
        if name == "hpo_mab.lightning":  # Needs Lightning; its page is run as a whole.
            continue
        module = importlib.import_module(name)
        for own in getattr(module, "__all__", ()):
            value = getattr(module, own)
            if isinstance(value, type | types.FunctionType):
                found.setdefault(value, f"{name}.{own}")
    return {name: value for value, name in found.items()}


PUBLIC = _public()
CLASSES = {name: value for name, value in PUBLIC.items() if isinstance(value, type)}


def test_every_error_that_is_named_can_be_caught_by_a_public_name() -> None:
    public = {name.rpartition(".")[2] for name in CLASSES}
    listed = re.findall(r"^    - ``(\w+)``", hpo_mab.HpoMabError.__doc__ or "", re.M)
    assert all(issubclass(getattr(_errors, name), hpo_mab.HpoMabError) for name in listed)
    known = {*dir(builtins), *public, *listed}
    members = [value for cls in CLASSES.values() for value in vars(cls).values()]
    named = set()
    for value in (*PUBLIC.values(), *members):
        _, _, raises = (inspect.getdoc(value) or "").partition("Raises:\n")
        named |= set(re.findall(r"^    (\w+):", raises.partition("\n\n")[0], re.M))
    assert {"ArgumentError", "FeedbackError", "StudyFailedError"} <= named
    assert named <= known, named - known


#: Results: functions of the package return them, and users read their attributes.
RESULTS = {
    "hpo_mab.advantage.Estimate",
    "hpo_mab.advantage.FidelityComparison",
    "hpo_mab.advantage.Rung",
    "hpo_mab.compare.Answer",
    "hpo_mab.compare.ArmSummary",
    "hpo_mab.compare.ComparisonSummary",
    "hpo_mab.compare.Contrast",
    "hpo_mab.compare.CostToTarget",
    "hpo_mab.compare.FidelityRow",
    "hpo_mab.compare.PairedRow",
    "hpo_mab.data.DataIdentity",
    "hpo_mab.pruners.RungFidelity",
    "hpo_mab.search.Confirmation",
    "hpo_mab.search.Replay",
    "hpo_mab.search.RunOutcome",
    "hpo_mab.storage.StudyRun",
    "hpo_mab.storage.TrialRun",
    "hpo_mab.training.Evaluation",
}
RECEIVED = RESULTS | {name for name, cls in CLASSES.items() if issubclass(cls, BaseException)}


def test_only_classes_that_users_construct_have_an_example() -> None:
    assert CLASSES.keys() > RESULTS
    shown = {name for name, cls in CLASSES.items() if ">>> " in (cls.__doc__ or "")}
    assert shown == CLASSES.keys() - RECEIVED


@pytest.mark.parametrize("name", sorted(CLASSES.keys() - RECEIVED))
def test_an_example_runs_and_prints_what_it_shows(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In a folder of its own, with the records of a clone.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "studies").symlink_to(ROOT / "studies")
    text = CLASSES[name].__doc__ or ""
    example = doctest.DocTestParser().get_doctest(text, {}, name, None, 0)
    printed: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    assert runner.run(example, out=printed.append).failed == 0, "".join(printed)
