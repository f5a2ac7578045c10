from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest

from hpo_mab._errors import ArgumentError
from hpo_mab.compare import false_prunings
from hpo_mab.search import StudyRunner, make_spec
from hpo_mab.storage import Storage


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[Storage]:
    opened = Storage(f"sqlite:///{tmp_path / 'studies.db'}")
    yield opened
    opened.close()


def _runner(storage: Storage, **sections: Any) -> StudyRunner:
    raw: dict[str, Any] = {
        "name": "tiny",
        "budget": {"epochs": 1, "evaluations": 4, "trials": 10},
        "model": {"name": "mlp"},
        "optimizer": {"name": "sgd", "lr": {"low": 0.01, "high": 1.0, "log": True}},
        "training": {"batch_size": 64},
        "search": {"sampler": "random", "initial": 3},
    }
    return StudyRunner(make_spec({**raw, **sections}), storage)


def test_a_pruned_trial_is_finished_as_it_would_have_gone_on(storage: Storage) -> None:
    pruned = _runner(storage, pruner={"kind": "successive_halving"})
    run = pruned.run("pruned", score=False).run
    whole = _runner(storage, pruner={"kind": "none"}).run("whole", score=False).run
    finals = {trial.slot: trial.value for trial in whole.trials}
    stopped = [trial for trial in run.trials if trial.state == "pruned"]
    found = false_prunings(pruned, run, sample=2)
    assert len(found.finished) == min(2, len(stopped))
    assert found.pruned == len(stopped)
    for number, value in found.finished.items():
        assert run.trials[number].state == "pruned"
        assert value == finals[run.trials[number].slot]
    complete = sorted((t.value for t in run.trials if t.value is not None), reverse=True)
    assert found.threshold == complete[2]
    wrong = sum(value > complete[2] for value in found.finished.values())
    assert found.share.value == wrong / len(found.finished)
    assert found.share.n == len(found.finished)
    assert found.share.low <= found.share.value <= found.share.high


def test_a_pruner_that_stops_the_best_is_found_out(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong(optuna.pruners.BasePruner):
        def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
            return trial.params["lr"] > 0.05

    monkeypatch.setattr("hpo_mab.search._study.study_pruner", lambda spec, attrs: Wrong())
    runner = _runner(storage)
    run = runner.run(score=False).run
    assert false_prunings(runner, run, sample=20, top=1).share.value > 0


def test_it_needs_pruned_trials_and_a_top(storage: Storage) -> None:
    runner = _runner(storage, pruner={"kind": "none"})
    run = runner.run(score=False).run
    with pytest.raises(ArgumentError, match="a pruned one, got 10 and 0"):
        false_prunings(runner, run)
    with pytest.raises(ArgumentError, match="sample must be at least 1, got 0"):
        false_prunings(runner, run, sample=0)
    with pytest.raises(ArgumentError, match="top must be at least 1, got 0"):
        false_prunings(runner, run, top=0)
