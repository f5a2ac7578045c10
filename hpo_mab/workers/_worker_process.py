"""One worker as a child process: ``hpo-mab worker``, ended by closing its standard input."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence


class WorkerProcess:
    """A running worker.

    Its standard input is a pipe that says nothing: when it closes, because it is told to stop or
    because this process has died, the worker interrupts itself. A new session keeps the terminal's
    Ctrl-C from it.

    Args:
        arguments: Arguments of ``hpo-mab worker``.
        storage: The storage URL with its password; it travels in the environment, which other
            users cannot see.
    """

    def __init__(self, arguments: Sequence[str], *, storage: str) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", "hpo_mab", "worker", *arguments, "--quiet", "--until-eof"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            env={**os.environ, "HPO_MAB_STORAGE": storage},
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def status(self) -> int | None:
        """Exit status, negative for a signal; None while it runs."""
        return self._process.poll()

    def stop(self) -> None:
        """Ask it to end its trial as interrupted and go."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.close()

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()

    def last_words(self) -> str:
        """The last line it wrote to standard error; how it ended where there is none."""
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        if lines:
            return lines[-1].removeprefix("hpo-mab: ")
        return f"ended with status {self.status}"

    def close(self) -> None:
        """Give back its files."""
        self.stop()
        self._errors.close()
