"""A function that a CUDA graph replays, once it has been captured."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator

import torch

from hpo_mab._errors import memory_reason

#: Calls before the capture: the optimiser makes its state, and libraries choose their kernels.
WARM_UP_CALLS = 3

_CAPTURING = threading.Lock()
_OF_THREAD = threading.local()

#: The main stream and the second one of a `Captured`.
_Streams = tuple[torch.cuda.Stream, torch.cuda.Stream]


def register_generators(graph: torch.cuda.CUDAGraph, *generators: torch.Generator | None) -> None:
    """Register the random generators of a graph; from 2.14 on PyTorch does so, and warns."""
    # The version compares by its numbers.
    if torch.__version__ < "2.14":
        for generator in generators:
            if generator is not None:
                graph.register_generator_state(generator)


class Captured:
    """Calls a function; on CUDA after `WARM_UP_CALLS` calls, replays it from a graph.

    A replay launches all kernels at once. The function must be the same in each call, and read and
    write the same memory. It must not make the host wait for the device. If it cannot be captured,
    it is called without a graph.

    ``generators`` are those of the function, in addition to the device's default one. ``reason`` is
    why the function could not be captured; None as long as nothing failed.
    """

    def __init__(
        self,
        *,
        device: torch.device,
        generators: tuple[torch.Generator | None, ...] = (),
        capture: bool = True,
    ) -> None:
        self._device = device
        self._generators = generators
        self._may_capture = capture and device.type == "cuda"
        self._stream: torch.cuda.Stream | None = None
        self._second_stream: torch.cuda.Stream | None = None
        if self._may_capture:
            self._stream, self._second_stream = pair = _streams(device)
            weakref.finalize(self, _free_streams(device).append, pair)
        self._second_stream_used = False
        self._graph: torch.cuda.CUDAGraph | None = None
        self._calls = 0
        self.reason: str | None = None

    @property
    def captured(self) -> bool:
        """Whether calls are replayed from a graph by now."""
        return self._graph is not None

    def __call__(
        self, body: Callable[[], None], *, undo: Callable[[], None] = lambda: None
    ) -> None:
        """Call the function once.

        Args:
            body: The function; no reference is kept, so that its tensors are freed with its owner.
            undo: Restores the state on the host after a failed capture has called the function.
        """
        # PyTorch uses the streams of the current card, which may be another one.
        card = contextlib.nullcontext() if self._stream is None else torch.cuda.device(self._device)
        with card:
            if self._graph is None and self.is_warming_up and self._calls >= WARM_UP_CALLS:
                self._try_capture(body, undo)
            if self._graph is not None:
                self._graph.replay()
            else:
                with self._on_capture_stream():
                    body()
        self._calls += 1

    @property
    def is_warming_up(self) -> bool:
        """Whether calls are not replayed yet, and a later one is to capture the function."""
        return self._may_capture and self._graph is None

    def give_up(self, reason: str) -> None:
        """Do not capture the function."""
        self._may_capture = False
        self.reason = reason

    @contextlib.contextmanager
    def on_second_stream(self) -> Iterator[None]:
        """Within the function: launch kernels on a second stream, until `join`."""
        if self._second_stream is None:
            yield
            return
        self._second_stream_used = True
        self._second_stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._second_stream):
            yield

    def join(self) -> None:
        """Within the function: make the main stream wait for the second one, if it was used."""
        # CUDA raises if a capture waits for a stream that is not part of it.
        if self._second_stream is not None and self._second_stream_used:
            torch.cuda.current_stream().wait_stream(self._second_stream)
            self._second_stream_used = False

    def _try_capture(self, body: Callable[[], None], undo: Callable[[], None]) -> None:
        """Capture a graph; if that fails, store the reason and do not try again."""
        generators = [generator for generator in self._generators if generator is not None]
        generators.append(torch.cuda.default_generators[torch.cuda.current_device()])
        states = [generator.clone_state() for generator in generators]
        try:
            self._capture(body)
        except RuntimeError as error:
            # No kernel ran while capturing, but up to PyTorch 2.12 the generators' states still
            # count as capturing. Without their earlier states, the next draw would raise.
            for generator, state in zip(generators, states, strict=True):
                generator.graphsafe_set_state(state)
            undo()
            self._second_stream_used = False
            if isinstance(error.__context__, KeyboardInterrupt):
                raise error.__context__ from None
            if memory_reason(error) is not None:
                raise
            # The end of a failed capture may raise an error of its own, with the cause as context.
            cause = error.__context__ if isinstance(error.__context__, RuntimeError) else error
            self.give_up(str(cause).strip().partition("\n")[0])
            # Its traceback refers to this frame, and to those of the function with their tensors.
            del cause

    def _capture(self, body: Callable[[], None]) -> None:
        graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        register_generators(graph, *self._generators)
        try:
            # Other threads may train on the same device (up to PyTorch 2.12 without dropout), but
            # only one may capture at a time. The current stream is entered again: not all versions
            # return to it after a failure.
            with (
                _CAPTURING,
                torch.cuda.stream(torch.cuda.current_stream()),
                torch.cuda.graph(
                    graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"
                ),
            ):
                body()
        except BaseException:
            # Up to PyTorch 2.12, allocations after a failed capture still use its pool, and
            # `torch.cuda.empty_cache` raises. Later versions end that use: this call raises then.
            with contextlib.suppress(RuntimeError, AttributeError):
                torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)
                # A graph releases only the pool of a capture that has ended.
                torch._C._cuda_releasePool(torch.cuda.current_device(), pool)
            raise
        # Up to PyTorch 2.12 a capture begins by writing each generator's seed and an offset of 0,
        # on the capture's stream. Each replay writes its offset on the current stream. The current
        # stream waits here, so that the offset of 0 does not overwrite that of the first replay.
        if self._stream is not None:
            torch.cuda.current_stream().wait_stream(self._stream)
        self._graph = graph

    @contextlib.contextmanager
    def _on_capture_stream(self) -> Iterator[None]:
        """Launch on the capture's stream, because libraries allocate workspaces by stream."""
        if self._stream is None or self._second_stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            # After an error, too: the next training writes where launched kernels still do.
            for stream in (self._stream, self._second_stream):
                torch.cuda.current_stream().wait_stream(stream)


def _streams(device: torch.device) -> _Streams:
    """Two streams on a device that no other live `Captured` uses.

    PyTorch has 32 streams of each priority and returns them round robin. If each training took a
    new pair, it would soon get a stream on which another thread captures. Its kernels would then
    become part of that thread's graph. So a thread reuses its pairs. High priority is rarely used
    elsewhere, which leaves its 32 streams for 16 pairs.

    Some versions of PyTorch free a stream's cuBLAS workspace when a graph captured on it is
    deleted. Another graph of that stream would still write there.
    """
    free = _free_streams(device)
    return free.pop() if free else (_new_stream(device), _new_stream(device))


def _free_streams(device: torch.device) -> list[_Streams]:
    """This thread's pairs of streams on a device that no `Captured` uses now."""
    free: dict[torch.device, list[_Streams]] = _OF_THREAD.__dict__.setdefault("free", {})
    return free.setdefault(device, [])


def _new_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]
