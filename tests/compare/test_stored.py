from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import optuna
import pytest
from made_up import study

from hpo_mab import HpoMabWarning
from hpo_mab._errors import ArgumentError, StorageError, UnknownNameError
from hpo_mab.compare import _stored, stored_comparison
from hpo_mab.compare._evidence import evidence_of
from hpo_mab.compare._stored import _parsed, comparison_of
from hpo_mab.data import DataIdentity
from hpo_mab.samplers import BatchSampler, MABSampler, UniformSampler
from hpo_mab.search import TrialReporter
from hpo_mab.storage import Storage, study_names
from hpo_mab.storage._definition import StoredDefinition
from hpo_mab.training import Budget


def _make(storage: Storage, arm: str, content: str, seed: int = 0, **sections: Any) -> None:
    study = optuna.create_study(study_name=f"{arm}-{seed}", storage=storage.optuna)
    study.add_trial(optuna.create_trial(value=0.5))
    spec = {"data": {"name": "image_folder", "validation": 0.2}, **sections}
    numbers = {"seed": seed, "trial_examples": 100, "epoch_examples": 100}
    data = DataIdentity(classes=3, content=content)
    StoredDefinition(arm=arm, spec=spec, environment={}, data=data, **numbers).save(study)


def test_studies_of_other_files_are_not_compared(storage: Storage) -> None:
    _make(storage, "mab", "one")
    _make(storage, "uniform", "one")
    # Of another seed, the parts of the same data are others.
    _make(storage, "uniform", "two", seed=1)
    assert len(stored_comparison(["*"], storages=[str(storage.file)]).runs) == 3
    _make(storage, "mab", "three", seed=1)
    with pytest.raises(ArgumentError, match="'uniform-1' and 'mab-1' differ in labels, files"):
        stored_comparison(["*"], storages=[str(storage.file)])


def test_an_open_database_is_compared_and_stays_open() -> None:
    with Storage(":memory:") as storage:
        _make(storage, "mab", "one")
        assert [run.arm for run in stored_comparison(["*"], storages=[storage]).runs] == ["mab"]
        # In memory it would be empty if it had been closed.
        assert study_names(storage) == ("mab-0",)


@pytest.mark.parametrize(
    ("stored", "given", "reference"),
    [
        (["median", "median"], None, "median"),
        (["median", "median"], "uniform", "uniform"),
        (["median", "uniform"], None, "uniform"),
        (["elsewhere", "elsewhere"], None, "uniform"),
        ([None, None], None, "uniform"),
    ],
)
def test_the_reference_is_that_of_the_studies_unless_another_is_named(
    storage: Storage, stored: list[str | None], given: str | None, reference: str
) -> None:
    for arm, its in zip(("median", "uniform"), stored, strict=True):
        sections = {} if its is None else {"compare": {"reference": its}}
        _make(storage, arm, "one", **sections)
    found = stored_comparison(["*"], storages=[str(storage.file)], reference=given)
    assert found.reference == reference


