"""Samplers, networks, optimisers, data sets and pruners of users, named in a definition."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import optuna
import pytest
import torch
from small_studies import tiny
from torch import nn
from torch.utils.data import BatchSampler, RandomSampler, TensorDataset

from hpo_mab import HpoMabWarning
from hpo_mab._attributes import STACK_SLOTS_KEY
from hpo_mab._errors import ArgumentError, HpoMabError, SpecError
from hpo_mab.compare import run_comparison
from hpo_mab.search import (
    RunOutcome,
    StudyRunner,
    StudySpec,
    TrainingObjective,
    load_network,
    make_spec,
    replay,
)
from hpo_mab.storage import Storage, read_run
from hpo_mab.training import Budget
from hpo_mab.workers._processes import WorkerProcess

MODULE = '''
import optuna
import torch
from optuna.pruners import BasePruner
from torch import nn
from torch.utils.data import BatchSampler, RandomSampler, TensorDataset

from hpo_mab.data import ImageData
from hpo_mab.samplers import UniformSampler


class Shuffled(BatchSampler):
    """Of PyTorch's interface: no losses, and PyTorch's random state."""

    def __init__(self, labels, batch_size, *, share: float = 1.0):
        super().__init__(RandomSampler(range(int(share * len(labels)))), batch_size, True)


class Learner(UniformSampler):
    """Of ours: it gets losses."""

    answered = 0

    def __init__(self, labels, *, explore: float = 0.5, **arguments):
        super().__init__(labels, **arguments)

    def _learn(self, draw, losses, logits, targets):
        type(self).answered += 1


class Net(nn.Sequential):
    def __init__(self, input_shape, num_classes, width: int):
        first = nn.Linear(torch.Size(input_shape).numel(), width)
        super().__init__(nn.Flatten(), first, nn.Dropout(0.2), nn.Linear(width, num_classes))


class Counts(Net):
    """Keeps a number of batches in Python."""

    batches = 0

    def forward(self, inputs):
        self.batches += self.training
        return super().forward(inputs)


class Eight(Net):
    def __init__(self, input_shape, num_classes, **options):
        super().__init__(input_shape, num_classes, width=8, **options)


def blobs(*, examples: int = 300, test: bool = True):
    labels = torch.arange(examples) % 3
    inputs = torch.randn(examples, 5, generator=torch.Generator().manual_seed(0)) + labels[:, None]
    whole = TensorDataset(inputs, labels)
    return {"train": whole, "test": whole} if test else {"train": whole}


def stripes(*, root):
    images = torch.zeros(120, 1, 8, 8, dtype=torch.uint8)
    labels = torch.arange(120) % 2
    images[labels == 1, :, ::2] = 255
    return {"train": ImageData(images=images, labels=labels, classes=("plain", "striped"))}


def nothing():
    return [1, 2]


def other_test_set(*, inputs: int = 5, classes: int = 3):
    labels = torch.arange(60) % classes
    return {"train": blobs()["train"], "test": TensorDataset(torch.zeros(60, inputs), labels)}


def broken(**arguments):
    raise OSError("the disk is gone")


class Breaks(RandomSampler):
    def __init__(self, labels):
        raise OSError("the disk is gone")


def leaves(input_shape, num_classes):
    raise SystemExit(7)


class Forgets(optuna.samplers.RandomSampler):
    def after_trial(self, study, trial, state, values):
        raise OSError("the disk is gone")


class Looks(optuna.samplers.RandomSampler):
    def after_trial(self, study, trial, state, values):
        return trial.params["momentum"]


class Asks(optuna.samplers.RandomSampler):
    asked = 0
    counts = []

    def sample_relative(self, study, trial, search_space):
        self.asked += 1
        self.counts.append(self.asked)
        return {}


class First(BasePruner):
    def __init__(self, *, max_resource: int, after: int = 1):
        self.after = min(after, max_resource)

    def prune(self, study, trial):
        return trial.last_step == self.after


class Named(First):
    """Has options of the names that our pruner has."""

    def __init__(self, *, reference: str, evidence: int, **options):
        super().__init__(after=evidence, **options)
'''


@pytest.fixture(autouse=True)
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The user's own module."""
    (tmp_path / "mine.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    import mine

    yield mine
    del sys.modules["mine"]


OWN: dict[str, Any] = {
    "data": {"name": "mine:blobs", "examples": 240},
    "model": {"name": "mine:Net", "width": {"choices": [4, 8]}},
    "optimizer": {"name": "torch.optim:Adagrad", "lr": {"low": 0.01, "high": 0.1}},
    "sampler": {"kind": "mine:Shuffled", "share": {"low": 0.5, "high": 1.0}},
    "pruner": {"kind": "mine:First", "after": 2},
}


def _run(spec: StudySpec, storage: Storage, **options: Any) -> RunOutcome:
    return StudyRunner(spec, storage).run("study", **options)


def test_everything_a_definition_names_may_be_the_users_own(storage: Storage) -> None:
    outcome = _run(tiny(**OWN, search={"initial": 1}, budget={"trials": 3}), storage)
    states = [trial.state for trial in outcome.run.trials]
    assert states == ["complete", "pruned", "pruned"]
    assert [len(trial.curve) for trial in outcome.run.trials] == [3, 2, 2]
    assert set(outcome.run.trials[0].params) == {"lr", "sampler.share", "model.width"}
    assert outcome.test_accuracy is not None
    # And the record alone is enough to train a trial again.
    again = replay(storage, "study", 1)
    assert again.is_identical


def test_a_saved_network_has_the_numbers_that_it_keeps_in_python(
    storage: Storage, tmp_path: Path
) -> None:
    own = {**OWN, "model": {"name": "mine:Counts", "width": 4}}
    trial = _run(tiny(**own, budget={"trials": 1}), storage, score=False).run.trials[0]
    network = replay(storage, "study", 0).network
    assert network is not None
    torch.save(network, tmp_path / "saved.pt")
    assert load_network(tmp_path / "saved.pt").batches == trial.curve[-1].steps > 0
    network["numbers"]["gone", "x"] = 1
    torch.save(network, tmp_path / "saved.pt")
    with pytest.raises(ArgumentError, match="'mine:Counts' here differs"):
        load_network(tmp_path / "saved.pt")


def test_options_of_the_users_own_pruner_may_have_any_name(storage: Storage) -> None:
    pruner = {"kind": "mine:Named", "reference": "a paper", "evidence": 2}
    for trials in (1, 2):
        spec = tiny(pruner=pruner, search={"initial": 1}, budget={"trials": trials})
        run = _run(spec, storage, score=False).run
    assert [(trial.state, len(trial.curve)) for trial in run.trials] == [
        ("complete", 3),
        ("pruned", 2),
    ]
    with pytest.raises(SpecError, match=r"pruner\.evidence must be an integer, got 'a file'"):
        tiny(pruner={**pruner, "evidence": "a file"})


def test_a_sampler_of_ours_that_is_the_users_own_gets_losses(
    storage: Storage, mine: ModuleType
) -> None:
    spec = tiny(
        sampler={"kind": "mine:Learner", "explore": {"low": 0.1, "high": 0.9}},
        budget={"trials": 1},
        training={"slots": 2},
    )
    outcome = _run(spec, storage, score=False)
    assert outcome.run.trials[0].state == "complete"
    assert mine.Learner.answered == outcome.run.trials[0].curve[-1].steps
    assert outcome.notes == (
        "trials are trained one at a time: the sampler 'mine:Learner' is not one of hpo_mab's",
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            {"optimizer": {"name": "torch.optim:Adagrad", "lr": 0.1}},
            "the optimizer 'torch.optim:Adagrad' is not one of hpo_mab's",
        ),
        (
            {"data": {"name": "mine:blobs"}, "model": {"name": "mine:Net", "width": 8}},
            "a DataLoader brings the batches",
        ),
        ({"training": {"slots": 4, "graph": False}}, "training.graph is off"),
    ],
)
def test_what_no_stack_can_train_is_trained_alone(
    storage: Storage, change: dict[str, Any], reason: str
) -> None:
    options = {"budget": {"trials": 1}, "training": {"slots": 4}, **change}
    outcome = _run(tiny(**options), storage, score=False)
    assert outcome.run.trials[0].state == "complete"
    assert STACK_SLOTS_KEY not in outcome.run.trials[0].attrs
    assert outcome.notes == (f"trials are trained one at a time: {reason}",)


