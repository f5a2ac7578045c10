"""Data sets by name, and the digits of scikit-learn."""

from __future__ import annotations

import dataclasses
import inspect
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits

from hpo_mab._errors import UnknownNameError
from hpo_mab.data import _images, _torchvision
from hpo_mab.data._folder import image_folder
from hpo_mab.data._images import Augmentation, ImageData
from hpo_mab.data._splits import Exclusion, ImageSplits, split, stratified_halves

_TEST_SHARE = 0.2


def digits() -> tuple[ImageData, ImageData]:
    """1,797 grey 8x8 images of ten digits; a fixed stratified fifth is the test part."""
    source = load_digits()
    # Grey levels 0..16 become 0..255.
    pixels = np.rint(source.images * (255 / 16)).astype(np.uint8)
    data = ImageData(
        images=torch.from_numpy(pixels).unsqueeze(1),
        labels=torch.from_numpy(source.target.astype(np.int64)),
        classes=tuple(str(name) for name in source.target_names),
    )
    train, test = stratified_halves(data.labels, share=_TEST_SHARE, seed=0)
    return data.subset(train), data.subset(test)


_OPTIONS: dict[str, tuple[str, ...]] = {
    "image_folder": tuple(
        name for name in inspect.signature(image_folder).parameters if name != "root"
    )
}
#: Data sets whose images mean the same when mirrored.
_MIRRORED = {"cifar10", "cifar100", "fashion_mnist", "image_folder", "stl10"}
_CLASSES_SHOWN = 10

_log = logging.getLogger("hpo_mab.data")


def available() -> tuple[str, ...]:
    """Names that `load` takes, sorted."""
    return tuple(sorted((*_torchvision.NAMES, "digits", "image_folder")))


def options(name: str) -> tuple[str, ...]:
    """Names of the options `load` takes for a data set.

    Raises:
        UnknownNameError: No such data set.
    """
    if name not in available():
        raise UnknownNameError("data set", name, available())
    return _OPTIONS.get(name, ())


def load(
    name: str, *, root: Path | str = "data", download: bool = True, **more: Any
) -> tuple[ImageData, ImageData]:
    """Load a data set by name.

    Decoded images are kept in ``root/.hpo_mab_cache`` and memory-mapped from there by the next
    call and by other processes, until a source file changes; a root that cannot be written is
    decoded each time.

    Args:
        name: One of `available`.
        root: Folder of the data: torchvision's root, or the folder of an ``image_folder``.
            ``digits`` needs none.
        download: Whether to fetch what is missing.
        **more: Options of the data set, see `options`; ``image_folder`` takes ``size``.

    Returns:
        The training and the test part, on the CPU. Validation images that come with the data set
        are in neither; `load_splits` has them.

    Raises:
        UnknownNameError: No such data set or option.
        ArgumentError: An option outside its bound.
        DataError: The data are not there, cannot be fetched or cannot be read, or are more than
            memory holds.
    """
    parts = _load(name, Path(root), download, more).parts
    return parts["train"], parts["test"]


def load_splits(
    name: str,
    *,
    validation: float = 0.15,
    seed: int = 0,
    root: Path | str = "data",
    download: bool = True,
    exclude: Path | str | None = None,
    **more: Any,
) -> ImageSplits:
    """Load a data set by name, in three parts.

    What was taken is logged by ``hpo_mab.data`` at the level INFO: sizes, classes with their
    training images, and what was passed over.

    Args:
        name: One of `available`.
        validation: Share of the training images to validate on, in (0, 1), each class in
            proportion; not used where validation images come with the data set.
        seed: Seed of that split.
        root: Folder of the data, see `load`.
        download: Whether to fetch what is missing.
        exclude: File of training images to leave out, see `Exclusion`; the validation and the test
            part stay whole, so that accuracies can be compared.
        **more: Options of the data set, see `options`.

    Raises:
        UnknownNameError: No such data set or option.
        ArgumentError: An option outside its bound, or a share that leaves a part without some
            class.
        DataError: The data are not there, cannot be fetched or cannot be read, or are more than
            memory holds, or ``exclude`` is a list of other images.
    """
    found = _load(name, Path(root), download, more)
    parts = found.parts
    given = parts.get("validation", validation)
    splits = split(parts["train"], parts["test"], validation=given, seed=seed)
    splits = dataclasses.replace(splits, names=found.names)
    if exclude is not None:
        splits = splits.without(Exclusion.load(exclude))
    title = Path(root).resolve().name if name == "image_folder" else name
    for line in _description(title or name, found, splits):
        _log.info("%s", line)
    return splits


def _load(name: str, root: Path, download: bool, more: dict[str, Any]) -> _images.Decoded:
    for option in more:
        if option not in options(name):
            raise UnknownNameError(f"option of data set '{name}'", option, options(name))
    if name in _torchvision.NAMES:
        train, test = _torchvision.load_torchvision(name, root=root, download=download)
        return _images.Decoded(parts={"train": train, "test": test})
    if name == "image_folder":
        return image_folder(root=root, **more)
    if name == "digits":
        train, test = digits()
        return _images.Decoded(parts={"train": train, "test": test})
    raise UnknownNameError("data set", name, available())


def _description(title: str, found: _images.Decoded, splits: ImageSplits) -> list[str]:
    """What a data set consists of, a sentence a line."""
    train = splits.train
    height, width = train.image_size
    scaled = ""
    if found.sides is not None and set(found.sides) != {min(height, width)}:
        scaled = f" (from {' to '.join(map(str, sorted(set(found.sides))))})"
    counts = train.labels.bincount(minlength=train.num_classes).tolist()
    named = [f"{name} {count:,}" for name, count in zip(train.classes, counts, strict=True)]
    more = len(named) - _CLASSES_SHOWN
    shown = ", ".join(named[:_CLASSES_SHOWN]) + (f" and {more:,} more" if more > 0 else "")
    return [
        f"{title}: {len(train):,} training, {len(splits.validation):,} validation, "
        f"{len(splits.test):,} test images, {train.num_classes:,} classes, "
        f"{width}x{height} pixels{scaled}",
        f"Training images by class: {shown}",
        *found.notes,
    ]


def default_augmentation(name: str, *, image_size: tuple[int, int]) -> Augmentation:
    """The augmentation that suits a data set: shifts by an eighth; mirrored where that is safe.

    Args:
        name: One of `available`.
        image_size: Height and width in pixels.

    Raises:
        UnknownNameError: No such data set.
    """
    if name not in available():
        raise UnknownNameError("data set", name, available())
    return Augmentation(pad=min(image_size) // 8, flip=name in _MIRRORED)
