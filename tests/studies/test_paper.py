"""The command of the paper's experiments, on digits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from hpo_mab._errors import HpoMabError
from hpo_mab.compare import read_record
from hpo_mab.compare._text import arm_words

ARMS = {"uniform", "mab", "mab_paper", "epsilon_greedy", "softmax", "psgd", "csgd"}
TINY = ("data.name=digits", "model.name=mlp", "budget.epochs=0.5", "budget.evaluations=2")


@pytest.fixture(name="paper", scope="module")
def _paper(load: Callable[[str], ModuleType]) -> ModuleType:
    return load("paper/run")


def test_it_runs_every_arm_records_it_and_runs_nothing_twice(
    paper: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # It needs a browser; what it draws is tested below.
    monkeypatch.setattr(paper, "draw", lambda path: None)
    arguments = ["--scale", "small", "--data", "cifar10", "--device", "cpu", "--out", str(tmp_path)]
    arguments += ["--storage", f"sqlite:///{tmp_path / 'paper.db'}"]
    for text in (*TINY, "compare.seeds=2"):
        arguments += ["--set", text]
    assert paper.main(arguments) == 0
    assert capsys.readouterr().out.count(": complete, ") == 2 * len(ARMS)
    path = tmp_path / "small-cifar10.json"
    first = path.read_text()
    record = json.loads(first)
    assert {(study["arm"], study["seed"]) for study in record["studies"]} == {
        (arm, seed) for arm in ARMS for seed in (0, 1)
    }
    assert all(len(study["trials"]) == 1 for study in record["studies"])
    assert {line.partition(":")[0] for line in record["verdict"] if "?" in line} == {*ARMS} - {
        "uniform"
    }
    gpus = record["environment"]["gpus"]
    why = "it was not asked for" if gpus else "no GPU was found where this was run"
    assert record["scale"] == {
        "name": "small",
        "device": "cpu",
        "paper_scale_run": False,
        "paper_scale_missing": why,
    }

    assert paper.main(arguments) == 0
    assert ": complete, " not in capsys.readouterr().out
    assert path.read_text() == first

    drawn = paper.picture(path)
    shown = [trace.name for trace in drawn.data if trace.showlegend is True]
    assert sorted(shown) == sorted(map(arm_words, ARMS))
    (uniform,) = (t for t in drawn.data if t.name == "uniform" and t.yaxis == "y2")
    losses = [
        run.trials[0].curve[-1].train_loss for run in read_record(path).runs if run.arm == "uniform"
    ]
    assert uniform.y[-1] == pytest.approx(sum(losses) / 2)
    assert drawn.layout.title.text == "digits: mean and 95% interval of 2 seeds"


def test_scales_differ_in_network_and_length(paper: ModuleType) -> None:
    small, large = (
        paper.definition(scale, "cifar100", root="data", device="cpu") for scale in paper.SCALES
    )
    assert (small.model.name, large.model.name) == ("small_cnn", "resnet18")
    assert large.budget.epochs >= 10 * small.budget.epochs
    assert small.name != large.name
    for spec in (small, large):
        assert spec.data.name == "cifar100"
        assert (spec.optimizer.options["lr"], spec.training.batch_size) == (0.1, 128)
        assert (spec.compare.seeds, set(spec.compare.arms)) == (5, ARMS)


@pytest.mark.skipif(
    torch.cuda.is_available() or torch.backends.mps.is_available(), reason="there is a GPU"
)
def test_the_papers_scale_needs_a_gpu(
    paper: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run(*arguments: object, **options: object) -> None:
        pytest.fail("it began to train")

    monkeypatch.setattr(paper, "_run_seeds", run)
    assert paper.main(["--scale", "paper", "--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    for word in ("needs a GPU", "--scale small", "--device cpu"):
        assert word in said
    assert list(tmp_path.iterdir()) == []
    assert paper.device_of("paper", "cpu") == "cpu"
    with pytest.raises(HpoMabError, match="cuda"):
        paper.device_of("paper", "cuda")