def test_a_class_may_give_its_base_class_what_that_requires(storage: Storage) -> None:
    change = {"data": {"name": "mine:blobs"}, "model": {"name": "mine:Eight"}}
    outcome = _run(tiny(**change, budget={"trials": 1}), storage, score=False)
    assert outcome.run.trials[0].state == "complete"


def test_images_of_the_users_own_are_split_as_ours(storage: Storage) -> None:
    runner = StudyRunner(tiny(data={"name": "mine:stripes"}, budget={"trials": 1}), storage)
    # A fifth is the test part, a fifth of the rest is for validation.
    assert runner.objective.workload.num_examples == 76
    assert runner.run(score=False).run.trials[0].state == "complete"


def test_a_data_set_without_a_test_part_keeps_a_fifth_for_it(storage: Storage) -> None:
    spec = tiny(data={"name": "mine:blobs", "test": False}, budget={"trials": 1})
    runner = StudyRunner(spec, storage)
    assert runner.objective.workload.num_examples == 192
    assert runner.run().test_accuracy is not None


def test_a_comparison_trains_and_scores_the_users_own(storage: Storage) -> None:
    spec = tiny(**OWN, search={"initial": 2}, budget={"trials": 2}, compare={"retrain": 1})
    found = run_comparison(spec, storage)
    assert [run.arm for run in found.runs] == ["mine:Shuffled", "uniform"]
    assert [len(run.retrained) for run in found.runs] == [1, 1]


