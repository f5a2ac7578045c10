"""Signals that end a command the way Ctrl-C does."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
#: How long the second Ctrl-C leaves for an orderly end.
_SECONDS_TO_TIDY = 3.0


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Treat the termination signal, as schedulers and containers send it, like Ctrl-C.

    The second of them ends the process within seconds, even where Python cannot act on it: a
    library's or a driver's call may never return.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        with _second_is_final():
            yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _second_is_final() -> Iterator[None]:
    read_end, write_end = os.pipe()
    # Python's handlers wait for the main thread; Python writes to this pipe when the signal comes.
    os.set_blocking(write_end, False)
    before = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    over = threading.Event()
    listener = threading.Thread(target=_listen, args=(read_end, over), name="second-ctrl-c")
    listener.daemon = True
    listener.start()
    try:
        yield
    finally:
        over.set()
        signal.set_wakeup_fd(before)
        os.close(write_end)
        listener.join()
        os.close(read_end)


def _listen(read_end: int, over: threading.Event) -> None:
    received = 0
    while received < 2:
        number = os.read(read_end, 1)
        if not number:
            return
        received += number[0] in _SIGNALS
    if over.wait(_SECONDS_TO_TIDY):
        return
    if sys.stderr.isatty():
        os.write(2, b"\x1b[?25h")  # Progress hides the cursor.
    os._exit(130)


def interrupt_at_eof() -> None:
    """Send this process Ctrl-C as soon as its standard input closes."""

    def wait() -> None:
        # Not sys.stdin: its buffer's lock must be free when the interpreter ends.
        while os.read(0, 4096):
            pass
        os.kill(os.getpid(), signal.SIGINT)

    # A parent in the background of a shell ignores Ctrl-C, and so would its children.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=wait, name="until-eof", daemon=True).start()
