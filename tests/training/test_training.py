"""A training that is stopped, continued, or goes beyond its budget."""

from __future__ import annotations

import http
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from small_studies import timeless
from tools import saved
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from hpo_mab import samplers
from hpo_mab._errors import ArgumentError
from hpo_mab.data import ImageSplits, Normalization
from hpo_mab.training import (
    DeviceBatches,
    DeviceSweep,
    LoaderBatches,
    LoaderSweep,
    Training,
)
from hpo_mab.training._evaluate import evaluate

Start = Callable[..., Training]


class _Counting(nn.Linear):
    """Its state does not hold the number of batches that it uses."""

    def __init__(self) -> None:
        super().__init__(64, 10)
        self.register_buffer("batches", torch.ones(()), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.batches += 1
        return super().forward(images.flatten(1)) / self.batches.sqrt()


class _Growing(_Counting):
    """Makes a buffer at its first batch, and one that becomes longer with each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("means", torch.zeros(1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            if not hasattr(self, "first"):
                self.register_buffer("first", images.mean(), persistent=False)
            self.means = torch.cat([self.means, images.mean()[None]])
        return super().forward(images) * (1 + self.first) + self.means.sum()


class _Cooling(nn.Linear):
    """Divides by a number that it keeps in Python."""

    def __init__(self) -> None:
        super().__init__(64, 10)
        self.temperature = np.float64(4.0)
        self.status = http.HTTPStatus.OK  # An `enum.IntEnum`, which no file of tensors can hold.

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.temperature *= 0.9
        return super().forward(images.flatten(1)) / self.temperature


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "mab"},
        {"kind": "uniform"},
        {"kind": "uniform", "network": _Counting},
        {"kind": "uniform", "network": _Growing},
        {"kind": "uniform", "network": _Cooling},
        {"kind": "gradnorm", "optimizer": "adamw"},
        {"kind": "mab", "loader": 0},
        {"kind": "mab", "average": 0.2},
        {"kind": "uniform", "loader": 0, "average": 0.2, "schedule": "constant"},
        {"kind": "mab", "graph": True, "average": 0.2},
        # Counts that decay are kept by the engine of CUDA devices: the next batch is drawn ahead.
        {"kind": "mab", "knobs": {"discount": 0.99}, "graph": True},
        {
            "kind": "mab",
            "knobs": {"policy": "softmax", "discount": 0.99, "correction": 0.5},
            "graph": True,
        },
    ],
    ids=str,
)
def test_a_resumed_training_equals_one_never_stopped(start: Start, options: Any) -> None:
    whole = start(**options)
    curve = list(whole)
    stopped = start(**options)
    part = [next(stopped), next(stopped)]
    state = saved(stopped.state_dict())
    resumed = start(**options)
    # What has been drawn from the global generator in between must not matter.
    torch.manual_seed(1)
    resumed.load_state_dict(state)
    assert list(resumed.resumed) == part
    again = [*part, *resumed]
    assert timeless(again) == timeless(curve)
    # The seconds continue from the state's.
    assert again[2].seconds > part[1].seconds
    assert again[2].sampler_seconds > part[1].sampler_seconds
    assert resumed.model.state_dict().keys() == whole.model.state_dict().keys()
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", ["mab", "curriculum"])
@pytest.mark.parametrize("keep", ["trained", "better"])
def test_a_training_continues_beyond_its_budget(
    start: Start,
    splits: ImageSplits,
    parts: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    keep: str,
) -> None:
    early = splits.validation.subset(torch.arange(32))
    options = {
        "kind": kind,
        "knobs": {"difficulty": torch.rand(len(splits.train))} if kind == "curriculum" else {},
        "schedule": "constant",
        "average": 0.2,
        "warmup": 0.25,
        "keep": keep,
        "early": DeviceSweep(early, normalization=parts["batches"].normalization),
    }
    whole = start(**options, budgets=3)
    shares, set_progress = [], whole.sampler.set_progress
    monkeypatch.setattr(
        whole.sampler, "set_progress", lambda share: (shares.append(share), set_progress(share))
    )
    curve = list(whole)
    # Samplers that change with the budget do so in the first one.
    assert shares.count(1.0) > 40
    assert max(shares) == 1.0
    assert [point.steps for point in curve] == [6 * number for number in range(1, 13)]
    once = start(**options)
    held = timeless(once)
    assert once.evaluations == len(held)
    state = once.state_dict()
    longer = start(**options, budgets=3).load_state_dict(state)
    assert timeless([*longer.resumed, *longer]) == timeless(curve)
    assert timeless(curve[:4]) == held
    # The end of each budget is evaluated on all validation examples.
    parts = [round(point.accuracy * 32, 3) % 1 for point in curve]
    assert [place for place, part in enumerate(parts, start=1) if part] == [4, 8, 12]


def test_a_decayed_training_does_not_continue(start: Start) -> None:
    with pytest.raises(ArgumentError, match=r"budgets must be 1 with schedule 'linear'.*got 2"):
        start(budgets=2)
    with pytest.raises(ArgumentError, match="budgets must be at least 1, got 0"):
        start(schedule="constant", budgets=0)


class _Tied(nn.Module):
    """Two layers share one weight, and one layer has two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm1d(64)
        self.same = self.norm
        self.head = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.same(self.second(self.norm(self.first(images.flatten(1))).relu())))


