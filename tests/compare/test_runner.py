"""What `run_comparison` holds while it runs; what it finds is tested with its command."""

from __future__ import annotations

import gc
import itertools
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from small_studies import tiny

from hpo_mab import HpoMabWarning
from hpo_mab._errors import ArgumentError, StorageError, UnknownNameError
from hpo_mab.compare import _runner, run_comparison, stored_comparison
from hpo_mab.search import StudyRunner, StudySpec
from hpo_mab.search._definition import CompareSection
from hpo_mab.search._prepare import load_splits
from hpo_mab.storage import Storage, study_names
from hpo_mab.training import Budget
from hpo_mab.training import _training as training_module


def _spec(*, budget: dict[str, int] | None = None, **sections: Any) -> StudySpec:
    """A definition whose trials take four steps."""
    steps = {"epochs": None, "steps": 4, "evaluations": 2, "trials": 2}
    return tiny(budget=steps | (budget or {}), search={"initial": 1}, **sections)


def test_the_data_of_a_seed_are_freed_before_those_of_the_next_are_loaded(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[Any] = []

    def load(spec: Any) -> Any:
        gc.collect()
        assert all(known() is None for known in held)
        splits = load_splits(spec)
        held.append(weakref.ref(splits.train.labels))
        return splits

    monkeypatch.setattr(_runner, "load_splits", load)
    spec = _spec(optimizer={"name": "sgd", "lr": 0.1}, compare={"seeds": 2, "retrain": 1})
    found = run_comparison(spec, storage)
    assert (len(held), len(found.runs)) == (2, 4)


def test_an_interrupted_comparison_continues_to_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = _spec(compare={"seeds": 1, "retrain": 1})
    storage = Storage(str(tmp_path / "whole.db"))
    whole = run_comparison(spec, storage)
    storage.close()
    evaluate = training_module.evaluate

    # Each of the two studies evaluates its trials four times; its best is then trained again.
    for at in (2, 5, 8, 11):
        evaluations = itertools.count(1)

        def interrupt(
            *given: Any, at: int = at, evaluations: Iterator[int] = evaluations, **options: Any
        ) -> Any:
            if next(evaluations) == at:
                raise KeyboardInterrupt
            return evaluate(*given, **options)

        storage = Storage(str(tmp_path / f"parts{at}.db"))
        with monkeypatch.context() as patch:
            patch.setattr(training_module, "evaluate", interrupt)
            found = run_comparison(spec, storage)
        assert found.interrupted
        found = run_comparison(spec, storage)
        storage.close()
        assert not found.interrupted
        assert [run.retrained for run in found.runs] == [run.retrained for run in whole.runs]
        for one, other in zip(found.runs, whole.runs, strict=True):
            assert one.best is not None
            assert other.best is not None
            assert (one.best.params, one.best.value) == (other.best.params, other.best.value)


def test_a_study_that_was_run_under_an_arms_name_is_that_arm(storage: Storage) -> None:
    compare = {"seeds": 1, "retrain": 0, "unpruned": True}
    alone = _spec(compare=compare, sampler={"kind": "uniform"}, pruner={"kind": "none"})
    assert StudyRunner(alone, storage).run("tiny-unpruned-seed0", score=False).run.arm == "uniform"
    found = run_comparison(_spec(compare=compare), storage)
    assert sorted(run.arm for run in found.runs) == ["mab", "uniform", "unpruned"]
    # A continuation of the one study leaves it that arm.
    StudyRunner(alone, storage).run("tiny-unpruned-seed0", score=False)
    stored = stored_comparison(["tiny-*"], storages=[str(storage.file)])
    assert sorted(run.arm for run in stored.runs) == ["mab", "uniform", "unpruned"]


def test_a_reference_that_is_changed_is_that_of_stored_comparisons(storage: Storage) -> None:
    arms = {name: {"pruner": {"kind": name}} for name in ("none", "median")}
    for reference in arms:
        run_comparison(_spec(compare={"arms": arms, "reference": reference, "retrain": 0}), storage)
        stored = stored_comparison(["tiny-*"], storages=[str(storage.file)])
        assert stored.reference == reference


def test_ctrl_c_while_the_data_of_a_seed_load_keeps_the_seeds_before(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []

    def load(spec: StudySpec) -> Any:
        loaded.append(spec.seed)
        if spec.seed == 1:
            raise KeyboardInterrupt
        return load_splits(spec)

    monkeypatch.setattr(_runner, "load_splits", load)
    found = run_comparison(_spec(compare={"seeds": 2, "retrain": 0}), storage)
    assert loaded == [0, 1]
    assert found.interrupted
    assert {(run.arm, run.seed) for run in found.runs} == {("mab", 0), ("uniform", 0)}


def test_a_reference_of_a_pruner_is_a_stored_study_or_an_earlier_arm(storage: Storage) -> None:
    compare: dict[str, Any] = {"retrain": 0, "arms": {"uniform": {"sampler": {"kind": "uniform"}}}}
    for reference in ("tiny-mab-seed0", "tiny-uniform-seed0"):
        pruner = {"kind": "advantage", "reference": reference}
        compare["arms"]["mab"] = {"sampler": {"kind": "mab"}, "pruner": pruner}
        spec = _spec(compare=compare)
        if reference == "tiny-mab-seed0":
            with pytest.raises(ArgumentError, match=r"compare\.seeds must be 1"):
                run_comparison(_spec(compare={**compare, "seeds": 2}), storage)
            nope = {"sampler": {"kind": "mab"}, "pruner": {**pruner, "reference": "nope"}}
            arms = {**compare["arms"], "mab": nope}
            with pytest.raises(UnknownNameError, match=r"study of pruner.reference 'nope'"):
                run_comparison(_spec(compare={**compare, "arms": arms}), storage)
            with pytest.raises(UnknownNameError, match=r"study of pruner.reference 'tiny-mab-seed"):
                run_comparison(spec, storage)
            # Of another sampler than uniform sampling.
            other = {"csgd": {"sampler": {"kind": "csgd"}}, **compare["arms"]}
            other["mab"]["pruner"]["reference"] = "tiny-csgd-seed0"
            with pytest.raises(ArgumentError, match=r"has sampler\.kind = 'csgd'"):
                run_comparison(_spec(compare={**compare, "arms": other}), storage)
            assert study_names(storage) == ()
        else:
            assert len(run_comparison(spec, storage).runs) == 2


def test_scores_of_another_budget_do_not_count(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = _spec(budget={"trials": 1}, sampler={"kind": "uniform"})
    runner = StudyRunner(spec, storage)
    run = runner.run(score=False).run
    budgets: list[Budget] = []

    def train(trial: object, *, seed: int, sampler: str, final: Budget) -> float:
        budgets.append(final)
        return 0.1 * len(budgets)

    monkeypatch.setattr(runner, "train_again", train)
    found = []
    for seeds, epochs in ((1, None), (2, None), (2, None), (1, None), (1, 0.5)):
        compare = CompareSection(retrain=seeds, retrain_epochs=epochs)
        runner.spec = runner.spec.model_copy(update={"compare": compare})
        found.append(_runner.retrain(runner, run))
    assert found == [(0.1,), (0.1, 0.2), (0.1, 0.2), (0.1,), (pytest.approx(0.3),)]
    assert budgets == [Budget(steps=4), Budget(steps=4), Budget(epochs=0.5)]


def test_an_incumbent_that_cannot_be_trained_again_has_no_scores(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: object, **__: object) -> float:
        raise KeyError("of a user's data set")

    monkeypatch.setattr(StudyRunner, "train_again", lost)
    with pytest.warns(HpoMabWarning, match=r"no test accuracy: KeyError: \"of a user's"):
        found = run_comparison(_spec(compare={"retrain": 1}), storage)
    assert [run.retrained for run in found.runs] == [(), ()]


def test_no_arm_is_trained_if_a_later_one_has_too_few_steps(storage: Storage) -> None:
    arms = {
        "all": {"pruner": {"kind": "none"}},
        "promoted": {"pruner": {"kind": "promotion"}},
    }
    compare = {"retrain": 0, "arms": arms, "reference": "all"}
    spec = _spec(budget={"evaluations": 8}, compare=compare)
    with pytest.raises(ArgumentError, match=r"budget\.evaluations must be at most 4"):
        run_comparison(spec, storage)
    assert study_names(storage) == ()


def test_a_study_that_is_deleted_before_it_is_trained_again_is_an_error(storage: Storage) -> None:
    def delete(name: str, *_: object) -> None:
        optuna.delete_study(study_name=name, storage=storage.optuna)

    with pytest.raises(StorageError, match=r"Study 'tiny-.*' has been deleted\."):
        run_comparison(_spec(compare={"retrain": 1}), storage, on_retrain=delete)
