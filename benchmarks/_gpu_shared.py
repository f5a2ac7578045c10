"""Helpers of the parts of `gpu.py`."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from hpo_mab.training._captured import register_generators


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        name: What was checked or measured.
        value: The result.
        target: The required value; empty without a target.
        met: Whether the target is met; None without a target.
    """

    name: str
    value: str
    target: str = ""
    met: bool | None = None


@dataclasses.dataclass(frozen=True)
class Place:
    """Where to run.

    Attributes:
        device: The device.
        tiny: Whether to use very small data and few steps.
        end: Time at which the part is stopped, by `time.perf_counter`.
    """

    device: torch.device
    tiny: bool = False
    end: float = math.inf

    @property
    def cuda(self) -> bool:
        """Whether the device is a CUDA device."""
        return self.device.type == "cuda"

    @property
    def left(self) -> float:
        """Seconds until the part is stopped."""
        return self.end - time.perf_counter()

    def pick(self, full: Any, tiny: Any) -> Any:
        """One of two sizes."""
        return tiny if self.tiny else full

    def wait(self) -> None:
        """Wait for the device."""
        if self.cuda:
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], Any], *, calls: int, warm_up: int = 3) -> float:
        """Mean seconds of a call, until the device has done them all."""
        for _ in range(warm_up):
            work()
        self.wait()
        started = time.perf_counter()
        for _ in range(calls):
            work()
        self.wait()
        return (time.perf_counter() - started) / calls

    def capture(
        self, work: Callable[[], Any], *generators: torch.Generator | None
    ) -> Callable[[], Any]:
        """A function that replays ``work`` from a CUDA graph; without CUDA, ``work`` itself."""
        if not self.cuda:
            return work
        graph = torch.cuda.CUDAGraph()
        register_generators(graph, *generators)
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            output = work()
        # The capture wrote the generators' offsets on its own stream.
        torch.cuda.synchronize()

        def replay() -> Any:
            graph.replay()
            return output

        return replay


@contextlib.contextmanager
def no_waiting(place: Place) -> Iterator[None]:
    """Raise an error if the host waits for the device."""
    if not place.cuda:
        yield
        return
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    try:
        torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
