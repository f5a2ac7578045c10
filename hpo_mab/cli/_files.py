"""The files that a command writes."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path

from hpo_mab._errors import ArgumentError

#: How every SQLite database begins.
_SQLITE = b"SQLite format 3\0"


def write_file(path: Path, content: str | bytes) -> None:
    """Write a file that the user requested."""
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    real = path.resolve()
    # Another process may write the same file, and another user may prepare a name that is known.
    part = real.with_name(f".{secrets.token_hex(8)}.part")
    try:
        if path.exists() and not path.is_file():
            # A device, such as /dev/stdout.
            path.write_bytes(data)
            return
        part.touch()
        with contextlib.suppress(FileNotFoundError, PermissionError):
            shutil.copymode(real, part)
        # A disk that is full leaves the earlier file as it is.
        part.write_bytes(data)
        part.replace(real)
    except OSError as error:
        missing = error.errno in (errno.ENOENT, errno.ENOTDIR)
        hint = " Give a file in an existing folder." if missing else ""
        raise ArgumentError(f"{path} cannot be written: {error.strerror}.{hint}") from None
    finally:
        # It is there after an error only; if the folder is a file, not even then.
        with contextlib.suppress(OSError):
            part.unlink()


def _is_database(path: Path) -> bool:
    with contextlib.suppress(OSError), path.open("rb") as file:
        return file.read(len(_SQLITE)) == _SQLITE
    return False


def refuse_unwritable(*paths: Path | None, read: Sequence[str] = ()) -> None:
    """Refuse, before anything runs, output files that cannot be written, or that ``read`` names."""
    records = [Path(name) for name in read if name.endswith(".json") and Path(name).is_file()]
    for path in filter(None, paths):
        if path.is_file() and any(map(path.samefile, records)):
            raise ArgumentError(f"{path} is the record that is read; give another file.")
        if path.is_dir():
            raise ArgumentError(f"{path} is a folder; give a file to write.")
        if path.exists() and not os.access(path, os.W_OK):
            raise ArgumentError(f"{path} is read-only; give another file.")
        if path.is_file() and _is_database(path):
            raise ArgumentError(f"{path} is a database; give another file.")
        if path.exists() and not path.is_file():
            # A device, such as /dev/null, is not replaced.
            continue
        folder = path.resolve().parent
        if not os.access(folder, os.W_OK | os.X_OK):
            raise ArgumentError(
                f"{path} cannot be written: {folder} is not a writable folder. "
                "Give a file in one that is."
            )
