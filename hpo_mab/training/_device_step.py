"""A training step on the device, captured as a CUDA graph where that is possible."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from hpo_mab.samplers._feedback import Draw
from hpo_mab.training._average import NetworkWatch, WeightAverage
from hpo_mab.training._batches import DeviceBatches, LossMeter, TimedSampler
from hpo_mab.training._captured import Captured
from hpo_mab.training._device import logits_of
from hpo_mab.training._optimizers import is_fused
from hpo_mab.training._tally import ExampleTally


class DeviceStep:
    """A step: draw, gather, augment, forward, backward, optimise, reward. The host never waits.

    On CUDA, with a fused optimiser, the step is captured in a graph and replayed, see `Captured`.
    Elsewhere, and with ``capture=False``, the same function is called at each step.

    A ``capturable`` sampler is part of the graph. It learns from the losses and draws the *next*
    step's batch on a second stream, during the backward pass. Other samplers draw before and learn
    after the graph. The learning rate is a tensor on the device, so one graph serves the schedule.

    ``forward``, in training mode, returns logits [B, C]. ``drawn`` is what `between_steps` yielded
    when the state was saved; None begins a new training. ``precision`` is ``"float32"`` or
    ``"bfloat16"``.
    """

    def __init__(
        self,
        *,
        forward: nn.Module,
        batches: DeviceBatches,
        sampler: TimedSampler,
        optimizer: Optimizer,
        meter: LossMeter,
        average: WeightAverage | None = None,
        tally: ExampleTally | None = None,
        drawn: Mapping[str, Any] | None = None,
        label_smoothing: float = 0.0,
        precision: str = "float32",
        capture: bool = True,
    ) -> None:
        self._forward = forward
        self._batches = batches
        self._sampler = sampler
        self._optimizer = optimizer
        self._meter = meter
        self._average = average
        self._tally = tally
        self._label_smoothing = label_smoothing
        self._precision = precision
        device = batches.data.device
        capture = capture and device.type == "cuda" and is_fused(optimizer)
        if capture:
            _move_learning_rates(optimizer, device)
        own = sampler.sampler.graph_generator
        # Bandits may also be on the CPU, while the network is on another device.
        self._sampler_in_graph = (
            sampler.sampler.capturable and own is not None and own.device.type == device.type
        )
        self._captured_step = Captured(
            device=device,
            generators=(batches.generator, own if self._sampler_in_graph else None),
            capture=capture,
        )
        #: The batch of the step as tensors at fixed addresses, which a graph reads: ``indices``,
        #: ``weights`` and, of a sampler in the graph, ``context``. Empty before the first step.
        self._held: dict[str, Tensor] = {}
        self._outputs: tuple[Tensor, Tensor, Tensor] | None = None
        self._watch = NetworkWatch(forward)
        if drawn is not None:
            self._continue(drawn)
        optimizer.zero_grad(set_to_none=True)

    @property
    def captured(self) -> bool:
        """Whether steps are replayed from a graph by now."""
        return self._captured_step.captured

    @property
    def draws_in_graph(self) -> bool:
        """Whether the graph draws the batches, too."""
        return self.captured and self._sampler_in_graph

    @property
    def reason(self) -> str | None:
        """Why the network could not be captured; None as long as nothing failed."""
        return self._captured_step.reason

    def __call__(self, *, step: int) -> None:
        """Take one optimiser step; ``step`` counts from 1."""
        if not self._sampler_in_graph or not self._held:
            self._store_draw(self._sampler.next_draw())
        waiting = self._sampler.sampler._outstanding
        draws = list(waiting)

        def undo() -> None:
            waiting.clear()
            waiting.extend(draws)
            # A capture that fails after its backward pass leaves gradients without values.
            self._optimizer.zero_grad(set_to_none=True)

        def take() -> None:
            self._captured_step(self._body, undo=undo)

        if self._captured_step.is_warming_up:
            reason = self._watch.call(take, torch_draws=True)
            # After a capture, or one that failed, there is nothing to give up.
            if reason is not None and self._captured_step.is_warming_up:
                self._captured_step.give_up(reason)
        else:
            take()
        if not self._sampler_in_graph and self._outputs is not None:
            # Copies, because a sampler may keep them and the next replay overwrites these.
            losses, logits, targets = (one.clone() for one in self._outputs)
            self._sampler.update(losses, logits=logits, targets=targets)
        if self._tally is not None:
            self._tally.count()
        self._meter.count(step=step)

    def _body(self) -> None:
        """The step itself: operations on tensors at fixed addresses only."""
        indices = self._held["indices"]
        # Cloned: the backward pass needs the weights after the next draw has overwritten them.
        weights = self._held["weights"].clone()
        inputs, targets = self._batches.fetch(indices)
        logits = logits_of(self._forward, inputs, precision=self._precision)
        self._sampler.sampler.check_outputs(logits)
        losses = F.cross_entropy(
            logits, targets, reduction="none", label_smoothing=self._label_smoothing
        )
        outputs = losses.detach(), logits.detach(), targets
        # A reference is kept until the step's end. Without it a kernel of the main stream could get
        # the memory before the second stream's sampler reads it.
        self._outputs = outputs
        if self._tally is not None:
            with self._captured_step.on_second_stream():
                # Before the next draw overwrites the indices; both are on the second stream.
                self._tally.keep(indices, outputs[0], outputs[1])
        if self._sampler_in_graph:
            with self._captured_step.on_second_stream():
                self._sampler.update(outputs[0], logits=outputs[1], targets=targets)
                self._store_draw(self._sampler.next_draw())
        (losses * weights).mean().backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        # Here and not at the next step: a capture and evaluations need the memory.
        self._optimizer.zero_grad(set_to_none=True)
        if self._average is not None:
            self._average.update()
        self._meter.accumulate(outputs[0])
        self._captured_step.join()

    @contextlib.contextmanager
    def between_steps(self) -> Iterator[dict[str, Any] | None]:
        """Within the context the sampler has no outstanding draw, so that its state can be saved.

        Yields:
            The batch already drawn for the next step, as tensors; None if there is none.
        """
        waiting = self._sampler.sampler._outstanding
        draws = list(waiting)
        waiting.clear()
        try:
            yield {**self._held, "weighted": draws[0].weights is not None} if draws else None
        finally:
            waiting.extend(draws)

    def _continue(self, drawn: Mapping[str, Any]) -> None:
        """Restore the batch that was drawn before the state was saved."""
        device = self._batches.data.device
        names = ("indices", "weights", "context")
        held = self._held = {name: drawn[name].to(device, copy=True) for name in names}
        weights = held["weights"] if drawn["weighted"] else None
        waiting = Draw(held["indices"], weights, held["context"])
        self._sampler.sampler._outstanding.append(waiting)

    def _store_draw(self, draw: Draw) -> None:
        """Copy a draw into the memory that a graph reads."""
        ones = torch.ones_like(draw.indices, dtype=torch.float32)
        weights = ones if draw.weights is None else draw.weights.float()
        given = {"indices": draw.indices, "weights": weights}
        if self._sampler_in_graph:
            given["context"] = draw.context
        if not self._held:
            device = self._batches.data.device
            self._held = {name: tensor.to(device, copy=True) for name, tensor in given.items()}
        else:
            for name, tensor in given.items():
                held = self._held[name]
                held.copy_(tensor, non_blocking=held.is_cuda)  # See `copied_to`.
        if self._sampler_in_graph:
            # The next replay reads the outstanding draw at these addresses.
            draw.indices, draw.context = self._held["indices"], self._held["context"]
            draw.weights = None if draw.weights is None else self._held["weights"]


def _move_learning_rates(optimizer: Optimizer, device: torch.device) -> None:
    """Make learning rates tensors on the device: a graph reads them at each replay."""
    for group in optimizer.param_groups:
        group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float32, device=device).clone()
        if "capturable" in group:
            group["capturable"] = True
