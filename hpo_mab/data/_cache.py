"""Decoded arrays on disk, memory-mapped so that many workers share them and start fast."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpo_mab.data._images import ImageData

#: Folder of the cache inside a data root.
CACHE_FOLDER = ".hpo_mab_cache"
_FORMAT = 2


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """What a decoder made of its source files.

    Attributes:
        parts: Images by part: ``"train"``, ``"test"`` and, where validation images come with the
            data set, ``"validation"``; all of the same classes.
        sides: Smallest and largest shorter side of the source images in pixels, if they were
            scaled.
        warnings: What the user is warned of each time the data set is loaded.
        notes: What was taken and what was passed over, a sentence each; not kept in the cache.
    """

    parts: Mapping[str, ImageData]
    sides: tuple[int, int] | None = None
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def fingerprint(files: Iterable[Path], *, root: Path, options: dict[str, Any]) -> str:
    """Digest of the names, sizes and modification times of source files, and of the options."""
    digest = hashlib.sha256(json.dumps([_FORMAT, options], sort_keys=True).encode())
    for file in sorted(files):
        stat = file.stat()
        digest.update(f"{file.relative_to(root)}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def read(root: Path, *, name: str, key: str) -> Decoded | None:
    """The cached entry, memory-mapped; None where there is none or it cannot be used."""
    folder = root / CACHE_FOLDER / f"{name}-{key}"
    try:
        meta = json.loads((folder / "meta.json").read_text())
        classes = tuple(meta["classes"])
        parts = {part: _map(folder, part, classes) for part in meta["parts"]}
        sides = tuple(meta["sides"]) or None
        return Decoded(parts=parts, sides=sides, warnings=tuple(meta["warnings"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write(root: Path, decoded: Decoded, *, name: str, key: str) -> None:
    """Store an entry and remove the outdated ones of its name; does nothing on a read-only root.

    The entry appears under its name only when complete, so a reader never sees half of it.
    """
    cache = root / CACHE_FOLDER
    with contextlib.suppress(OSError):
        cache.mkdir(exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=f"tmp-{name}-", dir=cache))
        try:
            _fill(building, decoded)
            for old in cache.glob(f"{name}-*"):
                shutil.rmtree(old, ignore_errors=True)
            # Fails where another worker was faster; its entry is as good as ours.
            os.replace(building, cache / f"{name}-{key}")  # noqa: PTH105
        finally:
            shutil.rmtree(building, ignore_errors=True)


def _fill(folder: Path, decoded: Decoded) -> None:
    for part, data in decoded.parts.items():
        np.save(folder / f"{part}-images.npy", data.images.numpy())
        np.save(folder / f"{part}-labels.npy", data.labels.numpy())
    meta = {
        "classes": decoded.parts["train"].classes,
        "parts": list(decoded.parts),
        "sides": decoded.sides or (),
        "warnings": decoded.warnings,
    }
    (folder / "meta.json").write_text(json.dumps(meta))


def _map(folder: Path, part: str, classes: tuple[str, ...]) -> ImageData:
    # Copy on write: torch wants writable memory, and no writer may reach the file.
    images = np.load(folder / f"{part}-images.npy", mmap_mode="c")
    labels = np.load(folder / f"{part}-labels.npy")
    return ImageData(
        images=torch.from_numpy(images), labels=torch.from_numpy(labels), classes=classes
    )
