"""Any folder of images, a subfolder for each class."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

from hpo_mab._errors import ArgumentError, DataError
from hpo_mab.data import _cache
from hpo_mab.data._images import ImageData
from hpo_mab.data._splits import stratified_halves

_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_TEST_SHARE = 0.2
_GREY_MODES = {"1", "L", "LA", "I", "F"}
_NAMED = 3

_Pixels: TypeAlias = np.ndarray[Any, np.dtype[np.uint8]]


def image_folder(*, root: Path, size: int = 32) -> tuple[ImageData, ImageData]:
    """Training and test images from ``root/train/<class>/`` and ``root/test/<class>/``.

    Without ``test/`` a fixed stratified fifth of the images is the test part; without ``train/``
    too, the classes are the folders in ``root`` itself. Images are scaled to ``size`` on the
    shorter side and cropped in the middle; they stay grey where all of them are, and become RGB
    otherwise. Classes are the sorted folder names. A file that cannot be read is left out with a
    warning.

    Args:
        root: Folder of the data set.
        size: Height and width of the images made, in pixels; at least 4.

    Raises:
        ArgumentError: ``size`` out of bounds.
        DataError: No such folder, fewer than two classes, a class without images, or test
            classes that were never trained on.
    """
    if isinstance(size, bool) or not isinstance(size, int) or size < 4:
        raise ArgumentError(f"size must be an integer of at least 4 pixels, got {size!r}.")
    train_root, test_root = _roots(root)
    classes = _class_names(train_root)
    train_files = _class_files(train_root, classes)
    test_files = _test_files(test_root, classes)
    everything = [path for path, _ in train_files + test_files]
    key = _cache.fingerprint(everything, root=root, options={"size": size})
    name = f"image_folder_{size}"
    decoded = _cache.read(root, name=name, key=key)
    if decoded is None:
        decoded = _decode(root, classes, train_files, test_files, size=size)
        _cache.write(root, decoded, name=name, key=key)
    decoded.train.files = decoded.test.files = key
    _warn_unreadable(decoded.unreadable, len(everything))
    return decoded.train, decoded.test


def _roots(root: Path) -> tuple[Path, Path | None]:
    if not root.is_dir():
        raise DataError(
            f"Data set 'image_folder' needs the folder {root}, which does not exist. "
            "--data-root (data.root) names another."
        )
    train, test = root / "train", root / "test"
    if not train.is_dir():
        return root, None
    return train, test if test.is_dir() else None


def _class_names(folder: Path) -> tuple[str, ...]:
    names = sorted(
        path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
    )
    if len(names) < 2:
        raise DataError(
            f"Data set 'image_folder' needs a folder for each of at least two classes in {folder}, "
            f"got {len(names)}."
        )
    return tuple(names)


def _class_files(folder: Path, classes: tuple[str, ...]) -> list[tuple[Path, int]]:
    return [
        (path, number)
        for number, name in enumerate(classes)
        for path in sorted((folder / name).rglob("*"))
        if path.suffix.lower() in _SUFFIXES and path.is_file()
    ]


def _test_files(folder: Path | None, classes: tuple[str, ...]) -> list[tuple[Path, int]]:
    if folder is None:
        return []
    unknown = set(_class_names(folder)) - set(classes)
    if unknown:
        raise DataError(
            f"Classes in {folder} must be classes of the training images, "
            f"got {', '.join(sorted(unknown))} besides."
        )
    return _class_files(folder, classes)


def _decode(
    root: Path,
    classes: tuple[str, ...],
    train_files: list[tuple[Path, int]],
    test_files: list[tuple[Path, int]],
    *,
    size: int,
) -> _cache.Decoded:
    files = train_files + test_files
    with ThreadPoolExecutor() as pool:
        decoded = list(pool.map(lambda item: _read(item[0], size), files))
    unreadable = [
        str(path.relative_to(root))
        for (path, _), pixels in zip(files, decoded, strict=True)
        if pixels is None
    ]
    grey = all(pixels.ndim == 2 for pixels in decoded if pixels is not None)
    labels = [number for _, number in files]
    cut = len(train_files)
    train = _assemble(zip(decoded[:cut], labels[:cut], strict=True), classes, grey=grey)
    absent = [name for n, name in enumerate(classes) if not bool((train.labels == n).any())]
    if absent:
        raise DataError(f"No readable training image of class {', '.join(absent)} in {root}.")
    if test_files:
        test = _assemble(zip(decoded[cut:], labels[cut:], strict=True), classes, grey=grey)
    else:
        kept, held_out = stratified_halves(train.labels, share=_TEST_SHARE, seed=0, name="test")
        train, test = train.subset(kept), train.subset(held_out)
    return _cache.Decoded(train=train, test=test, unreadable=tuple(unreadable))


def _read(path: Path, size: int) -> _Pixels | None:
    """Pixels uint8 [size, size] or [size, size, 3]; None where the file cannot be read."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            grey = upright.mode in _GREY_MODES or upright.mode.startswith("I;16")
            if upright.mode.startswith("I"):
                # 16-bit grey: PIL's own conversion would clip at 255.
                deep = np.asarray(upright).astype(np.float64) / 257
                upright = Image.fromarray(np.rint(deep).clip(0, 255).astype(np.uint8))
            plain = upright.convert("L" if grey else "RGB")
            fitted = ImageOps.fit(plain, (size, size), method=Image.Resampling.BILINEAR)
            return np.asarray(fitted)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def _assemble(
    items: Iterable[tuple[_Pixels | None, int]], classes: tuple[str, ...], *, grey: bool
) -> ImageData:
    readable = [(pixels, number) for pixels, number in items if pixels is not None]
    if not readable:
        raise DataError("Data set 'image_folder' holds no readable image.")
    images = [_channels_first(pixels, grey=grey) for pixels, _ in readable]
    return ImageData(
        images=torch.from_numpy(np.stack(images)),
        labels=torch.tensor([number for _, number in readable]),
        classes=classes,
    )


def _channels_first(pixels: _Pixels, *, grey: bool) -> _Pixels:
    if grey:
        return pixels[None]
    if pixels.ndim == 2:
        return np.broadcast_to(pixels, (3, *pixels.shape))
    return pixels.transpose(2, 0, 1)


def _warn_unreadable(paths: tuple[str, ...], total: int) -> None:
    if not paths:
        return
    more = f" and {len(paths) - _NAMED} more" if len(paths) > _NAMED else ""
    warnings.warn(
        f"{len(paths)} of {total} images cannot be read and are left out: "
        f"{', '.join(paths[:_NAMED])}{more}.",
        stacklevel=3,
    )
