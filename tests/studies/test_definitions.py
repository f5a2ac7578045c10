"""Definitions in ``studies/`` can be used; a comparison may have every pruner."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpo_mab.compare import run_comparison
from hpo_mab.search import load_spec, make_spec
from hpo_mab.storage import Storage

STUDIES = Path(__file__).parents[2] / "studies"


@pytest.mark.parametrize(
    "path", sorted(STUDIES.rglob("*.toml")), ids=lambda path: str(path.relative_to(STUDIES))
)
def test_every_definition_can_be_used(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(STUDIES.parent)  # Evidence is named from there.
    assert load_spec(path).name


def test_uniform_sampling_with_every_pruner_on_digits(tmp_path: Path) -> None:
    kinds = ("median", "hyperband", "successive_halving", "top_k")
    uniform = {"sampler": {"kind": "uniform"}}
    arms = {f"uniform_{kind}": {**uniform, "pruner": {"kind": kind}} for kind in kinds}
    spec = make_spec(
        {
            "name": "controls",
            "data": {"validation": 0.1},
            "model": {"name": "mlp"},
            "budget": {"epochs": 1, "evaluations": 4, "trials": 9},
            "optimizer": {"lr": {"low": 0.003, "high": 1.0, "log": True}},
            "search": {"initial": 2},
            "compare": {
                "retrain": 0,
                "arms": {
                    "uniform": {**uniform, "pruner": {"kind": "none"}},
                    **arms,
                    "mab": {"sampler": {"kind": "mab"}, "pruner": {"kind": "median"}},
                },
            },
        }
    )
    storage = Storage(f"sqlite:///{tmp_path / 'controls.db'}")
    found = run_comparison(spec, storage)
    storage.close()
    runs = {run.arm: run for run in found.runs}
    assert runs.keys() == spec.compare.arms.keys()
    # Nine trials: two that all arms share, four stopped after a quarter, the best three in full.
    top, full = runs["uniform_top_k"], runs["uniform"]
    assert [t.state for t in top.trials] == ["complete"] * 2 + ["pruned"] * 4 + ["complete"] * 3
    assert [t.state for t in full.trials] == ["complete"] * 9
    length, stopped = top.trial_examples, top.trials[2].examples
    assert stopped == pytest.approx(length / 4, abs=128)
    assert (full.examples, top.examples) == (9 * length, 5 * length + 4 * stopped)
    # The shared configurations are trained in full under every pruner: they are the pairs.
    for run in runs.values():
        if run.arm != "mab":
            assert [t.value for t in run.trials[:2]] == [t.value for t in full.trials[:2]]