@pytest.mark.parametrize(
    "options", [{}, {"average": 0.2}, {"average": 0.2, "schedule": "constant"}], ids=str
)
def test_the_networks_state_is_what_was_evaluated_last(
    start: Start, parts: dict[str, Any], options: dict[str, Any]
) -> None:
    running = start(network=_Tied, **options)
    for point in running:
        same = _Tied()
        same.load_state_dict(running.network_state())
        found = evaluate(same, parts["validation"])
        assert found == (point.accuracy, pytest.approx(point.loss))
    held = {name: one.clone() for name, one in running.model.state_dict().items()}
    averaged = options.get("schedule") == "constant"
    assert torch.equal(running.network_state()["head.bias"], held["head.bias"]) != averaged


def test_there_is_a_state_only_after_an_evaluation_of_its_own(start: Start) -> None:
    stopped = start()
    with pytest.raises(ArgumentError, match="no state"):
        stopped.state_dict()
    assert [stopped.has_state for _ in zip(range(2), stopped, strict=False)] == [True, True]
    resumed = start().load_state_dict(stopped.state_dict())
    assert not resumed.has_state
    assert [resumed.has_state for _ in resumed] == [True, True]


def test_progress_is_that_of_each_step_on_a_cpu(start: Start) -> None:
    training = start()
    shares: list[float] = []
    training.on_progress = shares.append
    next(training)
    stop = training._curve.stops[0]
    assert shares == [step / training._curve.stops[-1] for step in range(1, stop + 1)]
    list(training)
    assert len(shares) == training._curve.stops[-1]
    assert shares[-1] == 1.0


def test_there_is_no_state_where_workers_draw_batches_ahead(start: Start) -> None:
    stopped = start(loader=1)
    next(stopped)
    assert not stopped.has_state
    stopped.close()


def test_a_state_that_cannot_be_taken_is_refused(start: Start) -> None:
    stopped = start()
    next(stopped)
    state = stopped.state_dict()
    with pytest.raises(ArgumentError, match="before the first evaluation"):
        stopped.load_state_dict(state)
    with pytest.raises(ArgumentError, match="at other steps"):
        start(steps=28).load_state_dict(state)
    with pytest.raises(ArgumentError, match="at other steps"):
        start().load_state_dict({**state, "points": []})
    with pytest.raises(ArgumentError, match="a training with another average"):
        start(average=0.2).load_state_dict(state)
    with pytest.raises(ArgumentError, match="a training by captured steps"):
        start().load_state_dict({**state, "drawn": {}})


def test_numbers_may_be_numpys(start: Start, splits: ImageSplits) -> None:
    numbers = {"steps": 6, "evaluations": 3, "warmup": 0.25, "average": 0.5}
    numpys = {name: np.asarray(value)[()] for name, value in numbers.items()}
    plain = timeless(start(**numbers))
    training = start(**numpys)
    assert timeless(training) == plain
    saved(training.state_dict())
    dataset = TensorDataset(torch.zeros(8, 1), torch.arange(8))
    LoaderBatches(dataset, num_workers=np.int64(0), seed=np.int64(1))
    normalization = Normalization(splits.mean, splits.std)
    DeviceBatches(splits.train, normalization=normalization, seed=np.int64(1))
    sweeps: list[Any] = [
        DeviceSweep(splits.validation, normalization=normalization, batch_size=np.int64(64)),
        LoaderSweep(dataset, batch_size=np.int64(4)),
    ]
    assert [len(next(iter(sweep))[1]) for sweep in sweeps] == [64, 4]


def test_a_sampler_of_more_examples_than_there_are_is_refused(start: Start) -> None:
    many = samplers.UniformSampler([0, 1] * 1_000, batch_size=10)
    with pytest.raises(ArgumentError, match="at most 1221 examples, got 2000"):
        start(sampler=many)


@pytest.mark.parametrize("optimizer", ["sgd", {"name": "sgd"}, torch.optim.SGD])
def test_an_optimiser_must_be_made(parts: dict[str, Any], optimizer: Any) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    sampler = samplers.UniformSampler([0, 1] * 10, batch_size=2)
    words = f"must be a torch.optim.Optimizer, got {type(optimizer).__name__}"
    with pytest.raises(ArgumentError, match=words):
        Training(network, **parts, sampler=sampler, optimizer=optimizer, steps=2)


def test_networks_of_other_dimensions_train_channels_last() -> None:
    torch.manual_seed(0)
    inputs, labels = torch.randn(40, 1, 4, 6, 6), torch.arange(40) % 2
    dataset = TensorDataset(inputs, labels)
    volumes = nn.Sequential(nn.Conv3d(1, 2, 3), nn.Flatten(), nn.Linear(64, 2))
    training = Training(
        volumes,
        batches=LoaderBatches(dataset),
        validation=LoaderSweep(dataset),
        sampler=samplers.create("uniform", labels, batch_size=8),
        optimizer=torch.optim.SGD(volumes.parameters(), lr=0.1),
        steps=4,
        evaluations=2,
        channels_last=True,
    )
    assert [point.steps for point in training] == [2, 4]
