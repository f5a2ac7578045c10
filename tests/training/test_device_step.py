"""A step on the device equals the ordinary loop, and its CUDA graph equals the step."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from small_studies import timeless
from tools import no_waiting
from torch import Tensor
from torch.utils.data import TensorDataset

from hpo_mab import models, samplers, training
from hpo_mab.data import Augmentation, ImageSplits, Normalization
from hpo_mab.samplers import MABSampler, UniformSampler
from hpo_mab.samplers._feedback import Draw
from hpo_mab.training import DeviceBatches, DeviceSweep, LoaderBatches
from hpo_mab.training._batches import LossMeter, TimedSampler
from hpo_mab.training._captured import WARM_UP_CALLS
from hpo_mab.training._device import release_memory, why_no_graph
from hpo_mab.training._device_step import DeviceStep, _move_learning_rates

#: Counts that decay are kept by the engine of CUDA devices, on the CPU too.
TENSORS = {"kind": "mab", "discount": 0.99}


class _Parts:
    """What a training is made of."""

    def __init__(self, splits: ImageSplits, device: str, **sampler: Any) -> None:
        torch.manual_seed(0)
        self.splits = splits = splits.to(device)
        self.normalization = Normalization(splits.mean, splits.std)
        self.model = models.create("mlp", in_channels=1, num_classes=10, image_size=8, width=16).to(
            device
        )
        self.batches = DeviceBatches(
            splits.train,
            normalization=self.normalization,
            augmentation=Augmentation(pad=1, flip=False),
        )
        self.sampler = samplers.create(
            sampler.pop("kind"), splits.train.labels, batch_size=32, device=device, **sampler
        )
        self.optimizer = training.create_optimizer("sgd", self.model.parameters(), lr=0.1)

    def train(self, *, graph: bool) -> list[dict[str, Any]]:
        validation = DeviceSweep(self.splits.validation, normalization=self.normalization)
        curve = training.Training(
            self.model,
            batches=self.batches,
            validation=validation,
            sampler=self.sampler,
            optimizer=self.optimizer,
            steps=12,
            evaluations=3,
        )
        curve._may_use_graph = graph  # As on CUDA.
        return timeless(curve)

    def why_no_graph(self) -> str | None:
        return why_no_graph(self.batches, self.sampler, self.optimizer)

    def step(self, *, capture: bool = True) -> DeviceStep:
        return DeviceStep(
            forward=self.model,
            batches=self.batches,
            sampler=TimedSampler(self.sampler, clock=lambda: 0.0),
            optimizer=self.optimizer,
            meter=LossMeter(self.batches.data.device),
            capture=capture,
        )


def _equal(curve: list[dict[str, Any]], other: list[dict[str, Any]]) -> None:
    for point, twin in zip(curve, other, strict=True):
        # Of some samplers the next batch is drawn by now.
        share, other_share = point.pop("concentration"), twin.pop("concentration")
        assert share is None or share == pytest.approx(other_share, rel=0.3)
        rate, other_rate = point.pop("reward_rate"), twin.pop("reward_rate")
        assert rate == other_rate
        assert point == pytest.approx(twin, rel=1e-6)


@pytest.mark.parametrize(
    "sampler",
    [
        {"kind": "uniform"},
        {"kind": "mab", "floor": 0.1, "correction": 0.5},
        {"kind": "mab", "active": 0.5},
        TENSORS,
        {"kind": "gradnorm"},
        {"kind": "hard_mining"},
        {"kind": "infobatch"},
        {"kind": "psgd"},
    ],
    ids=lambda sampler: "-".join(map(str, sampler.values())),
)
def test_the_loop_with_device_steps_is_the_ordinary_loop(
    splits: ImageSplits, sampler: dict[str, Any]
) -> None:
    curves = [_Parts(splits, "cpu", **sampler).train(graph=graph) for graph in (False, True)]
    _equal(*curves)


def test_no_reference_to_the_memory_of_a_step_remains(
    splits: ImageSplits, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A graph writes losses and logits to the same memory at every replay.
    kinds = samplers.available()
    plain = [_Parts(splits, "cpu", kind=kind).train(graph=True) for kind in kinds]
    call = DeviceStep.__call__

    def overwritten(self: DeviceStep, *, step: int) -> None:
        call(self, step=step)
        assert self._outputs is not None
        for tensor in self._outputs[:2]:
            tensor.fill_(torch.nan)

    monkeypatch.setattr(DeviceStep, "__call__", overwritten)
    for kind, curve in zip(kinds, plain, strict=True):
        again = _Parts(splits, "cpu", kind=kind).train(graph=True)
        assert again == curve, kind


class _Keeping(UniformSampler):
    """Keeps the losses that it learns from."""

    def _learn(self, draw: Draw, losses: Tensor, *_: Any) -> None:
        self.kept = losses


def test_a_sampler_may_keep_the_losses_of_a_step(splits: ImageSplits) -> None:
    parts = _Parts(splits, "cpu", kind="uniform")
    parts.sampler = sampler = _Keeping(splits.train.labels, batch_size=32)
    step = parts.step()
    step(step=1)
    assert step._outputs is not None
    step._outputs[0].fill_(torch.nan)  # As by the next replay.
    assert bool(sampler.kept.isfinite().all())


def test_a_capturable_sampler_draws_the_next_batch_with_the_step(splits: ImageSplits) -> None:
    parts = _Parts(splits, "cpu", **TENSORS)
    step = parts.step()
    seen = []
    for number in range(1, 6):
        step(step=number)
        assert parts.sampler.outstanding == 1
        seen.append(parts.sampler._outstanding[0].indices.clone())
    # Where the graph's replay looks for it, the batch is the one that the sampler waits for.
    assert parts.sampler._outstanding[0].indices is step._held["indices"]
    assert parts.sampler._outstanding[0].context is step._held["context"]
    assert len({tuple(batch.tolist()) for batch in seen}) == 5
    assert not step.captured


@pytest.mark.parametrize(
    ("sampler", "capturable"),
    [
        ({"kind": "uniform"}, False),
        ({"kind": "mab"}, False),  # On the CPU: numpy.
        (TENSORS, True),
        ({**TENSORS, "active": 0.5}, False),
    ],
)
def test_what_a_graph_can_hold(
    splits: ImageSplits, sampler: dict[str, Any], capturable: bool
) -> None:
    assert _Parts(splits, "cpu", **sampler).sampler.capturable is capturable


class _Early(MABSampler):
    """Uniform for a part of the budget."""

    def _draw(self) -> Draw:
        return super()._draw()


def test_a_subclass_of_the_bandit_draws_outside_of_the_graph(splits: ImageSplits) -> None:
    known = {key: value for key, value in TENSORS.items() if key != "kind"}
    sampler = _Early(splits.train.labels, batch_size=32, seed=0, **known)
    assert sampler.graph_generator is not None
    assert not sampler.capturable


class _Cooling(torch.nn.Linear):
    """Divides by a number that grows, or by a constant; notes the size of its input."""

    def __init__(self, growth: float) -> None:
        super().__init__(64, 10)
        self.temperature, self.growth = 1.0, growth
        self.unknown = np.float64("nan")  # Not equal to itself.

    def forward(self, inputs: Tensor) -> Tensor:
        self.temperature += self.growth
        self.size = inputs.shape[-1]
        return super().forward(inputs.flatten(1)) / self.temperature


class _Filling(torch.nn.Module):
    """Fills a buffer at its first batch."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", None)
        self.layer = torch.nn.Sequential(torch.nn.Linear(64, 10), torch.nn.BatchNorm1d(10))

    def forward(self, inputs: Tensor) -> Tensor:
        if self.mean is None:
            self.mean = inputs.mean()
        logits: Tensor = self.layer(inputs.flatten(1) - self.mean)
        return logits


