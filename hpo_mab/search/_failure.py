"""Why a trial failed, in one line."""

from __future__ import annotations

from hpo_mab._memory import memory_reason

_TRACEBACK = "Traceback (most recent call last):"


def failure_reason(error: BaseException) -> str:
    """The kind of an error and the first line of what it says.

    An error of a data-loading process arrives with that process's traceback as its message; the
    reason is what it says at its end. A lack of memory is told alike, whoever ran out of it.
    """
    text = f"{type(error).__name__}: {error}".strip()
    starved = memory_reason(error)
    head, mark, traceback = text.rpartition(_TRACEBACK)
    if mark and "DataLoader worker" in head:
        # Frames are indented; the error itself is the first line that is not.
        said = [line for line in traceback.splitlines() if line and not line[0].isspace()]
        if said:
            return f"{starved or said[0]} (in a data-loading process)"
    return starved or text.splitlines()[0]
