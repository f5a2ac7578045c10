"""Files that a user asks a command to write."""

from __future__ import annotations

import os
from pathlib import Path

from hpo_mab._errors import ArgumentError


def write_text(path: Path, text: str) -> None:
    """Write a file the user asked for.

    Raises:
        ArgumentError: It cannot be written.
    """
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ArgumentError(
            f"{path} cannot be written: {error.strerror}. Name a file in a folder that exists."
        ) from None


def refuse_unwritable(*paths: Path | None) -> None:
    """Say before anything runs that a file cannot be written after it.

    Raises:
        ArgumentError: It is a folder, or its folder does not exist or must not be written to.
    """
    for path in paths:
        if path is not None and path.is_dir():
            raise ArgumentError(f"{path} is a folder; name a file to write.")
        if path is not None and not os.access(path.absolute().parent, os.W_OK | os.X_OK):
            raise ArgumentError(
                f"{path} cannot be written: {path.absolute().parent} is not a folder that can be "
                "written to. Name a file in one that is."
            )
