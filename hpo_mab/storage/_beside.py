"""Where the files of a storage are kept."""

from __future__ import annotations

import os
from pathlib import Path

from hpo_mab.storage._open import Storage


def folder_beside(storage: Storage, what: str) -> Path:
    """The folder of a storage's files of one kind; it need not exist.

    ``HPO_MAB_<WHAT>`` if that is set; beside an SQLite file, named after it; otherwise
    ``hpo_mab_<what>`` in the working directory.

    Args:
        storage: The database.
        what: The kind of files, e.g. ``"artifacts"``.
    """
    chosen = os.environ.get(f"HPO_MAB_{what.upper()}")
    if chosen:
        return Path(chosen).expanduser()
    if storage.file is not None:
        return storage.file.with_name(f"{storage.file.stem}_{what}")
    return Path(f"hpo_mab_{what}")
