"""Pruners replayed on recorded curves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.pruners import NopPruner, SuccessiveHalvingPruner
from simulation import CurveTable, Simulation, false_prunings, saving, simulate
from small_studies import tiny

from hpo_mab._errors import ArgumentError
from hpo_mab.advantage import PairedCurves
from hpo_mab.search import StudyRunner
from hpo_mab.storage import Storage

_COMMITTED = Path(__file__).parents[2] / "studies" / "replay" / "digits.json"


def _curves(n: int = 12) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.random((n, 1)) * np.linspace(0.5, 1.0, 8)


def test_without_pruning_every_trial_costs_one_and_ends_as_recorded() -> None:
    curves = _curves()
    done = simulate(curves, NopPruner())
    assert done.cost.tolist() == [1.0] * 12
    assert done.final.tolist() == curves[:, -1].tolist()
    assert done.incumbent.tolist() == np.maximum.accumulate(curves[:, -1]).tolist()


def test_a_pruner_sees_the_curves_step_by_step() -> None:
    curves = np.array([[0.5] * 8, [0.1] * 8, [0.6] * 8])
    done = simulate(curves, SuccessiveHalvingPruner(min_resource=2, reduction_factor=2))
    assert done.cost.tolist() == [1.0, 0.25, 1.0]
    assert np.isnan(done.final).tolist() == [False, True, False]
    assert done.incumbent.tolist() == [0.5, 0.5, 0.6]


def _simulations(costs: list[float], finals: list[float], count: int = 3) -> list[Simulation]:
    return [Simulation(np.array(costs), np.array(finals)) for _ in range(count)]


def test_what_is_saved_at_equal_regret() -> None:
    best = np.ones(3)
    whole = _simulations([1.0, 1.0, 1.0, 1.0], [0.5, 0.6, 0.9, 0.9])
    # Reaches 0.9 after 1 full trial; the other needs 3.
    cheap = _simulations([0.25, 0.25, 0.5, 1.0], [np.nan, np.nan, 0.9, 0.95])
    found = saving(cheap, whole, best, best, trials=4)
    assert found.saved.value == pytest.approx(2 / 3)
    assert found.cost.value == 2.0
    assert found.regret.value == pytest.approx(0.05)
    assert found.regret_difference.value == pytest.approx(-0.05)


def test_an_arm_saves_nothing_against_itself_and_nothing_where_it_never_gets_there() -> None:
    best = np.ones(3)
    good, bad = _simulations([1.0, 1.0], [0.8, 0.9]), _simulations([0.1, 0.1], [0.1, 0.2])
    assert saving(good, good, best, best, trials=2).saved.value == 0.0
    never = saving(bad, good, best, best, trials=2).saved
    assert np.isnan(never.value)
    assert never.low == -np.inf


def test_arms_of_unequal_length_are_refused() -> None:
    one, two = _simulations([1.0], [0.5], 1), _simulations([1.0], [0.5], 2)
    with pytest.raises(ArgumentError, match="equally many simulations"):
        saving(one, two, np.ones(1), np.ones(2), trials=1)
    with pytest.raises(ArgumentError, match=r"trials must be in \[1, 1\].* got 2"):
        saving(one, one, np.ones(1), np.ones(1), trials=2)


def test_a_table_keeps_whole_pairs_and_comes_back_from_its_file(tmp_path: Path) -> None:
    bandit = _curves(3)
    uniform = _curves(3) / 2
    uniform[1, -1] = np.nan
    pairs = PairedCurves(budgets=np.arange(1.0, 9.0), arm=bandit, reference=uniform)
    table = CurveTable.from_pairs(pairs, source="test")
    assert len(table) == 2
    table.save(tmp_path / "table.json")
    again = CurveTable.load(tmp_path / "table.json")
    assert again.source == "test"
    assert again.bandit.tolist() == np.round(bandit[[0, 2]], 4).tolist()
    assert again.every(2).budgets.tolist() == [2.0, 4.0, 6.0, 8.0]
    assert again.every(2).uniform.tolist() == again.uniform[:, 1::2].tolist()
    assert len(again.pairs(np.array([1]))) == 1


def test_the_table_of_digits_is_recorded_on_trained_weights() -> None:
    page = _COMMITTED.with_name("README.md").read_text(encoding="utf-8")
    command = page.partition("hpo-mab compare digits")[2].partition("\npython")[0]
    # The pruners of run.py are for trained weights; the definition averages them.
    assert "--set training.average=0 " in command


def test_hyperband_is_simulated_equally_under_one_name() -> None:
    curves = np.random.default_rng(0).random((40, 8))

    def cost(name: str) -> list[float]:
        pruner = optuna.pruners.HyperbandPruner(max_resource=8, reduction_factor=2)
        return list(simulate(curves, pruner, name=name).cost)

    assert cost("one") == cost("one")
    assert cost("one") != cost("other")


def _runner(storage: Storage, **sections: Any) -> StudyRunner:
    # TPE is random until ten trials: which are pruned does not change the others.
    search = {"initial": 3, "n_startup_trials": 10}
    return StudyRunner(
        tiny(budget={"evaluations": 4, "trials": 10}, search=search, **sections), storage
    )


def test_a_pruned_trial_is_finished_as_without_pruning(storage: Storage) -> None:
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


def test_a_pruner_that_stops_the_best_has_false_prunings(
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
