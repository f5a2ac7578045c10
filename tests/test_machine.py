from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hpo_mab import _machine


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_this_process_holds_some_of_the_memory() -> None:
    held, free = _machine.resident_memory(), _machine.available_memory()
    assert held is not None
    assert free is not None
    # Python, pytest and torch; no machine runs the tests in less.
    assert 2**25 < held < 2**40
    assert free > 2**25


def test_a_containers_limit_counts_less_what_it_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    5000 kB\n")
    monkeypatch.setattr(_machine, "_MACHINE", tmp_path / "meminfo")
    monkeypatch.setattr(_machine, "_CONTAINER", tmp_path)
    assert _machine.available_memory() == 5000 * 1024
    (tmp_path / "memory.stat").write_text("anon_thp 7\nanon 1000\nfile 4096\n")
    for limit, free in (("max", 5000 * 1024), ("3000", 2000), ("900", 0)):
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        assert _machine.available_memory() == free


def test_other_systems_have_no_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_MACHINE", "_PROCESS", "_CONTAINER"):
        monkeypatch.setattr(_machine, name, tmp_path / "none")
    assert _machine.available_memory() is None
    assert _machine.resident_memory() is None
