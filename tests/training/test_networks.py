"""Networks of users on a stack, and what a slot keeps of one training until the next."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hpo_mab import samplers, training
from hpo_mab._errors import ArgumentError
from hpo_mab.samplers import BatchSampler
from hpo_mab.training import Evaluation, StackedTrainer, Training

BATCH = 32
Make = Callable[[], nn.Module]
Parts = dict[str, Any]


def _labels(parts: Parts) -> Tensor:
    labels: Tensor = parts["batches"].data.labels
    return labels


def _sampler(parts: Parts, kind: str = "uniform") -> BatchSampler:
    return samplers.create(kind, _labels(parts), batch_size=BATCH, seed=1)


def _network(make: Make, *, seed: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    return make()


def _stack(parts: Parts, make: Make, *, slots: int = 2) -> StackedTrainer:
    return StackedTrainer(_network(make, seed=0), slots=slots, batch_size=BATCH, **parts)


def _start(
    stack: StackedTrainer, slot: int, make: Make, sampler: BatchSampler, **changes: Any
) -> None:
    options = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}
    arguments = {"steps": 10, "evaluations": 2, "average": 0.2, "optimizer": options}
    stack.start(slot, _network(make), sampler=sampler, **arguments | changes)


def _train(stack: StackedTrainer) -> dict[int, list[float]]:
    losses: dict[int, list[float]] = {}
    while stack.busy:
        for slot, result in stack.advance():
            assert isinstance(result, Evaluation)
            losses.setdefault(slot, []).append(result.loss)
    return losses


class _Own(nn.Module):
    """A network as users write them: tied and frozen weights, buffers of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(64, 16)
        self.frozen.requires_grad_(False)
        self.one = nn.Linear(16, 16)
        self.tied = nn.Linear(16, 16)
        self.tied.weight = self.one.weight
        self.norm = nn.BatchNorm1d(16)
        self.same_norm = self.norm
        self.last = nn.Linear(16, 10)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("scale", torch.ones(()), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
        hidden = self.norm(self.one(self.frozen(inputs.flatten(1)).relu()))
        outputs: Tensor = self.last(self.same_norm(self.tied(hidden.relu())) * self.scale)
        return outputs


def _alone(parts: Parts, make: Make) -> tuple[nn.Module, list[float]]:
    network = _network(make)
    run = Training(
        network,
        sampler=_sampler(parts),
        optimizer=training.create_optimizer(
            "sgd", network.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01
        ),
        steps=10,
        evaluations=2,
        average=0.2,
        **parts,
    )
    return network, [point.loss for point in run]


def test_a_network_with_frozen_and_shared_parts_trains_as_alone(parts: Parts) -> None:
    network, losses = _alone(parts, _Own)
    stack = _stack(parts, _Own)
    _start(stack, 1, _Own, _sampler(parts))
    assert _train(stack)[1] == pytest.approx(losses, rel=1e-4)
    found, expected = stack.state(1), network.state_dict()
    assert list(found) == list(expected)
    _Own().load_state_dict(found)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-5, msg=name)
    assert torch.equal(found["frozen.weight"], _network(_Own).state_dict()["frozen.weight"])


def test_frozen_weights_are_cast_to_half_precision(parts: Parts) -> None:
    stack = StackedTrainer(_Own(), slots=1, batch_size=BATCH, precision="bfloat16", **parts)
    _start(stack, 0, _Own, _sampler(parts))
    assert len(_train(stack)[0]) == 2


def _tuple() -> nn.Module:
    class Two(nn.Linear):
        def forward(self, inputs: Tensor) -> Any:
            return super().forward(inputs.flatten(1)), inputs

    return Two(64, 10)


def test_a_network_that_returns_no_tensor_is_named(parts: Parts) -> None:
    stack = _stack(parts, _tuple)
    _start(stack, 0, _tuple, _sampler(parts))
    for train in (stack.advance, lambda: _alone(parts, _tuple)):
        with pytest.raises(ArgumentError, match=r"logits must be a tensor \[B, C\], got tuple"):
            train()


