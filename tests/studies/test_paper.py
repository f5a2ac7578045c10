"""The figure of the paper's experiments, and their definition."""

from __future__ import annotations

from pathlib import Path

import pytest
from tools import load

from hpo_mab.compare import read_record
from hpo_mab.search import load_spec

ROOT = Path(__file__).parents[2]
ARMS = {"uniform", "mab", "mab_paper", "epsilon_greedy", "softmax", "psgd", "csgd"}


def test_the_figure_shows_every_arm_of_a_record() -> None:
    path = ROOT / "studies/paper/small-cifar10.json"
    drawn = load("paper/figure").picture(path)
    shown = [trace.name for trace in drawn.data if trace.showlegend is True]
    assert sorted(shown) == sorted(ARMS)
    (uniform,) = (t for t in drawn.data if t.name == "uniform" and t.yaxis == "y2")
    ends = [run.trials[0].curve[-1] for run in read_record(path).runs if run.arm == "uniform"]
    assert uniform.y[-1] == pytest.approx(sum(end.train_loss for end in ends) / 5)
    assert uniform.x[-1] == ends[0].steps
    assert drawn.layout.title.text == "cifar10: mean and 95% interval of 5 seeds"


def test_the_definition_is_the_papers_setting() -> None:
    # As the commands of README.md change it.
    large = {"model.name": "resnet18", "budget.epochs": 30, "training.precision": "bfloat16"}
    for changes in ({}, {"data.name": "cifar10", "budget.evaluations": 30, **large}):
        spec = load_spec(str(ROOT / "studies/paper/paper.toml"), changes)
        assert (spec.optimizer.options["lr"], spec.training.batch_size) == (0.1, 128)
        assert (spec.compare.seeds, set(spec.compare.arms)) == (5, ARMS)
