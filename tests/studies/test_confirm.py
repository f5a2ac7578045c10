"""The figures in the README of ``studies/confirm`` follow from its records."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from tools import load

from hpo_mab.advantage import mean_estimate

HERE = Path(__file__).parents[2] / "studies/confirm"


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    return load("confirm/tables")


@pytest.mark.parametrize(
    ("name", "shown"), [("digits", "digits"), ("fashion_mnist", "Fashion-MNIST")]
)
def test_the_table_follows_from_the_record(tables: ModuleType, name: str, shown: str) -> None:
    text = (HERE / "README.md").read_text(encoding="utf-8")
    rows = re.findall(rf"^\| {shown}, seed (\d+) \|(.*)\|$", text, flags=re.MULTILINE)
    studies = json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))["studies"]
    assert [int(seed) for seed, _ in rows] == [study["seed"] for study in studies]
    for (_, cells), study in zip(rows, studies, strict=True):
        highest, confirmed = (tables.replay(study, trainings=n) for n in (0, 2))
        finished, deviation, excess, test, cost, excess_then, test_then = cells.split("|")
        assert int(finished) == study["finished"]
        assert float(cost) == pytest.approx(confirmed.cost, abs=0.051)
        found = (deviation, excess, test, excess_then, test_then)
        assert [float(cell) for cell in found] == pytest.approx(
            [
                tables.deviation(study),
                highest.excess,
                highest.test,
                confirmed.excess,
                confirmed.test,
            ],
            abs=0.0051,
        )


def test_the_gain_follows_from_the_records(tables: ModuleType) -> None:
    gains = []
    for name in ("digits", "fashion_mnist"):
        studies = json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))["studies"]
        gains += [
            tables.replay(study, trainings=2).test - tables.replay(study, trainings=0).test
            for study in studies
        ]
    found = mean_estimate(np.array(gains))
    text = " ".join((HERE / "README.md").read_text(encoding="utf-8").split())
    assert (
        f"{found.value:+.2f} points of test accuracy on average (95% interval {found.low:.2f} to "
        f"{found.high:+.2f})"
    ) in text
