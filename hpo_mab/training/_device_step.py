"""A whole training step on the device, as one function that a CUDA graph can hold."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer

from hpo_mab.samplers._base import Draw
from hpo_mab.training._batches import DeviceBatches
from hpo_mab.training._loss_meter import LossMeter
from hpo_mab.training._precision import autocast
from hpo_mab.training._timed_sampler import TimedSampler

#: Steps before the capture: they make the optimiser's state and let libraries choose their kernels.
WARM_UP_STEPS = 3

_CAPTURING = threading.Lock()
_OF_THREAD = threading.local()


class DeviceStep:
    """Draw, gather, augment, forward, backward, optimise, reward: nothing waits for the host.

    On CUDA the step is captured in a graph after `WARM_UP_STEPS` steps and replayed from there on,
    which spares the launch of every kernel. Elsewhere, and with ``capture=False``, the very same
    function runs each time.

    A sampler that is ``capturable`` is part of the graph: it learns from the losses, and draws the
    batch of the *next* step, on a stream of its own beside the backward pass. Others draw before
    and learn after the graph. The learning rate is a tensor on the device, so that a schedule
    needs no other graph.

    Args:
        forward: The network, from inputs to logits [B, C], in training mode.
        batches: Training images on the device.
        sampler: Chooses the examples and learns from their losses.
        optimizer: Optimiser of the network's parameters.
        meter: Adds the losses up.
        label_smoothing: Share of the target spread over all classes.
        precision: ``"float32"`` or ``"bfloat16"``.
        capture: Whether to capture a graph where that is possible: on CUDA, with a fused
            optimiser.
    """

    def __init__(
        self,
        *,
        forward: Callable[[Tensor], Tensor],
        batches: DeviceBatches,
        sampler: TimedSampler,
        optimizer: Optimizer,
        meter: LossMeter,
        label_smoothing: float = 0.0,
        precision: str = "float32",
        capture: bool = True,
    ) -> None:
        self._forward = forward
        self._batches = batches
        self._sampler = sampler
        self._optimizer = optimizer
        self._meter = meter
        self._label_smoothing = label_smoothing
        self._precision = precision
        device = batches.data.device
        self._capture_wanted = capture and device.type == "cuda" and _is_fused(optimizer)
        if self._capture_wanted:
            _move_learning_rates(optimizer, device)
        self._stream: torch.cuda.Stream | None = None
        self._side: torch.cuda.Stream | None = None
        if self._capture_wanted:
            self._stream, self._side = _streams(device)
        self._inside = sampler.sampler.capturable
        #: The batch of the step, in memory that never moves.
        self._held: Draw | None = None
        self._outputs: tuple[Tensor, Tensor, Tensor] | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._done = 0

    @property
    def captured(self) -> bool:
        """Whether steps are replayed from a graph by now."""
        return self._graph is not None

    def __call__(self, *, step: int) -> None:
        """Take one optimiser step; ``step`` counts from 1."""
        if not self._inside or self._held is None:
            self._hold(self._sampler.next_draw())
        if self._graph is None and self._capture_wanted and self._done >= WARM_UP_STEPS:
            self._capture()
        if self._graph is not None:
            self._graph.replay()
        else:
            with self._apart():
                self._body()
        if not self._inside and self._outputs is not None:
            losses, logits, targets = self._outputs
            self._sampler.update(losses, logits=logits, targets=targets)
        self._done += 1
        self._meter.count(step=step)

    def _body(self) -> None:
        """The step itself: everything here is an operation on tensors that never move."""
        held = self._held
        if held is None or held.weights is None:
            raise RuntimeError("a step needs a batch drawn before it")
        # The backward pass needs them after the next draw has come in their place.
        weights = held.weights.clone()
        inputs, targets = self._batches.fetch(held.indices)
        with autocast(inputs.device, self._precision):
            logits = self._forward(inputs)
        logits = logits.float()
        self._sampler.sampler.check_outputs(logits)
        losses = F.cross_entropy(
            logits, targets, reduction="none", label_smoothing=self._label_smoothing
        )
        outputs = losses.detach(), logits.detach(), targets
        # Held until the end: memory given back could be another kernel's before the sampler read.
        self._outputs = outputs
        if self._inside:
            with self._beside():
                self._sampler.update(outputs[0], logits=outputs[1], targets=targets)
                self._hold(self._sampler.next_draw())
        self._optimizer.zero_grad(set_to_none=True)
        (losses * weights).mean().backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._meter.accumulate(outputs[0])
        self._join()

    def _hold(self, draw: Draw) -> None:
        """Move a draw into the memory of the first one."""
        weights = torch.ones_like(draw.indices, dtype=torch.float32)
        if draw.weights is not None:
            weights.copy_(draw.weights)
        device = self._batches.data.device
        if self._held is None:
            self._held = Draw(draw.indices.to(device, copy=True), weights.to(device))
            if self._inside:
                self._held.context = draw.context.clone()
        else:
            self._held.indices.copy_(draw.indices, non_blocking=True)
            self._weights().copy_(weights, non_blocking=True)
            if self._inside:
                self._held.context.copy_(draw.context)
        if self._inside:
            # What waits for its losses must be found where the next replay looks for it.
            draw.indices, draw.context = self._held.indices, self._held.context
            draw.weights = None if draw.weights is None else self._held.weights

    def _weights(self) -> Tensor:
        if self._held is None or self._held.weights is None:
            raise RuntimeError("a step needs a batch drawn before it")
        return self._held.weights

    def _capture(self) -> None:
        graph = torch.cuda.CUDAGraph()
        for generator in (self._batches.generator, self._sampler.sampler.graph_generator):
            if generator is not None:
                graph.register_generator_state(generator)
        # Other threads of the process may train on the same device, but one captures at a time.
        with (
            _CAPTURING,
            torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"),
        ):
            self._body()
        self._graph = graph

    @contextlib.contextmanager
    def _apart(self) -> Iterator[None]:
        """On the stream that captures later, which the libraries' workspaces belong to."""
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            yield
        torch.cuda.current_stream().wait_stream(self._stream)

    @contextlib.contextmanager
    def _beside(self) -> Iterator[None]:
        """On a stream of its own, while the backward pass runs on the current one."""
        if self._side is None:
            yield
            return
        self._side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._side):
            yield

    def _join(self) -> None:
        if self._side is not None and self._inside:
            torch.cuda.current_stream().wait_stream(self._side)


def _streams(device: torch.device) -> tuple[torch.cuda.Stream, torch.cuda.Stream]:
    """This thread's two streams on a device, made once.

    PyTorch hands out 32 streams of a priority in turn. A new pair for each training would before
    long be what another thread captures or replays on, and its work end up in the other's graph.
    Of the priority that hardly anybody asks for, so that these 32 are ours: 16 threads' worth.
    """
    made: dict[torch.device, tuple[torch.cuda.Stream, torch.cuda.Stream]]
    made = _OF_THREAD.__dict__.setdefault("streams", {})
    if device not in made:
        made[device] = (_new_stream(device), _new_stream(device))
    return made[device]


def _new_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]


def _is_fused(optimizer: Optimizer) -> bool:
    """Whether all of a step is one kernel that reads the learning rate on the device."""
    return all(group.get("fused") for group in optimizer.param_groups)


def _move_learning_rates(optimizer: Optimizer, device: torch.device) -> None:
    for group in optimizer.param_groups:
        group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float32, device=device).clone()
        if "capturable" in group:
            group["capturable"] = True
