"""The table of ``auto`` against ``mab`` is that of the records."""

from __future__ import annotations

import json
import re
from pathlib import Path

from hpo_mab.compare import read_record

FOLDER = Path(__file__).parents[2] / "studies/fashion_mnist"


def test_the_table_of_auto_is_that_of_the_records() -> None:
    runs = {(run.arm, run.seed): run for run in read_record(FOLDER / "auto.json").runs}
    tests = json.loads((FOLDER / "auto_tests.json").read_text(encoding="utf-8"))
    text = (FOLDER / "README.md").read_text(encoding="utf-8").partition("## `auto` against")[2]
    pattern = r"^\| (\d) \| (\S+) / (\S+) \| (\S+) / (\S+) \| (\d+) / (\d+) \| (.*) \|$"
    rows = re.findall(pattern, text, re.MULTILINE)
    assert [int(row[0]) for row in rows] == list(range(5))
    for seed, row in enumerate(rows):
        arms = [runs[arm, seed] for arm in ("mab", "auto")]
        found = [tests[arm][seed] for arm in ("mab", "auto")]
        assert [one["seed"] for one in found] == [seed, seed]
        # The network that was scored is that of the best trial.
        assert [one["trial"] for one in found] == [run.best.number for run in arms if run.best]
        values = [*(run.best.value for run in arms if run.best)]
        values += [one["test_accuracy"] for one in found]
        assert [f"{100 * value:.2f}" for value in values if value] == list(row[1:5])
        assert [f"{run.seconds:.0f}" for run in arms] == list(row[5:7])
        assert found[1]["chosen"].removesuffix(" sampling") in row[7]
