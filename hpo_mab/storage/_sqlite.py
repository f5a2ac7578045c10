"""How SQLite is asked to write: without waiting for the disk at every small step."""

from __future__ import annotations

import contextlib
import sqlite3
from typing import Any


class JournalledConnection(sqlite3.Connection):
    """A connection that writes ahead to a journal beside the database (``-wal``).

    A commit then waits for nobody who reads, and not for the disk, where the usual way waits for it
    several times. A process that is killed loses nothing. A machine that loses power may lose the
    last moments, trials that then count as cut off; the database stays whole. The journal is
    merged into the database when the last connection closes.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        # Where the file system cannot do it, or the file is not ours to change, all stays as it is.
        with contextlib.suppress(sqlite3.Error):
            (mode,) = self.execute("PRAGMA journal_mode = WAL").fetchone()
            if mode == "wal":
                self.execute("PRAGMA synchronous = NORMAL")
