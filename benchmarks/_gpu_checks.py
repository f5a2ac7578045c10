"""Checks for a CUDA device; on others the same code runs without graphs."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import _shared
import torch
from _gpu_shared import Place, Row, no_waiting

from hpo_mab import models, training
from hpo_mab.data import Augmentation, Normalization
from hpo_mab.samplers import MABSampler, create
from hpo_mab.training import DeviceBatches
from hpo_mab.training._batches import LossMeter, TimedSampler
from hpo_mab.training._device_step import DeviceStep

KNOBS: dict[str, dict[str, Any]] = {
    "window": {},
    "nothing forgotten": {"memory": None},
    "with replacement": {"replacement": True},
    "discount": {"discount": 0.99},
    "correction": {"correction": 0.5, "floor": 0.1},
    "softmax": {"policy": "softmax"},
    "epsilon_greedy": {"policy": "epsilon_greedy"},
}


def checks(place: Place) -> Iterator[Row]:
    """The bandits and the whole step: no wait for the host, capture, same results as eager."""
    for name, knobs in KNOBS.items():
        yield _verdict(f"bandit, {name}: no wait", lambda knobs=knobs: _waits(place, knobs))
        yield _verdict(
            f"bandit, {name}: graph equals eager", lambda knobs=knobs: _graph(place, knobs)
        )
    for kind in ("uniform", "mab", "gradnorm", "psgd"):
        yield _verdict(f"step, {kind}: graph equals eager", lambda kind=kind: _twins(place, kind))
    yield _verdict("step, mab: no wait once captured", lambda: _step_waits(place))


#: What the tests import or are run with.
_NEEDED = ("hypothesis", "optuna", "pydantic", "pytest", "pytest_timeout", "sqlalchemy", "xdist")


def tests(place: Place) -> Iterator[Row]:
    """The tests for CUDA, by their marker or their name."""
    root, name = Path(__file__).parent.parent, "pytest -k cuda"
    missing = [need for need in _NEEDED if not find_spec(need)]
    if missing:
        yield Row(name, f"not run: {', '.join(missing)} not installed", met=False)
        return
    # Not all test files: importing those of the command line takes longer than running the others.
    files = [path for path in (root / "tests").rglob("test_*.py") if _names_cuda(path)]
    chosen = place.pick(files, [path for path in files if path.parent.name == "training"])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "cuda"]
    with tempfile.TemporaryFile("w+") as output:
        try:
            limit = min(max(1.0, place.left - 3), threading.TIMEOUT_MAX)
            status: int | None = subprocess.run(
                [*command, *map(str, sorted(chosen))],
                cwd=root,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=limit,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            status = None
        output.seek(0)
        said = output.read().strip().splitlines()
    last = (said or ["nothing said"])[-1].strip("= ")
    yield Row(name, last if status is not None else f"out of time after: {last}", met=status == 0)
    for line in said:
        if line.startswith(("FAILED", "ERROR")):
            print(line, file=sys.stderr)
            yield Row(line[:160], "", met=False)


def _names_cuda(path: Path) -> bool:
    text = path.read_text()
    return "mark.cuda" in text or "SamplerContract" in text


def _verdict(name: str, check: Callable[[], None]) -> Row:
    try:
        check()
    except Exception as error:
        print(f"{name}:\n{traceback.format_exc()}", file=sys.stderr)
        return Row(name, f"{type(error).__name__}: {str(error).splitlines()[0][:120]}", met=False)
    return Row(name, "yes", met=True)


def _bandits(place: Place, knobs: dict[str, Any]) -> MABSampler:
    # On the CPU, decaying counts are kept in tensors.
    more = {"discount": 0.99, "memory": "auto", "correction": 0.0, "replacement": "auto"}
    labels = torch.arange(1003) % 10
    chosen = knobs if place.cuda else knobs | more
    return MABSampler(labels, batch_size=32, device=place.device, **chosen)


def _waits(place: Place, knobs: dict[str, Any]) -> None:
    sampler, losses = _bandits(place, knobs), torch.rand(32, device=place.device)
    sampler.draw()
    sampler.update(losses)
    with no_waiting(place):
        for _ in range(20):
            sampler.draw()
            sampler.update(losses)
    judged = int(sampler._engine._tally[0, 1])
    if judged != 21 * 32:
        raise AssertionError(f"{judged} pulls judged of {21 * 32}")


def _graph(place: Place, knobs: dict[str, Any]) -> None:
    losses = torch.rand(1003, device=place.device)

    def step(sampler: MABSampler) -> torch.Tensor:
        indices = sampler.draw()
        sampler.update(losses[indices])
        return indices

    eager, captured = _bandits(place, knobs), _bandits(place, knobs)
    expected = torch.stack([step(eager) for _ in range(23)])
    drawn = [step(captured) for _ in range(3)]
    replay = place.capture(lambda: step(captured), captured.graph_generator)
    drawn += [replay().clone() for _ in range(20)]
    if not torch.equal(expected, torch.stack(drawn)):
        same = (expected == torch.stack(drawn)).all(dim=1)
        raise AssertionError(f"{int(same.sum())} of {len(same)} batches are equal")


def _parts(place: Place, kind: str, *, capture: bool) -> tuple[torch.nn.Module, DeviceStep]:
    torch.manual_seed(0)
    data = _shared.made_up("cifar10", train=place.pick(2_000, 100), rest=50).to(place.device)
    network = models.create("small_cnn", in_channels=3, num_classes=10, image_size=32)
    network.to(place.device)
    sampler = create(kind, data.train.labels, batch_size=place.pick(32, 8), device=place.device)
    normalization = Normalization(data.mean, data.std, channels_last=True)
    step = DeviceStep(
        forward=network,
        batches=DeviceBatches(data.train, normalization=normalization, augmentation=Augmentation()),
        sampler=TimedSampler(sampler, clock=lambda: 0.0),
        optimizer=training.create_optimizer("sgd", network.parameters(), lr=0.01),
        meter=LossMeter(place.device),
        capture=capture,
    )
    return network, step


def _twins(place: Place, kind: str) -> None:
    torch.backends.cudnn.deterministic = True
    weights = []
    for capture in (False, True):
        network, step = _parts(place, kind, capture=capture)
        for number in range(1, place.pick(16, 4)):
            step(step=number)
        if step.captured is not (capture and place.cuda):
            raise AssertionError(f"captured is {step.captured}")
        weights.append(torch.cat([weight.detach().flatten() for weight in network.parameters()]))
    torch.backends.cudnn.deterministic = False
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-3, atol=1e-4)


def _step_waits(place: Place) -> None:
    _, step = _parts(place, "mab", capture=True)
    for number in range(1, 6):
        step(step=number)
    with no_waiting(place):
        for number in range(6, 21):
            step(step=number)
