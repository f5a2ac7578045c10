"""One training on a budget: its learning curve, and its state between two evaluations."""

from __future__ import annotations

import contextlib
import dataclasses
import time
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any, Self, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from hpo_mab._errors import ArgumentError, plain_arguments, require
from hpo_mab.samplers._base import BatchSampler
from hpo_mab.samplers._feedback import copied_to
from hpo_mab.training._average import WeightAverage, full_state, load_full_state
from hpo_mab.training._batches import Batches, DeviceBatches, LossMeter, Sweep, TimedSampler
from hpo_mab.training._device import (
    check_index_range,
    check_precision,
    logits_of,
    random_states,
    set_random_states,
    synchronize,
    to_channels_last,
    why_no_graph,
)
from hpo_mab.training._device_step import DeviceStep
from hpo_mab.training._evaluate import evaluate
from hpo_mab.training._optimizers import require_trainable, set_rates
from hpo_mab.training._schedule import CurveArguments, Evaluation, LearningCurve, TrainingDiverged
from hpo_mab.training._tally import ExampleTally


class Training(Iterator[Evaluation]):
    """Trains a model to a budget; iterate over it for the learning curve.

    Training begins when the first evaluation is requested; each further one trains up to it. No
    step waits for the device: losses are read at evaluations only. The sampler gets the same
    per-example losses that are trained on, label smoothing included.

    Evaluations before the last use the averaged weights, which predict the end of a training better
    than the trained weights. The last evaluates the trained weights if the learning rate has
    decayed, else the averaged ones.

    After an evaluation `state_dict` is the whole state. A training with the same arguments, or with
    more ``budgets``, that loads it continues; `resumed` has the earlier evaluations. On the same
    kind of CPU the curve, except its seconds, is bit for bit that of a training never stopped.
    Random generators that the network keeps itself are not part of the state.

    Args:
        model: Network from inputs to logits [B, C], on the device of ``batches``.
        batches: Training examples, `DeviceBatches` or `LoaderBatches`.
        validation: Examples to evaluate on, `DeviceSweep` or `LoaderSweep`.
        early: Examples of the evaluations within a budget; None takes ``validation``.
        sampler: Chooses the examples of each batch and learns from their losses.
        optimizer: Optimiser of the model's parameters; its learning rates are the schedule's peak.
        steps: Budget in optimiser steps, at least 1.
        evaluations: Points of the learning curve, equally spaced, the last at the budget's end.
        warmup: Share of the steps to warm the learning rate up over, in [0, 1).
        schedule: ``"linear"`` decay after the warm-up, or ``"constant"``.
        average: Window of the `WeightAverage` as a share of the steps so far, in [0, 1]; 0 keeps
            none, and every evaluation is that of the trained weights.
        keep: ``"trained"``, or ``"better"``: the last evaluation evaluates both the trained and the
            averaged weights. The training ends with those of the higher accuracy.
        label_smoothing: Share of the target spread over all classes, in [0, 1).
        budgets: Length in budgets, at least 1; above 1 only with the constant schedule.
        precision: ``"float32"``, or ``"bfloat16"`` for mixed precision.
        channels_last: Whether the model has the memory format channels last; its inputs may have
            either. About a third faster on CPUs, and for bfloat16 on GPUs.
        graph: Whether steps may be replayed from a CUDA graph; `loop_reason` is why they are not.
            If the graph draws the batches, ``sampler_seconds`` is 0.
        tally: Adds up each example's visits; None adds nothing up.
        clock: Returns seconds.

    Raises:
        ArgumentError: An argument outside its bound.
        UnknownNameError: No such precision, schedule or ``keep``.
        TrainingDiverged: A loss is no longer finite, raised by the iterator.

    Examples:
        >>> from torch import nn
        >>> from hpo_mab.data import Normalization, load_splits
        >>> from hpo_mab.samplers import create
        >>> from hpo_mab.training import DeviceBatches, DeviceSweep, Training, create_optimizer
        >>> splits = load_splits("digits")
        >>> scale = Normalization(splits.mean, splits.std)
        >>> batches = DeviceBatches(splits.train, normalization=scale)
        >>> validation = DeviceSweep(splits.validation, normalization=scale)
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> training = Training(
        ...     network,
        ...     batches=batches,
        ...     validation=validation,
        ...     sampler=create("mab", splits.train.labels, batch_size=64),
        ...     optimizer=create_optimizer("sgd", network.parameters(), lr=0.1),
        ...     steps=20,
        ...     evaluations=2,
        ... )
        >>> [point.steps for point in training]
        [10, 20]
    """

    @plain_arguments
    def __init__(
        self,
        model: nn.Module,
        *,
        batches: Batches,
        validation: Sweep,
        early: Sweep | None = None,
        sampler: BatchSampler,
        optimizer: Optimizer,
        steps: int,
        precision: str = "float32",
        channels_last: bool = False,
        graph: bool = False,
        tally: ExampleTally | None = None,
        clock: Callable[[], float] = time.perf_counter,
        **curve: Unpack[CurveArguments],
    ) -> None:
        check_precision(precision)
        known = isinstance(optimizer, Optimizer)
        require(known, "optimizer", "a torch.optim.Optimizer", type(optimizer).__name__)
        require_trainable(model)
        if isinstance(batches, DeviceBatches):
            check_index_range(sampler, len(batches.data))
        self._curve = LearningCurve(steps=steps, **curve)
        self._device = next(model.parameters()).device
        wanted = graph and self._device.type == "cuda"
        self._loop_reason = why_no_graph(batches, sampler, optimizer) if wanted else None
        self._may_use_graph = wanted and self._loop_reason is None
        self.model = model
        self.sampler = sampler
        self._batches = batches
        self.tally = tally
        self._validation = validation
        self._early = validation if early is None else early
        #: Its seconds continue those of a loaded state.
        self._timed = TimedSampler(sampler, clock=clock)
        self._optimizer = optimizer
        self._precision = precision
        self._clock = clock
        if channels_last:
            # Before the average and a graph are made: both use the weights' memory as it is then.
            to_channels_last(model)
        window = self._curve.average
        self._average = WeightAverage(model, window=window) if window else None
        self._peaks = [float(group["lr"]) for group in optimizer.param_groups]
        self._device_step: DeviceStep | None = None
        #: Batches of the ordinary loop, from its first step on.
        self._stream: Generator[tuple[Tensor, Tensor]]
        #: The batch that a loaded state had drawn for its next step.
        self._drawn: Mapping[str, Any] | None = None
        self._meter = LossMeter(self._device)
        #: Evaluations of a loaded state; none without one.
        self.resumed: tuple[Evaluation, ...] = ()
        #: Seconds of the evaluations that this training has made itself.
        self.evaluation_seconds = 0.0
        #: Called with the share of steps done. On a CPU after each step; elsewhere at evaluations,
        #: which wait for the device.
        self.on_progress: Callable[[float], None] | None = None
        self._begun = self._closed = False
        self._at_end = contextlib.ExitStack()

    def __next__(self) -> Evaluation:
        if self._closed or self._curve.complete:
            self.close()
            raise StopIteration
        try:
            return self._advance()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the training, and the processes that load its data."""
        self._closed = True
        self._at_end.close()

    def __del__(self) -> None:
        # The loader's processes must end with a training that is deleted before its end.
        if hasattr(self, "_at_end"):
            self.close()

    @property
    def evaluations(self) -> int:
        """How many evaluations the training has in the end, those of a loaded state included."""
        return len(self._curve.stops)

    @property
    def captured(self) -> bool:
        """Whether steps are replayed from a CUDA graph by now."""
        return self._device_step is not None and self._device_step.captured

    @property
    def loop_reason(self) -> str | None:
        """Why a training on CUDA with ``graph`` takes steps without one; None otherwise.

        Whether a capture failed is known after the first evaluation.
        """
        return self._device_step.reason if self._device_step is not None else self._loop_reason

    def evaluate(self, sweep: Sweep) -> tuple[float, float]:
        """Accuracy and mean loss of the last evaluated weights on other examples."""
        return self._scores(sweep, averaged=self._curve.averaged)

    def network_state(self) -> dict[str, Any]:
        """The model's ``state_dict`` with the weights evaluated last; copies on the CPU."""
        means = self._average.weights() if self._average and self._curve.averaged else {}
        first: dict[int, str] = {}
        return {
            # Shared parameters have the average of their first name. Extra state may be no tensor.
            name: means.get(first.setdefault(id(own), name), own).detach().to("cpu", copy=True)
            if isinstance(own, Tensor)
            else own
            for name, own in self.model.state_dict(keep_vars=True).items()
        }

    def _advance(self) -> Evaluation:
        """Train up to the next stop and evaluate; the clock runs while training only."""
        done, seconds = self._curve.last_step, self._curve.last_seconds
        if not self._begun:
            self._begin()
        stop = self._curve.next_stop
        start, trained = self._clock(), None
        try:
            self._take_steps(done, stop)
            trained = self._clock() - start
            train_loss = self._meter.read(step=stop)
            point = self._evaluate(stop, seconds + trained, train_loss=train_loss)
        except TrainingDiverged as error:
            error.examples = (error.step - done) * self.sampler.batch_size
            error.seconds = self._clock() - start if trained is None else trained
            raise
        # On a CPU `_take_steps` has reported each step.
        if self.on_progress is not None and self._device.type != "cpu":
            self.on_progress(stop / self._curve.stops[-1])
        return point

    def _take_steps(self, done: int, stop: int) -> None:
        on_step = self.on_progress if self._device.type == "cpu" else None
        for step in range(done, stop):
            self._set_progress_and_rates(step)
            if self._device_step is not None:
                self._device_step(step=step + 1)
            else:
                self._loop_step(step + 1)
            if on_step is not None:
                on_step((step + 1) / self._curve.stops[-1])
        synchronize(self._device)

    def _begin(self) -> None:
        self._begun = True
        self.model.train(True)
        if self.sampler.asks_network:
            self._set_scorer()
        if self._may_use_graph and isinstance(self._batches, DeviceBatches):
            self._device_step = DeviceStep(
                forward=self.model,
                batches=self._batches,
                sampler=self._timed,
                optimizer=self._optimizer,
                meter=self._meter,
                average=self._average,
                tally=self.tally,
                drawn=self._drawn,
                label_smoothing=self._curve.label_smoothing,
                precision=self._precision,
            )
            return
        self._stream = self._batches.stream(self._timed)
        self._at_end.callback(self._stream.close)

    def _set_scorer(self) -> None:
        """Set the ``scorer`` of a sampler that chooses among candidates by their logits."""
        sampler: Any = self.sampler
        # A weak reference: otherwise sampler and network form a cycle, whose memory is not freed
        # before the next trial.
        training = weakref.proxy(self)
        sampler.scorer = lambda indices: training._score(indices)
        self._at_end.callback(setattr, sampler, "scorer", None)

    def _set_progress_and_rates(self, step: int) -> None:
        """Give sampler and optimiser the share of the budget that is spent before ``step``."""
        self.sampler.set_progress(self._curve.progress(step))
        factor = self._curve.schedule.factor(step)
        set_rates(self._optimizer, [peak * factor for peak in self._peaks])

    def _loop_step(self, number: int) -> None:
        """Take step ``number``, from 1."""
        inputs, targets = next(self._stream)
        logits = logits_of(self.model, inputs, precision=self._precision)
        self.sampler.check_outputs(logits)
        losses = F.cross_entropy(
            logits, targets, reduction="none", label_smoothing=self._curve.label_smoothing
        )
        if self.tally is not None:
            indices = copied_to(losses.device, self.sampler._outstanding[0].indices)
            self.tally.keep(indices, losses.detach(), logits.detach())
            self.tally.count()
        loss = self._timed.update(losses, logits=logits, targets=targets)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        if self._average is not None:
            self._average.update()
        self._meter.accumulate(losses.detach())
        self._meter.count(step=number)

    def _scores(self, sweep: Sweep, *, averaged: bool) -> tuple[float, float]:
        """Accuracy and loss of the averaged or the trained weights."""
        forward = self._average.forward() if averaged and self._average is not None else None
        return evaluate(self.model, sweep, precision=self._precision, forward=forward)

    def _evaluate(self, step: int, seconds: float, *, train_loss: float) -> Evaluation:
        """Add the evaluation after a step to the curve; returns it."""
        start = self._clock()
        sweep = self._validation if self._curve.next_is_last_of_budget else self._early
        results = [
            (averaged, *self._scores(sweep, averaged=averaged))
            for averaged in self._curve.weights_to_evaluate
        ]
        self.evaluation_seconds += self._clock() - start
        in_graph = self._device_step is not None and self._device_step.draws_in_graph
        return self._curve.add(
            *max(results, key=lambda result: result[1]),
            step=step,
            batch_size=self.sampler.batch_size,
            seconds=seconds,
            # If the graph draws the batches, replays are not timed.
            sampler_seconds=0.0 if in_graph else self._timed.seconds,
            train_loss=train_loss,
            learning_rate=float(self._optimizer.param_groups[0]["lr"]),
            statistics=self.sampler.statistics(),
        )

    def _score(self, indices: Tensor) -> Tensor:
        """Logits of unaugmented examples in evaluation mode, float32 [n, C]."""
        self.model.eval()
        with torch.no_grad():
            inputs = self._batches.inputs(indices)
            logits = logits_of(self.model, inputs, precision=self._precision)
        self.model.train(True)
        return logits

    @property
    def has_state(self) -> bool:
        """Whether `state_dict` can be called now.

        Only after the first evaluation that this training has made itself, and only with
        `DeviceBatches` or a `LoaderBatches` without workers: workers draw batches ahead.
        """
        on_demand = isinstance(self._batches, DeviceBatches) or self._batches.num_workers == 0
        return on_demand and len(self._curve.points) > len(self.resumed)

    def state_dict(self) -> dict[str, Any]:
        """Network, optimiser, sampler, random states and curve, safe for ``weights_only`` loading.

        The tensors are not copied: save them before the next evaluation is requested.

        Raises:
            ArgumentError: There is no state now, see `has_state`.
        """
        if not self.has_state:
            raise ArgumentError(
                "there is no state to save: it needs an evaluation that this training has just "
                "made, and no loader workers."
            )
        generator = self._generator
        step = self._device_step
        with contextlib.nullcontext() if step is None else step.between_steps() as drawn:
            return {
                "points": [dataclasses.asdict(point) for point in self._curve.points],
                **full_state(self.model),
                "optimizer": self._optimizer.state_dict(),
                "sampler": self.sampler.state_dict(),
                "average": None if self._average is None else self._average.state_dict(),
                "augmentation": None if generator is None else generator.get_state(),
                "random": random_states(self._device),
                "drawn": drawn,
                "examples": None if self.tally is None else self.tally.tensors(),
            }

    def load_state_dict(self, state: Mapping[str, Any]) -> Self:
        """Continue where `state_dict` was taken; only before the first evaluation.

        The learning rates of the optimiser stay: they are the schedule's peak.

        Raises:
            ArgumentError: The training has begun, or the state is of another one. Parts that a
                state does not fit raise other errors; the training cannot be used after that.
        """
        points = self._stored_points(state)
        load_full_state(self.model, state)
        self._optimizer.load_state_dict(state["optimizer"])
        for group, peak in zip(self._optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak
        self.sampler.load_state_dict(state["sampler"])
        self._timed.seconds = points[-1].sampler_seconds
        if self._average is not None:
            self._average.load_state_dict(state["average"])
        if self._generator is not None:
            self._generator.set_state(state["augmentation"].cpu())
        set_random_states(self._device, state["random"])
        if self.tally is not None and state["examples"] is not None:
            self.tally.load(state["examples"])
        self._drawn = state["drawn"]
        self._curve.points.extend(points)
        self.resumed = tuple(points)
        return self

    def _stored_points(self, state: Mapping[str, Any]) -> list[Evaluation]:
        """The points of a state, which must be of this training."""
        if self._curve.points:
            raise ArgumentError("a state must be loaded before the first evaluation.")
        points = self._curve.checked_points(state["points"])
        if (state["average"] is None) != (self._average is None):
            raise ArgumentError("the state is of a training with another average.")
        if state["drawn"] is not None and not self._may_use_graph:
            reason = self.loop_reason or "it is not on CUDA, or graph is False"
            text = f"the state is of a training by captured steps; this one takes none: {reason}."
            raise ArgumentError(text)
        return points

    @property
    def _generator(self) -> torch.Generator | None:
        return self._batches.generator if isinstance(self._batches, DeviceBatches) else None
