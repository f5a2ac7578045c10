"""Data sets by name."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from hpo_mab._errors import UnknownNameError
from hpo_mab.data import _torchvision
from hpo_mab.data._augmentation import Augmentation
from hpo_mab.data._digits import digits
from hpo_mab.data._folder import image_folder
from hpo_mab.data._images import ImageData

_OPTIONS: dict[str, tuple[str, ...]] = {
    "image_folder": tuple(
        name for name in inspect.signature(image_folder).parameters if name != "root"
    )
}
#: Data sets whose images mean the same when mirrored.
_MIRRORED = {"cifar10", "cifar100", "fashion_mnist", "image_folder", "stl10"}


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
        The training and the test part, on the CPU.

    Raises:
        UnknownNameError: No such data set or option.
        ArgumentError: An option outside its bound.
        DataError: The data are not there, cannot be fetched or cannot be read.
    """
    for option in more:
        if option not in options(name):
            raise UnknownNameError(f"option of data set '{name}'", option, options(name))
    if name in _torchvision.NAMES:
        return _torchvision.load_torchvision(name, root=Path(root), download=download)
    if name == "image_folder":
        return image_folder(root=Path(root), **more)
    if name == "digits":
        return digits()
    raise UnknownNameError("data set", name, available())


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
