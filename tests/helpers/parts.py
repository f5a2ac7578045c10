"""The parts of a data set as they come."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hpo_mab.data import ImageData, _load


def whole_parts(
    name: str, *, root: Path = Path("data"), download: bool = True, **options: Any
) -> tuple[ImageData, ImageData]:
    """The training part of a data set, before validation examples leave it, and the test part."""
    given = {"root": root, "download": download, "validation": 0.15, "seed": 0}
    parts = _load._loaded(name, options, **given).parts
    return parts["train"], parts["test"]