def _untrained() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).requires_grad_(False)


def _lazy() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(10))


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (_untrained, "model must have a parameter that requires a grad"),
        (_lazy, r"model must have initialised weights, but '1\.weight' of a lazy module is not"),
    ],
)
def test_a_network_that_cannot_be_trained_is_refused(
    parts: Parts, network: Make, words: str
) -> None:
    for make in (lambda: _stack(parts, network), lambda: _alone(parts, network)):
        with pytest.raises(ArgumentError, match=words):
            make()


def _plain() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(10))


def test_networks_of_another_kind_are_refused(parts: Parts) -> None:
    def with_buffer() -> nn.Module:
        network = _plain()
        network.register_buffer("own", torch.zeros(3))
        return network

    def frozen() -> nn.Module:
        network = _plain()
        network[1].requires_grad_(False)  # type: ignore[index]
        return network

    for make in (with_buffer, frozen):
        for one, other in ((_plain, make), (make, _plain)):
            with pytest.raises(ArgumentError, match="model must have the parameters"):
                _start(_stack(parts, one), 0, other, _sampler(parts))


def test_a_sampler_of_more_examples_is_refused(parts: Parts) -> None:
    labels = _labels(parts)
    sampler = samplers.create("uniform", torch.cat([labels, labels]), batch_size=BATCH)
    with pytest.raises(ArgumentError, match=f"sampler must draw from at most {len(labels)} "):
        _start(_stack(parts, _plain), 0, _plain, sampler)


@pytest.mark.parametrize("schedule", ["linear", "constant"])
def test_a_slot_keeps_the_network_of_its_last_training(parts: Parts, schedule: str) -> None:
    stack = _stack(parts, _plain)
    for slot, steps in enumerate((4, 12)):
        _start(
            stack,
            slot,
            _plain,
            _sampler(parts),
            steps=steps,
            evaluations=1,
            schedule=schedule,
        )
    averaged = schedule == "constant"
    ((_, first),) = stack.advance()
    at_end = stack.state(0, averaged=averaged)
    _train(stack)
    for name, tensor in stack.state(0, averaged=averaged).items():
        assert torch.equal(tensor, at_end[name]), name
    assert isinstance(first, Evaluation)
    assert stack.scores([0], averaged=averaged)[0][0] == first.accuracy


def test_weights_of_a_batch_end_with_their_training(parts: Parts) -> None:
    stack = _stack(parts, _plain, slots=1)
    losses = []
    for kind in ("uniform", "adambs", "uniform"):
        _start(stack, 0, _plain, _sampler(parts, kind))
        losses.append(_train(stack)[0])
    assert losses[2] == losses[0] != losses[1]


class _WithExtraState(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def get_extra_state(self) -> dict[str, int]:
        return {"version": 1}

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.layer(inputs.flatten(1))
        return logits


def test_a_network_with_extra_state_trains_on_a_stack(parts: Parts) -> None:
    stack = _stack(parts, _WithExtraState)
    _start(stack, 0, _WithExtraState, _sampler(parts))
    _train(stack)
    assert set(stack.state(0)) == {"layer.weight", "layer.bias"}


def test_a_misspelt_argument_is_named(parts: Parts) -> None:
    with pytest.raises(TypeError, match=r"got .* 'evalutions'"):
        _start(_stack(parts, _WithExtraState), 0, _WithExtraState, _sampler(parts), evalutions=2)
    network = _network(_WithExtraState)
    optimizer = training.create_optimizer("sgd", network.parameters(), lr=0.1)
    options: dict[str, Any] = {"steps": 2, "evalutions": 2, "optimizer": optimizer}
    with pytest.raises(TypeError, match=r"got .* 'evalutions'"):
        Training(network, sampler=_sampler(parts), **parts, **options)
