"""Functions that a CUDA graph replays; their graphs are tested where one can be captured."""

from __future__ import annotations

import contextlib
import gc
import threading
import weakref
from collections.abc import Callable
from unittest import mock

import pytest
import torch

from hpo_mab.training import _captured
from hpo_mab.training._captured import WARM_UP_CALLS, Captured


def test_an_error_that_ends_a_capture_does_not_hide_its_cause(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(body: Callable[[], None]) -> None:
        try:
            body()
        except BaseException:
            raise RuntimeError("the capture was invalidated")  # noqa: B904 - as CUDA's

    def run(error: BaseException) -> Captured:
        def body() -> None:
            if step._calls == WARM_UP_CALLS and step.reason is None:
                raise error

        step = Captured(device=torch.device("cpu"))
        step._may_capture = True
        monkeypatch.setattr(step, "_capture", fail)
        for _ in range(WARM_UP_CALLS + 1):
            step(body)
        return step

    monkeypatch.setattr(torch.cuda, "default_generators", [mock.Mock()])
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    found = run(RuntimeError("the network waits for the host"))
    assert found.reason == "the network waits for the host"
    with pytest.raises(KeyboardInterrupt):
        run(KeyboardInterrupt())
    with pytest.raises(RuntimeError, match="invalidated"):
        run(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))


def test_the_tensors_of_a_failed_capture_are_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(body: Callable[[], None]) -> None:
        body()
        raise RuntimeError("the network waits for the host")

    class Body:
        def __call__(self) -> None:
            self.outputs = torch.zeros(1)

    monkeypatch.setattr(torch.cuda, "default_generators", [mock.Mock()])
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    step, body = Captured(device=torch.device("cpu")), Body()
    step._may_capture = True
    monkeypatch.setattr(step, "_capture", fail)
    freed = weakref.ref(body)
    gc.disable()
    try:
        for _ in range(WARM_UP_CALLS + 1):
            step(body)
        del body
        assert freed() is None
    finally:
        gc.enable()
    assert step.reason == "the network waits for the host"


def test_live_functions_have_their_own_streams_and_later_ones_use_them_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_captured, "_OF_THREAD", threading.local())
    monkeypatch.setattr(_captured, "_new_stream", lambda device: object())
    first, second = (Captured(device=torch.device("cuda")) for _ in range(2))
    streams = {first._stream, first._second_stream, second._stream, second._second_stream}
    assert len(streams) == 4
    del first
    third = Captured(device=torch.device("cuda"))
    assert {third._stream, third._second_stream} == streams - {
        second._stream,
        second._second_stream,
    }


def test_after_an_error_later_work_waits_for_what_was_launched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    current = mock.Mock()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: current)
    monkeypatch.setattr(torch.cuda, "stream", contextlib.nullcontext)
    step = Captured(device=torch.device("cpu"))
    step._stream, step._second_stream = streams = [mock.Mock(), mock.Mock()]
    with pytest.raises(ValueError, match="broken"), step._on_capture_stream():
        raise ValueError("broken")
    assert current.wait_stream.call_args_list == [mock.call(stream) for stream in streams]


@pytest.mark.cuda
def test_a_graph_outlives_another_one() -> None:
    """PyTorch may free the workspace of the stream on which a graph was captured."""
    network = torch.nn.Linear(512, 512, device="cuda")
    inputs = torch.randn(256, 512, device="cuda")
    found = torch.empty_like(inputs)

    def body() -> None:
        found.copy_(network(inputs).detach())

    steps = [Captured(device=inputs.device) for _ in range(2)]
    for step in steps:
        for _ in range(WARM_UP_CALLS + 1):
            step(body)
        assert step.captured
    steps.pop(0)
    torch.cuda.empty_cache()
    # Memory that was freed is used and changed by others.
    other = torch.full((1 << 25,), float("nan"), device="cuda")
    found.zero_()
    steps[0](body)
    torch.testing.assert_close(found, network(inputs))
    del other
