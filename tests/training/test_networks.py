"""Networks of users on a stack, and what a slot keeps of one training until the next."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tools import Caching, Masked
from torch import Tensor, nn

from hpo_mab import samplers, training
from hpo_mab._errors import ArgumentError
from hpo_mab.samplers import BatchSampler
from hpo_mab.training import Evaluation, StackedTrainer, Training
from hpo_mab.training._captured import WARM_UP_CALLS, Captured

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
    arguments = {"steps": 10, "evaluations": 2, "average": 0.5, "optimizer": options}
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
        self.unused = nn.Linear(16, 16)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("scale", torch.ones(()), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        self.size = inputs.shape[0]
        if self.training:
            self.calls += 1
        hidden = self.norm(self.one(self.frozen(inputs.flatten(1)).relu()))
        outputs: Tensor = self.last(self.same_norm(self.tied(hidden.relu())) * self.scale)
        return outputs


def _alone(parts: Parts, make: Make, kind: str = "uniform") -> tuple[nn.Module, list[float]]:
    network = _network(make)
    run = Training(
        network,
        sampler=_sampler(parts, kind),
        optimizer=training.create_optimizer(
            "sgd", network.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01
        ),
        steps=10,
        evaluations=2,
        average=0.5,
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
        if name.startswith("unused"):
            continue  # Only on a stack do they decay.
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-5, msg=name)
    assert torch.equal(found["frozen.weight"], _network(_Own).state_dict()["frozen.weight"])


class _Evaluated(_Own):
    """Notes a number in evaluations only."""

    def forward(self, inputs: Tensor) -> Tensor:
        if not self.training:
            self.evaluated = inputs.shape[0]
        return super().forward(inputs)


@pytest.mark.parametrize(
    ("make", "kind", "evaluations"),
    [(_Own, "contextual", 2), (_Own, "uniform", 10), (_Evaluated, "uniform", 2)],
)
def test_a_network_may_note_the_size_of_its_input(
    parts: Parts, make: Make, kind: str, evaluations: int
) -> None:
    stack = _stack(parts, make)
    _start(stack, 0, make, _sampler(parts, kind), evaluations=evaluations)
    assert len(_train(stack)[0]) == evaluations


def test_a_size_noted_in_an_evaluation_is_no_change_by_a_graph(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = Captured.__call__

    def replayed(step: Captured, body: Callable[[], None]) -> None:
        call(step, (lambda: None) if step.captured else body)

    captured = property(lambda step: step._calls >= WARM_UP_CALLS)
    monkeypatch.setattr(Captured, "captured", captured)
    monkeypatch.setattr(Captured, "__call__", replayed)
    stack = _stack(parts, _Own)
    _start(stack, 0, _Own, _sampler(parts), evaluations=10)
    assert len(_train(stack)[0]) == 10


@pytest.mark.parametrize("make", [_Own, lambda: _Own().bfloat16()], ids=["float32", "bfloat16"])
def test_weights_are_cast_to_half_precision(parts: Parts, make: Make) -> None:
    stack = StackedTrainer(make(), slots=1, batch_size=BATCH, precision="bfloat16", **parts)
    _start(stack, 0, make, _sampler(parts))
    assert len(_train(stack)[0]) == 2


class _Listed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList([torch.randn(64, 10)])

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = inputs.flatten(1) @ self.weights[0]
        return logits


def test_networks_may_differ_in_their_precision(parts: Parts) -> None:
    stack = _stack(parts, _Listed)
    _start(stack, 0, lambda: _Listed().bfloat16(), _sampler(parts))
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
        with pytest.raises(ArgumentError, match=r"logits must be a tensor \[B, C\] .*, got tuple"):
            train()


@pytest.mark.parametrize("kind", ["uniform", "hard_mining"])
def test_a_network_that_keeps_values_of_its_weights_is_evaluated_with_new_ones(
    parts: Parts, kind: str
) -> None:
    make = functools.partial(Caching, 64, 10)
    _, losses = _alone(parts, make, kind)
    stack = _stack(parts, make)
    _start(stack, 1, make, _sampler(parts, kind))
    assert _train(stack)[1] == pytest.approx(losses, rel=1e-4)


class _Frozen(nn.Sequential):
    """A network that does not train its normalisation."""

    def __init__(self) -> None:
        layers = (nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 10))
        super().__init__(*layers)

    def train(self, mode: bool) -> _Frozen:  # Users may forget the default.
        super().train(mode)
        self[1].eval()
        return self


@pytest.mark.parametrize("make", [_Frozen, lambda: Masked(64, 11)])
def test_frozen_normalisations_and_masks_of_infinities_stay_as_they_are(
    parts: Parts, make: Make
) -> None:
    _, losses = _alone(parts, make)
    stack = _stack(parts, make)
    _start(stack, 1, make, _sampler(parts))
    assert _train(stack)[1] == pytest.approx(losses, rel=1e-4)


@pytest.mark.parametrize(
    ("start", "evaluations"), [(2.0, 1), (2.0, 2), (2.0, 10), (np.float64(2.0), 2)]
)
def test_a_network_that_counts_in_python_is_refused(
    parts: Parts, start: float, evaluations: int
) -> None:
    class Cooling(nn.Linear):
        temperature = start

        def forward(self, inputs: Tensor) -> Tensor:
            self.temperature *= 0.99
            return super().forward(inputs.flatten(1)) / self.temperature

    def make() -> nn.Module:
        return Cooling(64, 10)

    stack = _stack(parts, make)
    _start(stack, 0, make, _sampler(parts), evaluations=evaluations)
    with pytest.raises(RuntimeError, match="changes a number that it keeps in Python"):
        _train(stack)


def test_a_network_that_draws_from_a_generator_of_its_own_is_refused(parts: Parts) -> None:
    class Drawing(nn.Linear):
        def __init__(self) -> None:
            super().__init__(64, 10)
            self.generator = np.random.default_rng(0)

        def forward(self, inputs: Tensor) -> Tensor:
            return super().forward(inputs.flatten(1)) + self.generator.random()

    stack = _stack(parts, Drawing)
    _start(stack, 0, Drawing, _sampler(parts))
    with pytest.raises(RuntimeError, match="draws random numbers on the host"):
        _train(stack)


@pytest.mark.parametrize("call", [0, 2])
def test_a_network_that_draws_on_the_host_is_refused_before_a_capture(
    parts: Parts, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    class Drawing(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            draws = next(calls) >= call
            return super().forward(inputs.flatten(1)) + (torch.rand(()) if draws else 0)

    def make() -> nn.Module:
        return Drawing(64, 10)

    calls = itertools.count()
    stack = _stack(parts, make)
    for _ in range(2):
        _start(stack, 0, make, _sampler(parts))
        with monkeypatch.context() as patched:
            # As on CUDA.
            patched.setattr(Captured, "is_warming_up", True)
            with pytest.raises(RuntimeError, match="draws random numbers on the host"):
                _train(stack)
    # Not tried again: a graph would repeat the numbers of its capture.
    assert next(calls) == call + 1
    # Without a graph `vmap` draws other numbers at each step.
    stack = _stack(parts, make)
    _start(stack, 0, make, _sampler(parts))
    _train(stack)


class _Spectrum(nn.Linear):
    """Has complex weights, and real or complex outputs."""

    def __init__(self, *, real: bool) -> None:
        super().__init__(64, 10, dtype=torch.cfloat)
        self.real = real

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = super().forward(inputs.flatten(1).to(torch.cfloat))
        return outputs.abs() if self.real else outputs


def test_complex_weights_train_alone(parts: Parts) -> None:
    with pytest.raises(ArgumentError, match="model must have real weights on a stack"):
        _stack(parts, lambda: _Spectrum(real=True))
    network, losses = _alone(parts, lambda: _Spectrum(real=True))
    assert len(losses) == 2
    assert network.weight.is_complex()  # type: ignore[operator]


def test_complex_logits_are_refused(parts: Parts) -> None:
    with pytest.raises(ArgumentError, match=r"of real numbers, got shape \[32, 10\] of torch.com"):
        _alone(parts, lambda: _Spectrum(real=False))


def _untrained() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).requires_grad_(False)


def _lazy() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(10))


def _lazy_statistics() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.LazyBatchNorm1d(affine=False), nn.Linear(64, 10))


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (_untrained, "model must have a parameter that requires a grad"),
        (_lazy, r"model must have initialised weights, but '1\.weight' of a lazy module is not"),
        (_lazy_statistics, r"but '1\.running_mean' of a lazy module is not"),
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

    def dropped(share: float) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Dropout(share), nn.Linear(64, 10))

    for make, plain in (
        (with_buffer, _plain),
        (frozen, _plain),
        (lambda: dropped(0.1), lambda: dropped(0.5)),
    ):
        for one, other in ((plain, make), (make, plain)):
            with pytest.raises(ArgumentError, match="model must have the layers, parameters"):
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