def test_worker_processes_find_what_this_process_can_import(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A file of the current folder does not replace a module of Python.
    (tmp_path / "random.py").write_text("raise SystemExit('a script')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path[1:], ""])
    _run(tiny(**OWN, budget={"trials": 2}), storage, score=False, launch=lambda *_: False)
    worker = WorkerProcess(["study", "--device", "cpu"], storage=storage.secret_url)
    while worker.status is None:
        time.sleep(0.05)
    assert worker.status == 0, worker.last_line()
    worker.close()
    assert len([trial for trial in read_run(storage, "study").trials if trial.curve]) == 2


@pytest.mark.parametrize("kind", ["mine:Shuffled", "torch.utils.data:RandomSampler"])
def test_a_training_that_was_cut_off_draws_the_batches_of_one_that_was_not(
    storage: Storage, kind: str
) -> None:
    # Interrupted within a pass; dropout draws from PyTorch's random state in between.
    changes = {"sampler": {"kind": kind}, "model": {"name": "mine:Net", "width": 8}}
    spec = tiny(**{**OWN, **changes}, budget={"epochs": 3, "evaluations": 4})
    objective = StudyRunner(spec, storage).objective
    configuration, _ = objective.space.corners()
    with objective.workload.training(configuration, seed=1) as whole:
        curve = [evaluation.train_loss for evaluation in whole]
    with objective.workload.training(configuration, seed=1) as cut:
        list(itertools.islice(cut, 2))
        state = cut.state_dict()
    with objective.workload.training(configuration, seed=1, state=state) as resumed:
        assert len(resumed.resumed) == 2
        evaluations = [*resumed.resumed, *resumed]
        assert [evaluation.train_loss for evaluation in evaluations] == curve


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sampler": {"kind": "nowhere:X"}}, "sampler 'nowhere:X' cannot be imported: ModuleNotF"),
        ({"sampler": {"kind": "mine:X"}}, "'mine:X' cannot be imported: AttributeError"),
        ({"sampler": {"kind": "mine.Learner"}}, "Unknown sampler 'mine.Learner'.*package.module:"),
        ({"sampler": {"kind": "mine:__name__"}}, "name of a class or a function, got 'mine:__n"),
        ({"sampler": {"kind": "mine:Learner", "explor": 1}}, "'explor'. Did you mean 'explore'"),
        ({"sampler": {"kind": "mine:Learner", "explore": "a"}}, "explore must be a number"),
        ({"sampler": {"kind": "mine:Shuffled", "share": {"low": 2, "high": 1}}}, "low must not"),
        ({"model": {"name": "mine:Net"}}, "model.width of model 'mine:Net' must be given"),
        ({"model": {"name": "mine:Net", "width": 0.5}}, "model.width must be an integer"),
        ({"data": {"name": "mine:blobs", "exampels": 3}}, "data set 'mine:blobs' 'exampels'"),
        ({"pruner": {"kind": "mine:First", "after": "b"}}, "pruner.after must be an integer"),
        ({"pruner": {"kind": "mine:nothing"}}, "must be an optuna BasePruner, got list"),
        ({"optimizer": {"name": "torch.optim:Adagard"}}, "torch.optim:Adagard' cannot be imp"),
        ({"search": {"sampler": "mine:Nobody"}}, "search.sampler 'mine:Nobody' cannot be imported"),
    ],
)
def test_a_mistake_is_refused_in_one_line(change: dict[str, Any], words: str) -> None:
    with pytest.raises(HpoMabError, match=words) as caught:
        make_spec({**tiny().model_dump(mode="json"), **change})
    assert "\n" not in str(caught.value)


