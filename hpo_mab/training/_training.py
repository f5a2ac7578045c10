"""A training under way: its learning curve, and its state between two points of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Self

import torch
from torch import nn
from torch.optim import Optimizer

from hpo_mab._errors import ArgumentError
from hpo_mab.training._batches import Batches, DeviceBatches, LoaderBatches
from hpo_mab.training._evaluation import Evaluation
from hpo_mab.training._timed_sampler import TimedSampler


@dataclasses.dataclass(kw_only=True)
class TrainingParts:
    """What a training's state is made of.

    Attributes:
        model: The network.
        optimizer: Its optimiser.
        sampler: Its batch sampler.
        batches: Where its batches come from.
        stops: Steps after which it is evaluated.
        graph: Whether `DeviceStep` takes its steps.
        points: Its learning curve so far; not empty at the start where a state was loaded.
    """

    model: nn.Module
    optimizer: Optimizer
    sampler: TimedSampler
    batches: Batches
    stops: tuple[int, ...]
    graph: bool
    points: list[Evaluation] = dataclasses.field(default_factory=list)


class Training(Iterator[Evaluation]):
    """Iterator over a training's evaluations; taking the next one trains up to it.

    Between two evaluations `state_dict` is all that the rest of the training depends on. A training
    made alike that loads it yields the evaluations up to there again, at once, and then goes on; on
    a CPU the whole curve, its seconds aside, is that of a training never stopped, bit for bit.

    Args:
        parts: What the training changes.
        evaluations: Trains and yields; it starts after the ``parts.points`` it finds.
    """

    def __init__(self, parts: TrainingParts, evaluations: Iterator[Evaluation]) -> None:
        self._parts = parts
        self._evaluations = evaluations
        self._yielded = 0
        self._resumed_at = 0

    def __next__(self) -> Evaluation:
        evaluation = (
            self._parts.points[self._yielded]
            if self._yielded < len(self._parts.points)
            else next(self._evaluations)
        )
        self._yielded += 1
        return evaluation

    def close(self) -> None:
        """End the training, and the processes that load its data."""
        close = getattr(self._evaluations, "close", None)
        if close is not None:
            close()

    @property
    def resumed_at(self) -> int:
        """Evaluations that came from a loaded state; 0 without one."""
        return self._resumed_at

    @property
    def has_state(self) -> bool:
        """Whether `state_dict` can be asked for now.

        Not before the first evaluation that this training has made itself. Never where batches are
        drawn ahead of the step, so that there is no state between two steps: under `DeviceStep`
        (``graph=True``), and with a `LoaderBatches` with workers.
        """
        parts = self._parts
        if isinstance(parts.batches, LoaderBatches):
            apart = parts.batches.num_workers == 0
        else:
            apart = isinstance(parts.batches, DeviceBatches) and not parts.graph
        return apart and self._yielded == len(parts.points) > self._resumed_at

    def state_dict(self) -> dict[str, Any]:
        """Network, optimiser, sampler, random states and curve, safe for ``weights_only`` loading.

        The tensors are the training's own: save them before the next evaluation is asked for.

        Raises:
            ArgumentError: There is no state to be had now, see `has_state`.
        """
        parts = self._parts
        if not self.has_state:
            raise ArgumentError("this training has no state that could be saved now.")
        generator = _generator(parts.batches)
        return {
            "points": [dataclasses.asdict(point) for point in parts.points],
            "model": parts.model.state_dict(),
            "optimizer": parts.optimizer.state_dict(),
            "sampler": parts.sampler.sampler.state_dict(),
            "augmentation": None if generator is None else generator.get_state(),
            "random": _random_states(_device(parts.model)),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> Self:
        """Go on where `state_dict` was taken; only before the first evaluation.

        The learning rates of the optimiser stay: they are the schedule's peak.

        Raises:
            ArgumentError: The training has begun, or the state is of another one. What else a state
                that does not fit raises is up to its parts, which are then of no further use.
        """
        parts = self._parts
        points = [Evaluation(**point) for point in state["points"]]
        if self._yielded or parts.points:
            raise ArgumentError("a state must be loaded before the first evaluation.")
        if [point.steps for point in points] != list(parts.stops[: len(points)]) or not points:
            raise ArgumentError("the state is of a training that is evaluated at other steps.")
        peaks = [group["lr"] for group in parts.optimizer.param_groups]
        parts.model.load_state_dict(state["model"])
        parts.optimizer.load_state_dict(state["optimizer"])
        for group, peak in zip(parts.optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak
        parts.sampler.sampler.load_state_dict(state["sampler"])
        parts.sampler.seconds = points[-1].sampler_seconds
        generator = _generator(parts.batches)
        if generator is not None:
            generator.set_state(state["augmentation"])
        _set_random_states(_device(parts.model), state["random"])
        parts.points.extend(points)
        self._resumed_at = len(points)
        return self


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _generator(batches: Batches) -> torch.Generator | None:
    return batches.generator if isinstance(batches, DeviceBatches) else None


def _random_states(device: torch.device) -> dict[str, torch.Tensor]:
    """States of the generators that dropout and users' transforms draw from."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def _set_random_states(device: torch.device, states: Mapping[str, torch.Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
    elif device.type == "mps":
        torch.mps.set_rng_state(states["mps"])
