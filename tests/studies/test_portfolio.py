"""The record of the portfolio: it continues where it stopped, and races are replayed on it."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tools import load

from hpo_mab import data


def test_a_record_continues_where_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = load("portfolio/run")
    monkeypatch.setattr(run, "CONFIGURATIONS", 2)
    splits = data.load_splits("digits")
    cell = run.Cell(epochs=0.5, flipped=0.2, seed=0)
    record = run.Record(tmp_path, "digits", torch.device("cpu"))
    with pytest.raises(BlockingIOError):
        run.Record(tmp_path, "digits", torch.device("cpu"))
    run.run_cell(record, splits, cell, slots=1)
    rows = list(record.document["rows"])
    assert sorted((row["arm"], row["configuration"]) for row in rows) == sorted(
        (arm, number) for arm in run.ARMS for number in (4, 5)
    )
    lost = rows.pop(3)
    record.document["rows"] = rows
    run.run_cell(record, splits, cell, slots=1)
    again = record.document["rows"][-1]
    assert len(record.document["rows"]) == 10
    assert {**again, "seconds": 0} == {**lost, "seconds": 0}
    stored = json.loads(record.path.read_text())
    assert stored["rows"] == record.document["rows"]


def test_flipped_labels_are_of_another_class() -> None:
    labels = torch.arange(1000) % 10
    flipped = load("portfolio/run").flip(labels, share=0.2, classes=10, seed=0)
    assert int((flipped != labels).sum()) == 200


ARMS = {"uniform": 0.0, "mab": -0.01, "easy_first": -0.01, "trimmed": -0.01, "hard_half": -0.01}


def _cell(tables: ModuleType, gains: dict[str, float]) -> Any:
    pairs = [
        {
            arm: {"accuracy": [0.3, 0.4, 0.45, 0.5 + gain + 0.001 * number], "diverged": False}
            for arm, gain in {**ARMS, **gains}.items()
        }
        for number in range(16)
    ]
    costs = {**dict.fromkeys(ARMS, 1.0), "hard_half": 1.5}
    return tables.Cell(name=("digits", "1", "0%"), pairs=pairs, costs=costs)


def test_races_on_the_record_choose_as_a_study_does() -> None:
    tables = load("portfolio/tables")
    cell = _cell(tables, {"hard_half": 0.02})
    assert tables.best(cell, judged="examples") == "hard_half +2.00"
    # Two rounds of two slots with four and one samplers left, then three slots.
    assert tables.replay(cell, trials=30, judged="examples") == ("hard_half 100%", "+2.00", "13.0")
    # It takes half as long again, so at equal seconds its accuracy is lower.
    assert tables.best(cell, judged="seconds") == "uniform +0.00"
    assert tables.replay(cell, trials=30, judged="seconds") == ("uniform 100%", "+0.00", "8.0")
    # Sixteen pairs are too few for a study of 100 trials.
    assert tables.replay(_cell(tables, {}), trials=100, judged="examples") == ("", "", "")


def test_the_cells_of_the_record_are_whole_and_costs_are_those_of_a_core() -> None:
    cells = list(load("portfolio/tables").read_cells())
    assert len(cells) == 18
    assert {len(cell.pairs) for cell in cells} == {48}
    assert {tuple(cell.arms) for cell in cells} == {tuple(ARMS)[1:]}
    assert all(1.5 < cell.costs["hard_half"] < 1.7 for cell in cells)
