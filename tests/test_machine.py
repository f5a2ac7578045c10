from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

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
    monkeypatch.setattr(_machine, "_GROUPS", tmp_path)
    assert _machine.available_memory() == 5000 * 1024
    (tmp_path / "memory.stat").write_text("anon_thp 7\nanon 1000\nfile 4096\n")
    for limit, free in (("max", 5000 * 1024), ("3000", 2000), ("900", 0)):
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        assert _machine.available_memory() == free


def test_a_limit_of_the_job_counts_for_its_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_machine, "_MACHINE", tmp_path / "none")
    monkeypatch.setattr(_machine, "_GROUPS", tmp_path)
    monkeypatch.setattr(_machine, "_OWN_GROUP", tmp_path / "own")
    (tmp_path / "own").write_text("1:cpu:/another\n0::/job/step\n")
    (tmp_path / "job" / "step").mkdir(parents=True)
    for group, limit in (("job", "3000"), ("job/step", "max")):
        (tmp_path / group / "memory.max").write_text(f"{limit}\n")
        (tmp_path / group / "memory.stat").write_text("anon 1000\n")
    assert _machine.available_memory() == 2000


def test_other_systems_have_no_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_MACHINE", "_PROCESS", "_GROUPS"):
        monkeypatch.setattr(_machine, name, tmp_path / "none")
    assert _machine.available_memory() is None
    assert _machine.resident_memory() is None


def test_the_environment_has_the_device_of_a_mac(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert _machine.environment()["mps"] is True
