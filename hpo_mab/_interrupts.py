"""When Ctrl-C is raised: deferred while the database is in use, at once in waits and training."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType


@dataclasses.dataclass
class _Interrupts:
    """Ctrl-C while it is deferred: whether it was pressed, and whether it is raised at once."""

    pressed: bool = False
    raised_at_once: bool = False
    process: int = dataclasses.field(default_factory=os.getpid)

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        # The second Ctrl-C is raised at once.
        again = self.pressed and number == signal.SIGINT
        self.pressed = True
        # A forked process inherits this handler, but has no loop that raises Ctrl-C later.
        if self.raised_at_once or again or os.getpid() != self.process:
            raise KeyboardInterrupt


#: Of the main thread; None while Ctrl-C is not deferred.
_interrupts: _Interrupts | None = None


@contextlib.contextmanager
def deferred_interrupts() -> Iterator[Callable[[], bool]]:
    """Raise Ctrl-C only within `interruptible`, or when it is pressed again.

    Within a call to the database, Ctrl-C could leave a lock held or a transaction open.
    SQLAlchemy may also replace it with an error of its own, and Ctrl-C is lost.
    Nothing changes in other threads, and for signals that have another handler than Python's.

    Yields:
        A function that returns whether Ctrl-C was pressed.
    """
    global _interrupts
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    outer = _interrupts
    # A nested loop of trials uses the handler of the outer one.
    mine = outer or _Interrupts()
    before, mine.raised_at_once = mine.raised_at_once, False
    deferred = [
        number
        for number in (signal.SIGINT, signal.SIGTERM)
        if signal.getsignal(number) is signal.default_int_handler
    ]
    try:
        _interrupts = mine
        for number in deferred:
            signal.signal(number, mine.on_signal)
        yield lambda: mine.pressed
    finally:
        _interrupts, mine.raised_at_once = outer, before
        for number in deferred:
            if signal.getsignal(number) == mine.on_signal:
                signal.signal(number, signal.default_int_handler)


def raise_if_interrupted() -> None:
    """Raise Ctrl-C that was pressed while it was deferred."""
    with interruptible():
        pass


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """A part of `deferred_interrupts` in which Ctrl-C is raised at once: a wait, or training.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed, now or before. An error that it led to is chained as
            its cause: at a terminal Ctrl-C also ends the processes that load data.
    """
    mine = _interrupts
    if mine is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = mine.raised_at_once
    try:
        mine.raised_at_once = True
        if not mine.pressed:
            yield
        # Checked again: Python discards a KeyboardInterrupt that is raised in a finaliser.
        if mine.pressed:
            raise KeyboardInterrupt
    except Exception as error:
        if mine.pressed:
            raise KeyboardInterrupt from error
        raise
    finally:
        mine.raised_at_once = before


#: Whether the termination signal is treated like Ctrl-C.
_stoppable = False


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Treat the termination signal, which schedulers and containers send, like Ctrl-C."""
    global _stoppable
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _watch_forks()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        _stoppable = True
        yield
    finally:
        _stoppable = False
        signal.signal(signal.SIGTERM, before)


@functools.cache
def _watch_forks() -> None:
    if hasattr(os, "register_at_fork"):  # Not on Windows.
        os.register_at_fork(after_in_child=_let_sigterm_end)


def _let_sigterm_end() -> None:
    """In a forked child, such as one of a user's `multiprocessing.Pool`: SIGTERM ends it."""
    if _stoppable:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def interrupt_at_eof() -> None:
    """Send this process the termination signal as soon as its standard input closes.

    Not Ctrl-C: a scheduler may have sent one to all processes of the job. A second Ctrl-C would be
    raised at once, perhaps while the database is in use.
    """

    def wait() -> None:
        # Not sys.stdin: its buffer's lock must be free when the interpreter ends.
        while os.read(0, 4096):
            pass
        if os.name == "nt":  # There `os.kill` ends the process.
            signal.raise_signal(signal.SIGTERM)
        else:
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="until-eof", daemon=True).start()