class _Drawing(torch.nn.Linear):
    """Draws from its own random generator or a global one, or only has one."""

    def __init__(self, generator: Any, draw: Callable[[Any], Any]) -> None:
        super().__init__(64, 10)
        self.generator, self.draw = generator, draw

    def forward(self, inputs: Tensor) -> Tensor:
        self.draw(self.generator)
        return super().forward(inputs.flatten(1))


COUNTS = "the network changes a number that it keeps in Python"
DRAWS = "the network draws random numbers on the host"


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (_Cooling(0.0), None),
        (_Cooling(0.1), COUNTS),
        (_Filling(), None),
        (_Drawing(np.random.default_rng(0), np.random.Generator.random), DRAWS),
        (_Drawing(random.Random(0), random.Random.random), DRAWS),
        # Of a class that cannot be pickled, as one within a function.
        (_Drawing(type("Own", (random.Random,), {})(0), random.Random.random), DRAWS),
        (_Drawing(torch.Generator(), lambda own: torch.rand((), generator=own)), DRAWS),
        (_Drawing(None, lambda _: random.random()), DRAWS),
        (_Drawing(None, lambda _: np.random.rand()), DRAWS),
        (_Drawing(None, lambda _: torch.rand(1)), DRAWS),
        (_Drawing(np.random.default_rng(0), str), None),
    ],
)
def test_a_network_that_a_graph_would_not_repeat_is_not_captured(
    splits: ImageSplits,
    network: torch.nn.Module,
    reason: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parts = _Parts(splits, "cpu", kind="uniform")
    parts.model = network
    step = parts.step()
    # As on CUDA.
    captures: list[int] = []
    monkeypatch.setattr(step._captured_step, "_may_capture", True)
    monkeypatch.setattr(step._captured_step, "_try_capture", lambda *_: captures.append(1))
    for number in range(1, WARM_UP_CALLS + 2):
        step(step=number)
    assert (step.reason, captures) == (reason, [] if reason else [1])


def test_a_loader_has_no_device_step(splits: ImageSplits) -> None:
    parts = _Parts(splits, "cpu", kind="uniform")
    parts.batches = LoaderBatches(TensorDataset(torch.zeros(64, 1, 8, 8), torch.zeros(64)))  # type: ignore[assignment]
    assert parts.why_no_graph() == "a DataLoader brings the batches"


def test_weights_that_follow_from_losses_have_no_device_step(
    splits: ImageSplits, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = _Parts(splits, "cpu", kind="uniform")
    monkeypatch.setattr(UniformSampler, "weighs_by_losses", True)
    assert parts.why_no_graph() == "UniformSampler weighs a batch by its own losses"


#: Everything that a step changes, by name.
State = dict[str, Tensor]


def _history(parts: _Parts, *, capture: bool, steps: int) -> list[State]:
    """The state after each of the first steps."""
    # For both steps: a rate on the host has double precision, one on the device has not.
    _move_learning_rates(parts.optimizer, parts.batches.data.device)
    step = parts.step(capture=capture)
    history = []
    for number in range(1, steps + 1):
        step(step=number)
        assert step._outputs is not None
        losses, logits, targets = step._outputs
        state = {"batch drawn": step._held["indices"], "targets": targets, "losses": losses}
        state |= {"logits": logits, "sum of losses": step._meter._total}
        state |= {f"weights {name}": weight for name, weight in parts.model.named_parameters()}
        if isinstance(parts.sampler, MABSampler):
            state["counts of the bandits"] = parts.sampler._engine.counts()
        history.append({name: tensor.detach().clone() for name, tensor in state.items()})
    assert step.captured is (capture and parts.batches.data.device.type == "cuda"), step.reason
    return history


def _first_difference(
    history: list[State], other: list[State], *, rtol: float = 1e-3, atol: float = 1e-4
) -> str | None:
    """The first step with a tensor that differs by more than rounding, and by how much."""
    for number, (state, twin) in enumerate(zip(history, other, strict=True), start=1):
        found = []
        for name, tensor in state.items():
            off = (tensor.double() - twin[name].double()).abs()
            # Written so that NaN is a difference.
            wrong = ~(off <= (atol + rtol * twin[name].double().abs()))
            if tensor.dtype == torch.int64:
                wrong = tensor != twin[name]
            if wrong.any():
                share = f"{int(wrong.sum())} of {wrong.numel()}"
                found.append(f"{name}: {share} differ, by up to {float(off.max()):.3g}")
        if found:
            return f"step {number}: " + "; ".join(found)
    return None


@pytest.mark.cuda
@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("sampler", ["uniform", "mab", "gradnorm"])
def test_a_graph_equals_the_eager_step(splits: ImageSplits, sampler: str, optimizer: str) -> None:
    histories = []
    for capture in (False, True):
        parts = _Parts(splits, "cuda", kind=sampler)
        parts.optimizer = training.create_optimizer(optimizer, parts.model.parameters(), lr=0.01)
        # Three before the capture, nine replayed: a wrong replay fails at once, and the rounding of
        # many steps does not.
        histories.append(_history(parts, capture=capture, steps=12))
    assert _first_difference(*histories) is None


def test_a_difference_is_reported_with_step_and_tensor(splits: ImageSplits) -> None:
    one, twin, wrong = (
        _history(_Parts(splits, "cpu", **TENSORS), capture=False, steps=4) for _ in range(3)
    )
    assert _first_difference(one, twin) is None
    wrong[2]["weights 1.weight"][0, :3] += 0.01
    wrong[3]["batch drawn"][5] += 1
    found = _first_difference(one, wrong)
    assert found == "step 3: weights 1.weight: 3 of 1024 differ, by up to 0.01"
    wrong[2] = {**twin[2], "losses": twin[2]["losses"] * torch.nan}
    assert "losses: 32 of 32 differ, by up to nan" in str(_first_difference(one, wrong))


@pytest.mark.cuda
@pytest.mark.parametrize(("kind", "counted"), [("psgd", True), ("mab", False)])
def test_seconds_of_samplers_outside_of_the_graph_are_kept(
    splits: ImageSplits, kind: str, counted: bool
) -> None:
    parts = _Parts(splits, "cuda", kind=kind)
    validation = DeviceSweep(splits.to("cuda").validation, normalization=parts.normalization)
    run = training.Training(
        parts.model,
        batches=parts.batches,
        validation=validation,
        sampler=parts.sampler,
        optimizer=parts.optimizer,
        steps=12,
        graph=True,
    )
    *_, last = run
    assert run.captured
    assert (last.sampler_seconds > 0) is counted


@pytest.mark.cuda
def test_bandits_on_the_cpu_draw_outside_of_the_graph(splits: ImageSplits) -> None:
    parts = _Parts(splits, "cuda", kind="uniform")
    parts.sampler = samplers.create(
        "mab", splits.train.labels, batch_size=32, discount=0.99, device="cpu"
    )
    assert parts.sampler.capturable
    step = parts.step()
    for number in range(1, 8):
        step(step=number)
    assert step.captured
    assert not step.draws_in_graph
    assert bool(_flat(parts.model).isfinite().all())


def test_gradients_need_no_memory_between_steps(splits: ImageSplits) -> None:
    parts = _Parts(splits, "cpu", kind="uniform")
    step = parts.step()
    step(step=1)
    assert all(weight.grad is None for weight in parts.model.parameters())


class _Waits(torch.nn.Module):
    """Reads a value from the device, which no capture allows."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(64, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.linear(inputs.flatten(1))
        return logits * (1 + float(logits.detach().mean() > 1e9))


@pytest.mark.cuda
def test_after_a_failed_capture_memory_can_be_freed_and_others_captured(
    splits: ImageSplits,
) -> None:
    waits = _Parts(splits, "cuda", kind="uniform")
    waits.model = _Waits().cuda()
    waits.optimizer = torch.optim.SGD(waits.model.parameters(), lr=torch.tensor(0.1), fused=True)
    for parts, captured in ((waits, False), (_Parts(splits, "cuda", kind="mab"), True)):
        step = parts.step()
        for number in range(1, 6):
            step(step=number)
        assert step.captured == captured
        assert torch.cuda.current_stream() == torch.cuda.default_stream()
        release_memory()


@pytest.mark.cuda
def test_a_captured_step_never_waits_for_the_host(splits: ImageSplits) -> None:
    parts = _Parts(splits, "cuda", kind="mab")
    step = parts.step()
    for number in range(1, 21):
        # The capture itself waits, once.
        with no_waiting() if number != 4 else contextlib.nullcontext():
            step(step=number)
    assert step.captured
    assert bool(_flat(parts.model).isfinite().all())


def _flat(model: torch.nn.Module) -> Tensor:
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])
