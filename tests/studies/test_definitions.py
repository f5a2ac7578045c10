"""Definitions in ``studies/`` can be used."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpo_mab.search import load_spec

STUDIES = Path(__file__).parents[2] / "studies"


@pytest.mark.parametrize(
    "path", sorted(STUDIES.rglob("*.toml")), ids=lambda path: str(path.relative_to(STUDIES))
)
def test_every_definition_can_be_used(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(STUDIES.parent)  # Evidence is named from there.
    assert load_spec(path).name
