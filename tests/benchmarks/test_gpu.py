"""`benchmarks/gpu.py`: the same code on the CPU, and a part that fails does not stop the others."""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tools import runs
from torch.utils.flop_counter import FlopCounterMode

from hpo_mab import models

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("gpu")


def _rows(gpu: Any, name: str) -> list[Any]:
    shared = importlib.import_module("_gpu_shared")
    part = gpu.PARTS[name]
    rows = getattr(importlib.import_module(part.module), part.function)
    return list(rows(shared.Place(torch.device("cpu"), tiny=True)))


def test_checks_pass_without_graphs(gpu: Any) -> None:
    rows = _rows(gpu, "checks")
    assert len(rows) > 15
    assert [(row.name, row.value) for row in rows if not row.met] == []


def test_a_check_that_fails_is_a_row(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = importlib.import_module("_gpu_checks")
    monkeypatch.setattr(checks, "KNOBS", {"window": {"epsilon": -1}})
    monkeypatch.setattr(checks, "_twins", lambda *_: None)
    rows = _rows(gpu, "checks")
    assert [row.met for row in rows] == [False, False, True, True, True, True, True]
    assert "epsilon must be in" in rows[0].value


@pytest.mark.parametrize(
    ("part", "named"),
    [
        ("steps", ["loop, uniform", "graph, mab", "what mab adds"]),
        ("draw", ["eager", "graph"]),
        ("floor", ["matrix product", "floor of a step", "step with mab"]),
        ("against", ["one by one", "as a study does it", "usual script", "ours, mab"]),
        ("studies", ["usual script", "hpo-mab run, mab", "outside training"]),
    ],
)
def test_benchmarks_run_on_the_cpu(gpu: Any, part: str, named: list[str]) -> None:
    names = [row.name for row in _rows(gpu, part)]
    for text in named:
        assert any(text in name for name in names), names


def test_the_floor_counts_no_evaluation(gpu: Any) -> None:
    shared, floor = map(importlib.import_module, ("_gpu_shared", "_gpu_floor"))
    place = shared.Place(torch.device("cpu"), tiny=True)
    data = importlib.import_module("_shared").made_up("cifar10", train=200, rest=200)
    work, _ = floor._step(place, data, "small_cnn", floor.Work(1.0, 1.0))
    network = models.create("small_cnn", in_channels=3, num_classes=10, image_size=32)
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(8, 3, 32, 32)).sum().backward()
    assert work.flop == pytest.approx(counter.get_total_flops(), rel=0.05)


def test_trials_at_a_time(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trials = importlib.import_module("_gpu_trials")

    def broken(*_: Any) -> float:
        raise RuntimeError("no more processes")

    # Starting processes takes seconds; one way that fails leaves the others.
    monkeypatch.setattr(trials, "_processes", broken)
    rows = {row.name: row for row in _rows(gpu, "trials")}
    for way in ("threads", "stack", "stack, hard_mining"):
        assert "trials an hour" in rows[f"K = 2, {way}"].value
    assert rows["K = 1, processes"].met is False
    assert "no more processes" in rows["K = 1, processes"].value
    assert any(name.startswith("best of threads") for name in rows)


class _Parts:
    """Parts that end in different ways."""

    @staticmethod
    def good(place: Any) -> Iterator[Any]:
        shared = importlib.import_module("_gpu_shared")
        yield shared.Row("one", "1")

    @staticmethod
    def bad(place: Any) -> Iterator[Any]:
        yield from _Parts.good(place)
        raise RuntimeError("a bug")


def test_rows_known_before_a_part_breaks_are_kept(
    gpu: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "made_up_parts", _Parts)
    monkeypatch.setitem(gpu.PARTS, "bad", gpu.Part("made_up_parts", "bad", 5))
    with pytest.raises(RuntimeError, match="a bug"):
        gpu.run_part("bad", device="cpu", tiny=True, path=tmp_path / "rows", limit=5)
    assert json.loads((tmp_path / "rows").read_text())["name"] == "one"


def test_a_part_past_its_time_is_a_row(gpu: Any) -> None:
    (late,), _ = gpu.supervise("draw", device="cpu", tiny=True, limit=0.05)
    assert "stopped after" in late["value"]
    assert late["met"] is False
    assert "MISSED" in gpu.as_table([late])


_STAND_IN = """
import subprocess, sys, time
left = subprocess.Popen(["sleep", "600"])
print("went on in", left.pid, flush=True)
path = sys.argv[sys.argv.index("--rows") + 1]
with open(path, "w") as file:
    file.write('{"name": "one", "value": "1", "target": "", "met": null}\\n{"name": "half a')
time.sleep(600)
"""


def test_a_stopped_part_leaves_its_rows_and_no_process(
    gpu: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = tmp_path / "part.py"
    script.write_text(_STAND_IN)
    monkeypatch.setattr(gpu, "__file__", str(script))
    seen: list[int] = []
    # Its time is up as soon as its first row is there.
    clock = SimpleNamespace(perf_counter=lambda: 1e9 * len(seen), sleep=time.sleep)
    monkeypatch.setattr(gpu, "time", clock)
    rows, said = gpu.supervise(
        "draw", device="cpu", tiny=True, limit=2, on_rows=lambda rows: seen.append(len(rows))
    )
    assert [row["name"] for row in rows] == ["one", "the part itself"]
    assert seen == [1, 2]
    while runs(int(said.split()[-1])):
        time.sleep(0.05)


def test_the_table_is_printed_as_it_grows(
    gpu: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = gpu.Table(tmp_path / "table.json")
    row = {"part": "draw", "name": "one", "value": "1", "target": "", "met": None}
    table.show([row])
    table.show([row, {**row, "name": "two", "met": False}], {"draw": "what it said"})
    assert capsys.readouterr().out.splitlines() == [
        "| draw | one | 1 |  |  |",
        "| draw | two | 1 |  | MISSED |",
    ]
    written = json.loads((tmp_path / "table.json").read_text())
    assert len(written["rows"]) == 2
    assert written["said"] == {"draw": "what it said"}
