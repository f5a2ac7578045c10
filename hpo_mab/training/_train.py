"""The budgeted training loop."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from hpo_mab._errors import ArgumentError
from hpo_mab.samplers._base import BatchSampler
from hpo_mab.training._batches import Batches, DeviceBatches
from hpo_mab.training._device import synchronize
from hpo_mab.training._device_step import DeviceStep
from hpo_mab.training._evaluate import evaluate
from hpo_mab.training._evaluation import Evaluation
from hpo_mab.training._loss_meter import LossMeter, TrainingDiverged
from hpo_mab.training._precision import autocast, check_precision
from hpo_mab.training._schedule import LinearSchedule, evaluation_steps
from hpo_mab.training._sweeps import Sweep
from hpo_mab.training._timed_sampler import TimedSampler
from hpo_mab.training._training import Training, TrainingParts


def train(
    model: nn.Module,
    *,
    batches: Batches,
    validation: Sweep,
    sampler: BatchSampler,
    optimizer: Optimizer,
    steps: int,
    evaluations: int = 8,
    warmup: float = 0.1,
    label_smoothing: float = 0.0,
    precision: str = "float32",
    channels_last: bool = False,
    compile: bool = False,
    graph: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> Training:
    """Train a model to a budget, yielding its learning curve as it grows.

    Nothing is done until the first evaluation is asked for; closing the iterator ends the
    training. No step waits for the device: losses are read at evaluations only. The sampler is
    rewarded with the very loss that is trained on, per example, label smoothing included.

    Args:
        model: Network from inputs to logits [B, C], on the device of ``batches``.
        batches: Training examples.
        validation: Examples to evaluate on.
        sampler: Chooses the examples of each batch and learns from their losses.
        optimizer: Optimiser of the model's parameters; its learning rates are the schedule's peak.
        steps: Budget in optimiser steps, at least 1.
        evaluations: Points of the learning curve, equally spaced, the last at the budget's end.
        warmup: Share of the steps to warm the learning rate up over, in [0, 1).
        label_smoothing: Share of the target spread over all classes, in [0, 1).
        precision: ``"float32"``, or ``"bfloat16"`` for mixed precision.
        channels_last: Whether to lay the model out channels last; inputs of either layout work, and
            its outputs follow it. About a third faster on CPUs, and for bfloat16 on GPUs.
        compile: Whether to compile the training step's forward pass by ``torch.compile``.
        graph: Whether to take steps by `DeviceStep`, which on CUDA replays them from a graph; only
            with `DeviceBatches`. The sampler's own seconds are then part of the step's.
        clock: Returns seconds.

    Returns:
        Iterator over evaluations, whose state can be saved and loaded between two of them.

    Raises:
        ArgumentError: An argument outside its bound, raised by the call itself.
        TrainingDiverged: A loss is no longer finite, raised by the iterator.
    """
    check_precision(precision)
    if not 0.0 <= label_smoothing < 1.0:
        raise ArgumentError(f"label_smoothing must be in [0, 1), got {label_smoothing}.")
    if graph and not isinstance(batches, DeviceBatches):
        raise ArgumentError(f"graph needs DeviceBatches, got {type(batches).__name__}.")
    run = _Run(
        model=model,
        forward=torch.compile(model) if compile else model,
        batches=batches,
        validation=validation,
        sampler=TimedSampler(sampler, clock=clock),
        optimizer=optimizer,
        schedule=LinearSchedule(steps=steps, warmup=warmup),
        stops=evaluation_steps(steps, evaluations),
        label_smoothing=label_smoothing,
        precision=precision,
        channels_last=channels_last,
        graph=graph,
        clock=clock,
    )
    return Training(run, run.evaluations())


@dataclasses.dataclass(kw_only=True)
class _Run(TrainingParts):
    """One training under way."""

    forward: Callable[[Tensor], Tensor]
    validation: Sweep
    schedule: LinearSchedule
    label_smoothing: float
    precision: str
    channels_last: bool
    clock: Callable[[], float]
    peaks: list[float] = dataclasses.field(init=False)

    def evaluations(self) -> Iterator[Evaluation]:
        """Train from stop to stop; the clock runs while training only."""
        self._prepare()
        device = next(self.model.parameters()).device
        meter = LossMeter(device)
        last = self.points[-1] if self.points else None
        done, seconds = (last.steps, last.seconds) if last else (0, 0.0)
        with self._scoring(), self._stepper(meter) as take:
            for stop in self.stops[len(self.points) :]:
                start = self.clock()
                for step in range(done, stop):
                    self._spend(step)
                    take(step + 1, step + 1 == stop)
                synchronize(device)
                seconds += self.clock() - start
                done = stop
                self.points.append(
                    self._evaluation(done, seconds, train_loss=meter.read(step=done))
                )
                yield self.points[-1]

    @contextlib.contextmanager
    def _stepper(self, meter: LossMeter) -> Iterator[Callable[[int, bool], None]]:
        """What takes one step, given its number from 1 and whether an evaluation follows."""
        if self.graph and isinstance(self.batches, DeviceBatches):
            step = DeviceStep(
                forward=self.forward,
                batches=self.batches,
                sampler=self.sampler,
                optimizer=self.optimizer,
                meter=meter,
                label_smoothing=self.label_smoothing,
                precision=self.precision,
            )
            yield lambda number, last: step(step=number)
            return
        # A loader draws as it likes; and a sampler that asks the network asks that of the step.
        scores = hasattr(self.sampler.sampler, "scorer")
        draws_ahead = isinstance(self.batches, DeviceBatches) and not scores
        # Closing ends a loader's workers when the consumer stops early.
        with contextlib.closing(self.batches.stream(self.sampler)) as stream:

            def take(number: int, last: bool) -> None:
                ahead = number if draws_ahead and not last else None
                meter.add(self._step(*next(stream), ahead=ahead), step=number)

            yield take

    @contextlib.contextmanager
    def _scoring(self) -> Iterator[None]:
        """Lend the network to a sampler that chooses among candidates by what it says of them."""
        sampler = self.sampler.sampler
        if not hasattr(sampler, "scorer"):
            yield
            return
        sampler.scorer = self._score
        try:
            yield
        finally:
            # Each would hold the other, and the network its memory, into the next trial.
            sampler.scorer = None

    def _prepare(self) -> None:
        if self.channels_last:
            self.model.to(memory_format=torch.channels_last)
        self.model.train()
        self.peaks = [group["lr"] for group in self.optimizer.param_groups]

    def _spend(self, step: int) -> None:
        """Tell sampler and optimiser how much of the budget is spent before ``step``."""
        self._tell_progress(step)
        factor = self.schedule.factor(step)
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(peak * factor)
            else:
                group["lr"] = peak * factor

    def _tell_progress(self, step: int) -> None:
        self.sampler.sampler.set_progress(step / self.schedule.steps)

    def _step(self, inputs: Tensor, targets: Tensor, *, ahead: int | None) -> Tensor:
        """One optimiser step; returns the detached per-example losses [B].

        Args:
            inputs: Network inputs, [B, ...].
            targets: Labels, int64 [B].
            ahead: Step to draw the batch of before this one's backward pass; None for none.
        """
        with autocast(inputs.device, self.precision):
            logits = self.forward(inputs)
        logits = logits.float()
        self.sampler.sampler.check_outputs(logits)
        losses = F.cross_entropy(
            logits, targets, reduction="none", label_smoothing=self.label_smoothing
        )
        loss = self.sampler.update(losses, logits=logits, targets=targets)
        if ahead is not None:
            self._tell_progress(ahead)
            self.sampler.draw_ahead()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return losses.detach()

    def _evaluation(self, step: int, seconds: float, *, train_loss: float) -> Evaluation:
        accuracy, loss = evaluate(self.model, self.validation, precision=self.precision)
        if not math.isfinite(loss):
            raise TrainingDiverged(step, f"the validation loss is {loss}")
        statistics = self.sampler.sampler.statistics()
        return Evaluation(
            index=len(self.points) + 1,
            steps=step,
            examples=step * self.sampler.sampler.batch_size,
            seconds=seconds,
            sampler_seconds=self.sampler.seconds,
            accuracy=accuracy,
            loss=loss,
            train_loss=train_loss,
            learning_rate=float(self.optimizer.param_groups[0]["lr"]),
            reward_rate=statistics.get("reward_rate"),
            concentration=statistics.get("concentration"),
        )

    def _score(self, indices: Tensor) -> Tensor:
        """Logits of unaugmented examples in evaluation mode, float32 [n, C]."""
        self.model.eval()
        with torch.no_grad():
            inputs = self.batches.inputs(indices)
            with autocast(inputs.device, self.precision):
                logits = self.model(inputs)
        self.model.train()
        scores: Tensor = logits.float()
        return scores
