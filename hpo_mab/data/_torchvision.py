"""Data sets that torchvision can fetch."""

from __future__ import annotations

import contextlib
import dataclasses
import pickle
import shutil
import tarfile
import tempfile
import textwrap
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpo_mab._errors import DataError
from hpo_mab.data import _images
from hpo_mab.data._images import ImageData

#: What torchvision raises on files that are absent, cut short or not what they should be.
_READ_ERRORS = (
    OSError,
    RuntimeError,
    ValueError,
    EOFError,
    AssertionError,
    pickle.UnpicklingError,
    tarfile.TarError,
    zlib.error,
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """Where torchvision keeps a data set.

    Attributes:
        cls: Its class in ``torchvision.datasets``.
        files: Patterns of its files below the root, archives included.
        splits: Arguments that choose the training and the test part.
        mirrored: Whether its images mean the same when mirrored.
    """

    cls: str
    files: tuple[str, ...]
    splits: tuple[Mapping[str, Any], Mapping[str, Any]] = ({"train": True}, {"train": False})
    mirrored: bool = False


_BY_SPLIT = ({"split": "train"}, {"split": "test"})
_SOURCES = {
    "mnist": _Source(cls="MNIST", files=("MNIST/raw/*",)),
    "fashion_mnist": _Source(cls="FashionMNIST", files=("FashionMNIST/raw/*",), mirrored=True),
    "kmnist": _Source(cls="KMNIST", files=("KMNIST/raw/*",)),
    "cifar10": _Source(
        cls="CIFAR10", files=("cifar-10-batches-py/*", "cifar-10-python.tar.gz"), mirrored=True
    ),
    "cifar100": _Source(
        cls="CIFAR100", files=("cifar-100-python/*", "cifar-100-python.tar.gz"), mirrored=True
    ),
    "svhn": _Source(cls="SVHN", files=("train_32x32.mat", "test_32x32.mat"), splits=_BY_SPLIT),
    "stl10": _Source(
        cls="STL10",
        files=("stl10_binary/*", "stl10_binary.tar.gz"),
        splits=_BY_SPLIT,
        mirrored=True,
    ),
}

_ARCHIVES = {".gz", ".mat"}

#: Names this module loads.
NAMES = tuple(_SOURCES)
#: Those whose images mean the same when mirrored.
MIRRORED = frozenset(name for name, source in _SOURCES.items() if source.mirrored)


def load_torchvision(name: str, *, root: Path, download: bool) -> tuple[ImageData, ImageData]:
    """Training and test part of a torchvision data set, fetched and decoded at most once.

    The files are fetched into a temporary folder and moved into place when complete. So a broken
    download leaves nothing behind. Pickled files (CIFAR) are read by torchvision alone, which
    compares their checksums first.

    Args:
        name: One of `NAMES`.
        root: Root folder in torchvision's layout.
        download: Whether to fetch what is missing.

    Raises:
        DataError: The files are not there and cannot be had, or cannot be read.
    """
    source = _SOURCES[name]
    present = _files(source, root)
    if present:
        cached = _images.read(root, name=name, key=_key(present, root))
        if cached is not None:
            return cached.parts["train"], cached.parts["test"]
    train, test = _decode(name, source, root, download=download)
    key = _key(_files(source, root), root)
    decoded = _images.Decoded(parts={"train": train, "test": test})
    _images.write(root, decoded, name=name, key=key)
    return train, test


def _files(source: _Source, root: Path) -> list[Path]:
    return [path for pattern in source.files for path in root.glob(pattern) if path.is_file()]


def _key(files: list[Path], root: Path) -> str:
    return _images.fingerprint(files, root=root, options={})


def _decode(
    name: str, source: _Source, root: Path, *, download: bool
) -> tuple[ImageData, ImageData]:
    try:
        return _open(source, root)
    except _READ_ERRORS as error:
        if not download:
            raise DataError(
                f"Data set '{name}' is not usable in {root}: {_one_line(error)}. "
                "Allow the download, or put torchvision's files there."
            ) from error
    created = not root.exists()
    try:
        root.mkdir(parents=True, exist_ok=True)
        _fetch(source, root)
        return _open(source, root)
    except _READ_ERRORS as error:
        if created:
            with contextlib.suppress(OSError):
                root.rmdir()  # Only what is empty: another process may have had more luck.
        raise DataError(
            f"Data set '{name}' is not whole in {root} and could not be fetched: "
            f"{_one_line(error)}. Connect to the network, or put torchvision's files there."
        ) from error


def _open(source: _Source, root: Path) -> tuple[ImageData, ImageData]:
    train, test = (_dataset(source, root, download=False, **split) for split in source.splits)
    return _as_images(train), _as_images(test)


def _dataset(source: _Source, root: Path, **options: Any) -> Any:
    # Here, not at the top: torchvision is slow to import and most calls need only the cache.
    from torchvision import datasets

    return getattr(datasets, source.cls)(str(root), **options)


def _fetch(source: _Source, root: Path) -> None:
    """Download into a temporary folder and move the result into place."""
    with tempfile.TemporaryDirectory(prefix=".fetching-", dir=root) as folder:
        fetched = Path(folder)
        # Existing archives need no second download: torchvision checks them. It unpacks them again
        # in case the unpacked files are broken.
        archives = [file for file in _files(source, root) if file.suffix in _ARCHIVES]
        _move(archives, root, fetched, keep=True)
        for split in source.splits:
            _dataset(source, fetched, download=True, **split)
        _move(_files(source, fetched), fetched, root, keep=False)


def _move(files: list[Path], old: Path, new: Path, *, keep: bool) -> None:
    for file in files:
        target = new / file.relative_to(old)
        target.parent.mkdir(parents=True, exist_ok=True)
        if keep:
            shutil.copy2(file, target)
        else:
            file.replace(target)


def _as_images(dataset: Any) -> ImageData:
    pixels = np.asarray(dataset.data)
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    elif pixels.shape[-1] == 3:
        pixels = pixels.transpose(0, 3, 1, 2)
    labels = np.asarray(dataset.targets if hasattr(dataset, "targets") else dataset.labels)
    classes = getattr(dataset, "classes", None) or [str(n) for n in range(int(labels.max()) + 1)]
    return ImageData(
        images=torch.from_numpy(np.ascontiguousarray(pixels)),
        labels=torch.from_numpy(labels.astype(np.int64)),
        classes=tuple(classes),
    )


def _one_line(error: BaseException) -> str:
    text = textwrap.shorten(str(error), width=200, placeholder=" ...") or type(error).__name__
    return text.rstrip(".")