def test_scores_are_compared_with_those_of_the_same_seed_and_budget(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs = {"uniform-0": 30, "uniform-1": 10, "mab-0": 30, "mab-1": 30, "mab-2": 10}
    monkeypatch.setattr(
        _stored,
        "stored_scores",
        lambda study, run: (Budget(epochs=epochs[run.name]), (0.9,)),
    )
    for name in epochs:
        arm, _, seed = name.partition("-")
        _make(storage, arm, "one", seed=int(seed))
    found = stored_comparison(["*"], storages=[str(storage.file)])
    scored = {(run.arm, run.seed) for run in found.runs if run.retrained}
    assert scored == {("uniform", 0), ("uniform", 1), ("mab", 0)}


def test_of_each_seed_all_arms_count_equally_many_trainings(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = {"uniform-0": (0.9, 0.8), "mab-0": (0.7, 0.6, 0.5), "uniform-1": (0.4,) * 3}
    monkeypatch.setattr(
        _stored, "stored_scores", lambda study, run: (Budget(epochs=1), scores[run.name])
    )
    for name in scores:
        arm, _, seed = name.partition("-")
        _make(storage, arm, "one", seed=int(seed))
    found = stored_comparison(["*"], storages=[str(storage.file)])
    assert {run.name: run.retrained for run in found.runs} == scores | {"mab-0": (0.7, 0.6)}


def _own_loops(
    storage: Storage, name: str, *, budgets: list[int], samplers: list[type[BatchSampler]]
) -> None:
    """A study of trials that a `TrialReporter` followed."""
    labels = [0, 1] * 8

    def objective(trial: optuna.Trial) -> float:
        with TrialReporter(
            trial,
            sampler=samplers[trial.number](labels, batch_size=4, seed=0),
            budget_examples=budgets[trial.number],
            evaluations=1,
            curves=storage.curves,
        ) as reporter:
            reporter.step(budgets[trial.number])
            reporter.report(accuracy=0.5)
        return reporter.accuracy

    study = optuna.create_study(study_name=name, storage=storage.optuna, direction="maximize")
    study.optimize(objective, n_trials=len(budgets))


def test_trials_of_different_budgets_are_warned_of_and_not_compared(storage: Storage) -> None:
    with pytest.warns(HpoMabWarning, match="is 1,000, of trial 0 it was 2,000") as warned:
        _own_loops(storage, "own", budgets=[2_000] * 2 + [1_000], samplers=[UniformSampler] * 3)
    assert [Path(one.filename) for one in warned] == [Path(__file__)]
    with pytest.raises(
        StorageError, match=r"'own' have different budgets, 1,000 to 2,000 examples"
    ):
        stored_comparison(["own"], storages=[str(storage.file)])


def test_studies_that_name_their_databases_need_no_other(storage: Storage) -> None:
    _own_loops(storage, "own", budgets=[1_000], samplers=[UniformSampler])
    # A server that does not answer is found only when it is asked.
    for away in ("sqlite:////nowhere/none.db", "postgresql://me@127.0.0.1:9/studies"):
        found = stored_comparison([f"{storage.file}#own"], storages=[away])
        assert [run.name for run in found.runs] == ["own"]
        with pytest.raises(StorageError):
            stored_comparison(["own"], storages=[away])


def test_studies_of_different_budgets_are_not_compared(storage: Storage) -> None:
    _own_loops(storage, "long", budgets=[2_000], samplers=[UniformSampler])
    _own_loops(storage, "short", budgets=[1_000], samplers=[MABSampler])
    found = stored_comparison(["long", "short"], storages=[str(storage.file)])
    with pytest.raises(ArgumentError, match=r"2,000 examples in 'long' and 1,000 in 'short'"):
        found.summarise()


@pytest.mark.parametrize(
    ("samplers", "arm"),
    [
        ([UniformSampler, UniformSampler], "uniform"),
        ([MABSampler, MABSampler], "mab"),
        # Which of them a trial had is not the study's arm.
        ([UniformSampler, MABSampler], "own"),
    ],
    ids=["uniform", "mab", "mixed"],
)
def test_a_study_of_own_loops_is_the_arm_of_its_one_sampler(
    samplers: list[type[BatchSampler]], arm: str, storage: Storage
) -> None:
    _own_loops(storage, "own", budgets=[1_000, 1_000], samplers=samplers)
    (run,) = stored_comparison(["own"], storages=[str(storage.file)]).runs
    assert (run.arm, run.trial_examples) == (arm, 1_000)


@pytest.mark.parametrize(
    ("text", "pattern", "url", "arm"),
    [
        ("x", "x", "", None),
        ("arm=x", "x", "", "arm"),
        ("none.db#x", "x", "none.db", None),
        ("sqlite:///a.db?mode=ro#x", "x", "sqlite:///a.db?mode=ro", None),
        ("arm=a#b.db#x", "x", "a#b.db", "arm"),
    ],
)
def test_a_study_may_have_an_arm_and_a_database(
    text: str, pattern: str, url: str, arm: str | None
) -> None:
    assert _parsed(text) == (arm, url, pattern)


def test_studies_of_one_database_are_compared_by_their_exact_names(storage: Storage) -> None:
    names = ["lr=0.1", "a#b*"]
    for name, sampler in zip(names, (UniformSampler, MABSampler), strict=True):
        _own_loops(storage, name, budgets=[1_000], samplers=[sampler])
    found = comparison_of(storage, names, reference=None)
    assert [run.name for run in found.runs] == names
    assert found.reference == "uniform"


@pytest.mark.parametrize(
    ("studies", "storages", "words"),
    [
        ("own", [], "studies must be a list, got str"),
        # A URL may hold a password.
        (["own"], "postgresql://me:secret@host/own", "storages must be a list, got str.$"),
        (["own"], Path("own.db"), "storages must be a list, got PosixPath"),
        (["own"], Storage("sqlite://"), "storages must be a list, got Storage"),
        ([], [], "studies must name at least one study, got none"),
    ],
)
def test_names_come_in_lists(studies: Any, storages: Any, words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        stored_comparison(studies, storages=storages)


def test_evidence_counts_evaluations_whatever_the_rounding_to_steps():
    """Three eighths of 188 steps are 70.5: rounded to 70, the share lies just before the rung."""
    steps = [24, 47, 70, 94, 118, 141, 164, 188]

    def rounded(run):
        trials = tuple(
            dataclasses.replace(
                trial,
                curve=tuple(
                    dataclasses.replace(point, steps=steps[point.index - 1])
                    for point in (
                        dataclasses.replace(each, examples=100 * steps[each.index - 1])
                        for each in trial.curve
                    )
                ),
            )
            for trial in run.trials
        )
        spec = {**run.spec, "budget": {"evaluations": 8, "steps": 188}}
        return dataclasses.replace(run, trials=trials, spec=spec, trial_examples=18_800)

    runs = [rounded(study(arm, 0, pruned=0)) for arm in ("uniform", "mab")]
    assert evidence_of(runs).budgets == tuple(n / 8 for n in range(1, 9))


def test_evidence_of_pairs_that_a_pruner_has_stopped_is_refused():
    runs = [study(arm, 0, paired=12) for arm in ("uniform", "mab")]
    with pytest.raises(ArgumentError, match="no pruner can stop; 2 of these were stopped"):
        evidence_of(runs)


def test_evidence_names_the_argument_that_names_no_study():
    runs = [study(arm, 0) for arm in ("median", "mab")]
    with pytest.raises(UnknownNameError, match=r"Unknown reference 'uniform'.*median"):
        evidence_of(runs)
    with pytest.raises(UnknownNameError, match=r"Unknown arm 'bandit'.*mab"):
        evidence_of(runs, arm="bandit", reference="median")
    with pytest.raises(ArgumentError, match="two arms, and these are all of 'mab'"):
        evidence_of(runs[1:])
