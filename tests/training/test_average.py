"""The moving average of the weights, alone and as what a training evaluates."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tools import Masked
from torch import Tensor, nn

from hpo_mab._errors import ArgumentError
from hpo_mab.training import Evaluation, Training, WeightAverage, evaluate
from hpo_mab.training._average import call_with

Start = Callable[..., Training]


def _walk(model: nn.Module, steps: int) -> list[list[Tensor]]:
    """Random steps of all weights; returns them after each."""
    seen = []
    for _ in range(steps):
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.randn_like(weight))
        seen.append([weight.detach().clone() for weight in model.parameters()])
    return seen


def test_the_formula() -> None:
    model = nn.Linear(3, 2)
    average = WeightAverage(model, window=0.2)
    expected = [weight.detach().clone() for weight in model.parameters()]
    for step in range(1, 31):
        (weights,) = _walk(model, 1)
        average.update()
        share = 1 / max(1.0, 0.2 * step)
        expected = [old + (new - old) * share for old, new in zip(expected, weights, strict=True)]
    for own, wanted in zip(average.state_dict()["average"].values(), expected, strict=True):
        torch.testing.assert_close(own, wanted)


def test_running_statistics_are_averaged_and_integers_are_not() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    average = WeightAverage(model, window=1.0)
    statistics = []
    for _ in range(4):
        model(torch.randn(8, 3) + 5)
        average.update()
        statistics.append(model[1].running_mean.clone())
    names = average.state_dict()["average"]
    assert "1.num_batches_tracked" not in names
    torch.testing.assert_close(names["1.running_mean"], torch.stack(statistics).mean(dim=0))


def test_a_buffer_that_is_assigned_to_is_averaged() -> None:
    class _Assigning(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("scale", torch.zeros(()))

        def forward(self, inputs: Tensor) -> Tensor:
            self.scale = self.scale + 1
            return inputs

    model = nn.Sequential(_Assigning())
    average = WeightAverage(model, window=1.0)
    for _ in range(4):
        model(torch.zeros(1))
        average.update()
    assert average.state_dict()["average"]["0.scale"] == 2.5


def test_shared_parameters_stay_shared() -> None:
    class _Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(3, 3, bias=False)
            self.second = nn.Linear(3, 3, bias=False)
            self.second.weight = self.first.weight

        def forward(self, inputs: Tensor) -> Tensor:
            return self.second(self.first(inputs))

    model = _Tied()
    average = WeightAverage(model, window=0.5)
    _walk(model, 1)
    average.update()
    inputs = torch.randn(2, 3)
    (weight,) = average.state_dict()["average"].values()
    torch.testing.assert_close(average.forward()(inputs), inputs @ weight.T @ weight.T)


def test_a_layer_under_two_names_is_averaged_and_stays_as_it_was() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(3, 3)
            self.other = self.one

        def forward(self, inputs: Tensor) -> Tensor:
            outputs: Tensor = self.other(self.one(inputs))
            return outputs

    model = Twice()
    weights, before = list(model.parameters()), copy.deepcopy(model)
    average = WeightAverage(model, window=1.0)
    _walk(model, 1)
    inputs = torch.randn(4, 3)
    # Without an update the average is that of the initial weights.
    torch.testing.assert_close(average.forward()(inputs), before(inputs))
    assert all(own is weight for own, weight in zip(model.parameters(), weights, strict=True))


def test_the_average_of_half_precision_weights_follows_them() -> None:
    model = nn.Linear(3, 2, bias=False).bfloat16()
    average = WeightAverage(model, window=0.2)
    with torch.no_grad():
        for step in range(3000):
            model.weight.fill_(1 + step / 3000)
            average.update()
    (weight,) = average.weights().values()
    assert weight.dtype == torch.bfloat16
    assert weight.mean().item() == pytest.approx(1.8, abs=0.05)
    assert average.forward()(torch.ones(1, 3, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_two_buffers_may_become_one_tensor() -> None:
    class Remembers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.zeros(2))
            self.register_buffer("last", torch.ones(2))

        def forward(self, _: Tensor) -> Tensor:
            return torch.stack([self.mean, self.last])

    model = Remembers()
    average = WeightAverage(model, window=1.0)
    model.mean = model.last = torch.full((2,), 3.0)
    average.update()
    assert {name: one.tolist() for name, one in average.weights().items()} == {
        "mean": [3.0, 3.0],
        "last": [3.0, 3.0],
    }
    # Each has an average of its own while they were apart.
    apart = {"mean": torch.zeros(2), "last": torch.ones(2)}
    assert call_with(model.eval(), apart, torch.zeros(())).tolist() == [[0.0, 0.0], [1.0, 1.0]]


def test_a_layer_must_not_be_replaced() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    average = WeightAverage(model, window=0.5)
    average.update()
    assert set(average.weights()) == set(dict(model.named_parameters()))
    model[2] = nn.Linear(3, 2)
    with pytest.raises(ArgumentError, match=r"that of '2\.weight' was replaced"):
        average.weights()


def test_a_state_of_another_network_is_refused() -> None:
    state = WeightAverage(nn.Linear(3, 2), window=0.1).state_dict()
    with pytest.raises(ArgumentError, match="network with other parameters"):
        WeightAverage(nn.Sequential(nn.Linear(3, 2)), window=0.1).load_state_dict(state)


@pytest.mark.parametrize("window", [0, 2])
def test_a_window_outside_its_bound_is_refused_by_its_name(window: float) -> None:
    with pytest.raises(ArgumentError, match=rf"window must be a share in \(0, 1\], got {window}"):
        WeightAverage(nn.Linear(3, 2), window=window)


def test_a_network_without_weights_is_refused() -> None:
    with pytest.raises(ArgumentError, match="average must be 0 for a model without weights"):
        WeightAverage(nn.Flatten(), window=0.2)


def _scores(curve: list[Evaluation]) -> list[tuple[float, float]]:
    return [(point.accuracy, point.loss) for point in curve]


@pytest.mark.parametrize("graph", [False, True], ids=["loop", "device step"])
def test_all_evaluations_but_the_last_are_those_of_the_average(start: Start, graph: bool) -> None:
    plain = list(start("uniform", graph=graph))
    run = start("uniform", graph=graph, average=0.2)
    curve = []
    for point in run:
        curve.append(point)
        weights = run._average.forward() if point.averaged else None  # type: ignore[union-attr]
        expected = evaluate(run.model, run._validation, forward=weights)
        assert (point.accuracy, point.loss) == expected
        assert run.evaluate(run._validation) == expected
    assert [point.averaged for point in curve] == [True, True, True, False]
    assert [point.averaged for point in plain] == [False] * 4
    # The average changes what is evaluated, not what is trained.
    assert _scores(curve)[-1] == _scores(plain)[-1]
    assert _scores(curve)[:-1] != _scores(plain)[:-1]
    assert [p.train_loss for p in curve] == [p.train_loss for p in plain]


def test_a_constant_rate_is_evaluated_by_its_average_to_the_end(start: Start) -> None:
    curve = list(start("uniform", average=0.2, schedule="constant"))
    assert [point.averaged for point in curve] == [True] * 4
    assert [point.learning_rate for point in curve] == pytest.approx([0.05] * 4)
    without = list(start("uniform", schedule="constant"))
    assert not any(point.averaged for point in without)


@pytest.mark.parametrize(
    ("schedule", "average"), [("constant", 0.5), ("linear", 0.1), ("linear", 1.0)]
)
def test_the_better_weights_are_kept_with_keep_better(
    start: Start, parts: dict[str, Any], schedule: str, average: float
) -> None:
    # A rate that is too high: an average of a good window is better than the last weights.
    options = {"batches": parts["batches"], "lr": 0.3, "steps": 40, "schedule": schedule}
    trained = list(start("uniform", **options))[-1]
    run = start("uniform", keep="better", average=average, **options)
    last = list(run)[-1]
    assert run._average is not None
    averaged, _ = run._scores(run._validation, averaged=True)
    assert last.accuracy == max(averaged, trained.accuracy)
    assert last.averaged is (averaged > trained.accuracy)
    assert run.evaluate(run._validation) == (last.accuracy, last.loss)


def test_a_mask_of_infinities_stays_as_it_is() -> None:
    model = Masked(3, 3)
    average = WeightAverage(model, window=0.5)
    for _ in range(3):
        _walk(model, 1)
        average.update()
    assert "mask" not in average.weights()
    assert average.forward()(torch.ones(2, 3))[:, 0].isfinite().all()
