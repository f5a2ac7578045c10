"""When Ctrl-C is raised, and how a signal ends a command."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from hpo_mab import _interrupts
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


@pytest.mark.parametrize("windows", [False, True])
def test_a_termination_signal_is_like_ctrl_c(
    monkeypatch: pytest.MonkeyPatch, windows: bool
) -> None:
    if windows:  # With Python 3.11 or older; it takes a pipe that blocks.
        monkeypatch.delattr(os, "set_blocking")
        monkeypatch.setattr(signal, "set_wakeup_fd", lambda *_, **__: -1)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), stoppable():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before


def test_ctrl_c_in_a_finaliser_is_not_reported(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)

    class Finalised:
        def __init__(self, error: type[BaseException]) -> None:
            self.error = error

        def __del__(self) -> None:
            raise self.error

    with stoppable():
        for error in (KeyboardInterrupt, ValueError):
            Finalised(error)
    assert "KeyboardInterrupt" not in (shown := capsys.readouterr().err)
    assert "ValueError" in shown


_DEAF = """
import sqlite3
from hpo_mab import _interrupts
_interrupts._SECONDS_TO_TIDY = 0.3
with _interrupts.stoppable():
    {call}
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_ends_a_process_that_cannot_handle_the_first(
    number: signal.Signals, tmp_path: Path, deaf: Any
) -> None:
    code = _DEAF.format(call=deaf.call)
    with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path) as child:
        try:
            while not deaf.has_begun():
                time.sleep(0.01)
            child.send_signal(number)
            while not deaf.has_taken_signals(child.pid):
                time.sleep(0.01)
            with pytest.raises(subprocess.TimeoutExpired):
                child.wait(0.5)
            child.send_signal(number)
            assert child.wait(120) == 130
        finally:
            child.kill()


@pytest.mark.usefixtures("python_handler")
def test_an_orderly_end_after_two_signals_is_not_interrupted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # On a machine that stands still for seconds, this process would end.
    monkeypatch.setattr(_interrupts, "_SECONDS_TO_TIDY", 600.0)
    presses = 0
    with stoppable():
        for _ in range(2):
            try:
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt:
                presses += 1
    assert presses == 2
    # It would end this process later.
    assert "second-ctrl-c" not in {thread.name for thread in threading.enumerate()}


_FORKS = """
import multiprocessing, os, sys, time
from hpo_mab import _interrupts
_interrupts._SECONDS_TO_TIDY = 0.1
fork = multiprocessing.get_context("fork")
asleep = fork.Event()

def sleep():
    asleep.set()
    time.sleep(600)

with _interrupts.stoppable():
    if not (forked := os.fork()):
        sys.exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(forked, 0)[1]) == 3
    for _ in range(2):
        child = fork.Process(target=sleep)
        child.start()
        asleep.wait()
        asleep.clear()
        child.terminate()
        child.join()
    fork.Process(target=sleep, daemon=True).start()
    time.sleep(0.5)  # Longer than the end after a second signal takes.
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_signals_of_forked_children_are_not_those_of_the_command() -> None:
    # The last one outlives the context, like the processes of a DataLoader.
    ended = subprocess.run([sys.executable, "-c", _FORKS], timeout=240, check=False)
    assert ended.returncode == 0


_END_OF_INPUT = """
import os, signal, time
from hpo_mab import _interrupts
_interrupts._SECONDS_TO_TIDY = 600

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
