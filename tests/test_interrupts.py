"""When Ctrl-C is raised."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading

import pytest

from hpo_mab._interrupts import deferred_interrupts, interruptible, stoppable


@pytest.mark.usefixtures("python_handler")
def test_ctrl_c_is_raised_at_the_next_wait() -> None:
    waited = False
    with deferred_interrupts() as was_pressed:
        assert not was_pressed()
        signal.raise_signal(signal.SIGINT)
        assert was_pressed()
        with pytest.raises(KeyboardInterrupt), interruptible():
            waited = True
    assert not waited
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


@pytest.mark.usefixtures("python_handler")
def test_ctrl_c_within_a_wait_and_a_second_one_are_raised_at_once() -> None:
    after = False
    with deferred_interrupts():
        with contextlib.suppress(KeyboardInterrupt), interruptible():
            signal.raise_signal(signal.SIGINT)
            after = True
        assert not after
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.usefixtures("python_handler")
def test_ctrl_c_that_a_finaliser_discards_is_raised_after_the_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Fragile:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    with deferred_interrupts(), pytest.raises(KeyboardInterrupt), interruptible():
        Fragile()


@pytest.mark.usefixtures("python_handler")
def test_an_error_after_ctrl_c_is_ctrl_c() -> None:
    # As of a DataLoader, whose processes Ctrl-C ends, too.
    def end_its_processes() -> None:
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        raise RuntimeError("a process has ended")

    with deferred_interrupts(), pytest.raises(KeyboardInterrupt) as caught, interruptible():
        end_its_processes()
    assert isinstance(caught.value.__cause__, RuntimeError)
    with deferred_interrupts(), pytest.raises(RuntimeError, match="another"), interruptible():
        raise RuntimeError("another")


def test_other_handlers_and_threads_keep_theirs() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: seen.append(number))
    try:
        with deferred_interrupts() as was_pressed:
            signal.raise_signal(signal.SIGINT)
            assert seen == [signal.SIGINT]
            assert not was_pressed()
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("python_handler")
def test_other_threads_defer_nothing() -> None:
    done = threading.Event()

    def loop() -> None:
        with deferred_interrupts() as was_pressed, interruptible():
            assert not was_pressed()
            done.set()

    with deferred_interrupts():
        signal.raise_signal(signal.SIGINT)
        thread = threading.Thread(target=loop)
        thread.start()
        thread.join()
        assert done.is_set()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("python_handler")
def test_a_loop_within_a_loop_hears_ctrl_c() -> None:
    def inner() -> None:
        with deferred_interrupts():
            signal.raise_signal(signal.SIGINT)
            with pytest.raises(KeyboardInterrupt), interruptible():
                pass

    with deferred_interrupts() as was_pressed:
        with pytest.raises(KeyboardInterrupt), interruptible():
            inner()
        assert was_pressed()


@pytest.mark.usefixtures("python_handler")
def test_a_child_process_is_interrupted_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with deferred_interrupts():
        monkeypatch.setattr(os, "getpid", lambda: -1)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_termination_signal_is_like_ctrl_c() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), stoppable():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before


_FORKS = """
import multiprocessing, time
from hpo_mab import _interrupts

fork = multiprocessing.get_context("fork")
asleep = fork.Event()

def sleep():
    asleep.set()
    time.sleep(600)

with _interrupts.stoppable(), _interrupts.deferred_interrupts():
    child = fork.Process(target=sleep)
    child.start()
    asleep.wait()
    child.terminate()
    child.join()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_termination_signal_ends_a_forked_child_without_a_traceback() -> None:
    command = [sys.executable, "-c", _FORKS]
    ended = subprocess.run(command, timeout=240, check=True, capture_output=True, text=True)
    assert ended.stderr == ""


_END_OF_INPUT = """
import os, signal, time
from hpo_mab import _interrupts

def on_signal(number, frame):
    handler(number, frame)
    handled.append(number)

with _interrupts.stoppable(), _interrupts.deferred_interrupts():
    signal.raise_signal(signal.SIGINT)
    handled, handler = [], signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, on_signal)
    {system}
    _interrupts.interrupt_at_eof()
    while not handled:
        time.sleep(0.01)
"""


#: There `os.kill` ends the process.
_WINDOWS = 'os.name, os.kill = "nt", lambda *_: os._exit(9)'


@pytest.mark.parametrize("system", ["pass", _WINDOWS])
def test_the_end_of_a_workers_input_is_no_second_ctrl_c(system: str) -> None:
    # A scheduler sends Ctrl-C to all processes of a job, and the first one then ends the others.
    command = [sys.executable, "-c", _END_OF_INPUT.format(system=system)]
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    assert ended.returncode == 0, ended.stderr
