"""A function on the device that CUDA replays from a graph once it has run a few times."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

import torch

#: Calls before the capture: they make the optimiser's state and let libraries choose their kernels.
WARM_UP_CALLS = 3

_CAPTURING = threading.Lock()
_OF_THREAD = threading.local()


class Captured:
    """Calls a function; on CUDA after `WARM_UP_CALLS` calls, replays it from a graph.

    A replay spares the launch of every kernel. The function is the same in each call, may not wait
    for the host, and reads and writes the same memory. Where it cannot be captured, it is called
    as before.

    Args:
        device: Where its tensors are.
        generators: Random generators that it draws from, besides the device's default one.
        capture: Whether to capture a graph where that is possible: on CUDA.

    Attributes:
        reason: Why the function could not be captured; None as long as nothing failed.
    """

    def __init__(
        self,
        *,
        device: torch.device,
        generators: tuple[torch.Generator | None, ...] = (),
        capture: bool = True,
    ) -> None:
        self._generators = generators
        self._wanted = capture and device.type == "cuda"
        self._stream: torch.cuda.Stream | None = None
        self._side: torch.cuda.Stream | None = None
        if self._wanted:
            self._stream, self._side = _streams(device)
        self._forked = False
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
            body: The function; not kept, so that nothing it holds outlives its owner.
            undo: Restores on the host what the function had changed when a capture failed.
        """
        if self._graph is None and self._wanted and self._calls >= WARM_UP_CALLS:
            self._try_capture(body, undo)
        if self._graph is not None:
            self._graph.replay()
        else:
            with self._apart():
                body()
        self._calls += 1

    @contextlib.contextmanager
    def at_the_same_time(self) -> Iterator[None]:
        """Within the function: on a stream of its own, until `join`."""
        if self._side is None:
            yield
            return
        self._forked = True
        self._side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._side):
            yield

    def join(self) -> None:
        """Within the function: wait on the device for what ran at the same time, if anything."""
        # A capture may not wait for a stream that has no part in it.
        if self._side is not None and self._forked:
            torch.cuda.current_stream().wait_stream(self._side)
            self._forked = False

    def _try_capture(self, body: Callable[[], None], undo: Callable[[], None]) -> None:
        """Capture a graph, or call the function from now on and keep the reason."""
        generators = [generator for generator in self._generators if generator is not None]
        generators.append(torch.cuda.default_generators[torch.cuda.current_device()])
        states = [generator.clone_state() for generator in generators]
        try:
            self._capture(body)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            # Nothing ran on the device while capturing, but generators still await a graph.
            for generator, state in zip(generators, states, strict=True):
                generator.graphsafe_set_state(state)
            undo()
            self._wanted = self._forked = False
            self.reason = str(error).strip().partition("\n")[0]

    def _capture(self, body: Callable[[], None]) -> None:
        graph = torch.cuda.CUDAGraph()
        for generator in self._generators:
            if generator is not None:
                graph.register_generator_state(generator)
        # Other threads of the process may train on the same device, but one captures at a time.
        with (
            _CAPTURING,
            torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"),
        ):
            body()
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