def test_data_of_another_form_are_refused(storage: Storage) -> None:
    with pytest.raises(HpoMabError, match=r"must return a mapping with 'train'.*got list"):
        StudyRunner(tiny(data={"name": "mine:nothing"}), storage)
    with pytest.raises(SpecError, match=r"data\.augment must be false"):
        StudyRunner(tiny(data={"name": "mine:blobs", "augment": True}), storage)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data": {"name": "mine:broken"}}, r"data set 'mine:broken': OSError: the disk is gone"),
        ({"model": {"name": "mine:broken"}}, "training cannot begin: OSError: the disk is gone"),
        ({"sampler": {"kind": "mine:Breaks"}}, r"cannot begin: OSError.* \(mine.py, line"),
        ({"model": {"name": "mine:leaves"}}, r"cannot begin: SystemExit: 7 \(mine.py, line"),
        (
            {"data": {"name": "mine:other_test_set", "classes": 4}},
            r"labels of the test set in data must be in \[0, 3\), .*, got 3",
        ),
        (
            {"training": {"batch_size": {"low": 1, "high": 10**11}}},
            r"training.batch_size must be in \[1, 1149\], the number of training examples, got",
        ),
    ],
)
def test_an_error_in_the_users_own_code_is_named_before_any_trial(
    storage: Storage, change: dict[str, Any], words: str
) -> None:
    with pytest.raises(HpoMabError, match=words):
        StudyRunner(tiny(**change), storage)


@pytest.mark.parametrize(
    ("name", "reason"), [("Forgets", "OSError: the disk"), ("Looks", "KeyError: 'momentum'")]
)
def test_a_search_sampler_that_fails_is_named(storage: Storage, name: str, reason: str) -> None:
    whole = tiny().model_dump(mode="json")
    spec = make_spec({**whole, "search": {"sampler": f"mine:{name}", "initial": 1}})
    with pytest.raises(ArgumentError, match=rf"search\.sampler {name} failed: {reason}"):
        _run(spec, storage)
    assert [trial.state for trial in read_run(storage, "study").trials] == ["complete"]


def test_each_proposal_is_that_of_a_new_search_sampler(storage: Storage, mine: ModuleType) -> None:
    whole = tiny(budget={"trials": 3}).model_dump(mode="json")
    spec = make_spec({**whole, "search": {"sampler": "mine:Asks", "initial": 1}})
    _run(spec, storage, score=False)
    assert mine.Asks.counts == [1, 1]


def test_a_test_set_that_cannot_be_scored_costs_no_summary(storage: Storage) -> None:
    change = {**OWN, "data": {"name": "mine:other_test_set", "inputs": 6}}
    outcome = _run(tiny(**change), storage)
    assert outcome.test_accuracy is None
    (reason,) = [one for one in outcome.notes if "test accuracy" in one]
    assert reason.startswith("the best trial has no test accuracy: RuntimeError")
    with pytest.warns(HpoMabWarning, match="no test accuracy: RuntimeError"):
        found = run_comparison(tiny(**change, compare={"retrain": 1, "unpruned": False}), storage)
    assert [run.retrained for run in found.runs] == [(), ()]


def test_an_objective_takes_classes_and_functions(
    mine: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts: list[int] = []
    passes = itertools.count()
    shuffled = mine.Shuffled.__iter__

    def count(self: Any) -> Any:
        next(passes)
        return shuffled(self)

    monkeypatch.setattr(mine.Shuffled, "__iter__", count)

    def halves(labels: Any, batch_size: int, seed: int, part: int) -> BatchSampler:
        parts.append(part)
        chosen = [index for index in range(len(labels)) if index % 2 == part]
        assert seed >= 0
        return BatchSampler(RandomSampler(chosen), batch_size, drop_last=False)

    x = torch.randn(90, 4, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(x, (x.sum(dim=1) > 0).long())
    for sampler in (
        {"kind": mine.Learner, "explore": {"low": 0.1, "high": 0.9}},
        {"kind": halves, "part": {"choices": [0, 1]}},
        mine.Shuffled,
    ):
        objective = TrainingObjective(
            model=lambda: nn.Linear(4, 2),
            data=(data, data),
            budget=Budget(epochs=1),
            optimizer={"name": torch.optim.Adagrad, "lr": 0.1},
            sampler=sampler,
            batch_size=16,
            evaluations=2,
        )
        study = optuna.create_study(direction="maximize")
        study.optimize(objective, n_trials=1)
        # The classes can be separated by a line.
        assert study.best_value > 0.6
    assert mine.Learner.answered > 0
    assert parts in ([0], [1])
    assert next(passes) > 0
