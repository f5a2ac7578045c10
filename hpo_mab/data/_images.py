"""Images with their labels on a device, their normalisation and augmentation.

Also the cache of decoded images on disk; workers share it by memory mapping.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from hpo_mab._errors import ArgumentError, require
from hpo_mab._labels import class_labels


class ImageData:
    """A labelled image data set in tensors on one device.

    A `subset` shares the images in memory, or the file that they are mapped from. So neither a
    split nor another process needs a copy.

    Args:
        images: Pixels, uint8 [N, channels, height, width].
        labels: Class of each example, int64 [N] in ``0..C-1``. A class may be absent.
        classes: Names of the ``C`` classes.
        files: Digest of the files the images were read from; empty if they come from none.

    Attributes:
        labels: Class of each example, int64 [N].
        classes: Names of the ``C`` classes.
        files: See above.

    Raises:
        ArgumentError: A tensor of another type or shape, no image, or a label out of range.

    Examples:
        >>> import numpy as np
        >>> from hpo_mab.data import ImageData
        >>> images = np.zeros((20, 8, 8), dtype=np.uint8)
        >>> data = ImageData.from_arrays(images, [0, 1] * 10)
        >>> data.num_classes, data.image_size
        (2, (8, 8))
    """

    __slots__ = ("_pixels", "_rows", "classes", "files", "labels")

    def __init__(
        self,
        *,
        images: Tensor,
        labels: Tensor,
        classes: tuple[str, ...],
        files: str = "",
    ) -> None:
        _check_images(images)
        _check_labels(labels, len(images), len(classes))
        if labels.device != images.device:
            raise ArgumentError(
                f"labels must be on the device of the images, {images.device}, got {labels.device}."
            )
        self._pixels = images
        #: Of a subset, the rows of its examples; None are all.
        self._rows: Tensor | None = None
        self.labels = labels
        self.classes = classes
        self.files = files

    @classmethod
    def from_arrays(cls, images: Any, labels: Any) -> Self:
        """Make a data set of arrays or tensors; any integer or text labels are numbered in order.

        Args:
            images: uint8 [N, height, width] for grey images or [N, channels, height, width].
            labels: One label an image, [N]: integers or text; their sorted distinct values
                become the classes.

        Raises:
            ArgumentError: Images that are not uint8 of such a shape, or labels that do not fit.
        """
        if isinstance(images, np.ndarray) and any(step < 0 for step in images.strides):
            # torch refuses a reversed view, such as one from BGR to RGB.
            images = images.copy()
        pixels = torch.as_tensor(images)
        if pixels.ndim == 4 and pixels.shape[3] in (1, 3, 4) and pixels.shape[1] > 4:
            raise ArgumentError(
                "images must be [N, channels, height, width], got "
                f"{list(pixels.shape)}; move the channels to the second place."
            )
        if pixels.ndim == 3:
            pixels = pixels.unsqueeze(1)
        if isinstance(labels, Tensor):
            labels = class_labels(labels).numpy()
        # As objects: `class_labels` refuses a ragged list by name.
        names = labels if isinstance(labels, np.ndarray) else np.asarray(labels, dtype=object)
        if names.dtype == object and all(isinstance(name, str) for name in names.flat):
            names = names.astype(str)
        if names.dtype.kind != "U" or names.ndim != 1:
            names = class_labels(labels).numpy()
        distinct, numbers = np.unique(names, return_inverse=True)
        return cls(
            images=pixels,
            labels=torch.from_numpy(numbers.astype(np.int64)).to(pixels.device),
            classes=tuple(str(name) for name in distinct),
        )

    def __len__(self) -> int:
        """Number of examples, ``N``."""
        return len(self.labels)

    @property
    def images(self) -> Tensor:
        """Pixels of each example, uint8 [N, channels, height, width]; of a subset, a copy."""
        return self._pixels if self._rows is None else self._pixels.index_select(0, self._rows)

    @property
    def device(self) -> torch.device:
        """Device of the data."""
        return self._pixels.device

    @property
    def num_classes(self) -> int:
        """Number of classes, ``C``."""
        return len(self.classes)

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return self._pixels.shape[1]

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of an image in pixels."""
        return self._pixels.shape[2], self._pixels.shape[3]

    def gather(self, indices: Tensor) -> Tensor:
        """Pixels of the examples at ``indices``, int64 [n]: uint8 [n, channels, height, width]."""
        # Many times faster than indexing: whole images are copied.
        rows = indices if self._rows is None else self._rows.index_select(0, indices)
        return self._pixels.index_select(0, rows)

    def blocks(self, size: int) -> Iterator[Tensor]:
        """Pixels of all examples in order, ``size`` at a time."""
        if self._rows is None:
            yield from torch.split(self._pixels, size)
            return
        for rows in torch.split(self._rows, size):
            yield self._pixels.index_select(0, rows)

    def to(self, device: torch.device | str) -> Self:
        """The same data on another device, without the images that are of other subsets."""
        if torch.device(device) == self.device:
            return self
        return type(self)(
            images=self.images.to(device),
            labels=self.labels.to(device),
            classes=self.classes,
            files=self.files,
        )

    def subset(self, indices: Tensor) -> Self:
        """The examples at ``indices``, int64 [n], in that order; the images stay where they are.

        Raises:
            ArgumentError: No index, or one below 0.
        """
        if not len(indices) or int(indices.min()) < 0:
            raise ArgumentError("indices must name at least one example, counted from 0.")
        where, part = indices.to(self.device), copy.copy(self)
        part.labels = self.labels[where]
        part._rows = where if self._rows is None else self._rows[where]
        return part


def _check_images(images: Tensor) -> None:
    if images.ndim != 4 or images.dtype != torch.uint8:
        raise ArgumentError(
            "images must be uint8 [N, channels, height, width], "
            f"got {images.dtype} {list(images.shape)}."
        )
    if 0 in images.shape:
        raise ArgumentError(f"images must not be empty, got shape {list(images.shape)}.")


def _check_labels(labels: Tensor, examples: int, classes: int) -> None:
    if labels.shape != (examples,) or labels.dtype != torch.int64:
        raise ArgumentError(
            f"labels must be int64 [{examples}], one for each image, "
            f"got {labels.dtype} {list(labels.shape)}."
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise ArgumentError(
            f"labels must be in [0, {classes}), one number for each of the {classes} classes, "
            f"got values from {low} to {high}."
        )


class Normalization:
    """Scale uint8 pixels to zero mean and unit variance a channel: ``(x / 255 - mean) / std``.

    Args:
        mean: Mean of each channel, [channels], pixels scaled to [0, 1]: a tensor or numbers.
        std: Standard deviation of each channel, above 0, in the same form.
        channels_last: Whether the result is laid out channels last in memory.

    Raises:
        ArgumentError: Shapes that differ, or a ``std`` not above 0.

    Examples:
        >>> import torch
        >>> from hpo_mab.data import Normalization
        >>> scale = Normalization([0.5], [0.25])
        >>> scale(torch.full((1, 1, 1, 1), 255, dtype=torch.uint8)).item()
        2.0
    """

    def __init__(
        self,
        mean: Tensor | Sequence[float],
        std: Tensor | Sequence[float],
        *,
        channels_last: bool = False,
    ) -> None:
        mean, std = torch.as_tensor(mean), torch.as_tensor(std)
        if mean.ndim != 1 or mean.shape != std.shape:
            raise ArgumentError(
                "mean and std must be one value for each channel, "
                f"got shapes {list(mean.shape)} and {list(std.shape)}."
            )
        if not bool((std > 0).all()):
            raise ArgumentError(f"std must be above 0 for each channel, got {std.tolist()}.")
        self.channels_last = channels_last
        # (x / 255 - mean) / std as one product and one sum.
        self._scale = (1 / (255 * std)).float()[:, None, None]
        self._shift = (-mean / std).float()[:, None, None]

    def __call__(self, images: Tensor) -> Tensor:
        """Normalise uint8 [B, channels, height, width] to float32 of the same shape."""
        # In place on the float copy, because memory traffic limits the speed.
        pixels = images.to(torch.float32).mul_(self._scale).add_(self._shift)
        # After the arithmetic: with few channels it is many times slower on channels-last memory.
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return pixels.contiguous(memory_format=layout)


class Augmentation:
    """Random shift by up to ``pad`` pixels with reflected borders, and random horizontal flip.

    Equals torchvision's ``RandomCrop(size, padding=pad, padding_mode="reflect")``, then
    ``RandomHorizontalFlip()``, in distribution. One indexing operation gathers a whole batch: the
    source row and column of every output pixel are computed. So nothing is padded and nothing waits
    for the host.

    Args:
        pad: Largest shift in pixels, both ways and both axes; 0 for none.
        flip: Whether to mirror half of the images left to right.

    Raises:
        ArgumentError: A negative ``pad``.

    Examples:
        >>> import torch
        >>> from hpo_mab.data import Augmentation
        >>> images = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
        >>> Augmentation(pad=2)(images, generator=torch.Generator()).shape
        torch.Size([2, 1, 8, 8])
    """

    def __init__(self, *, pad: int = 4, flip: bool = True) -> None:
        require(pad >= 0, "pad", "at least 0 pixels", pad)
        self.pad = pad
        self.flip = flip

    def __call__(self, images: Tensor, *, generator: torch.Generator) -> Tensor:
        """Augment a batch.

        Args:
            images: Pixels [B, channels, height, width] of any type.
            generator: Source of randomness, on the images' device.

        Returns:
            The augmented batch, same shape and type, newly allocated.

        Raises:
            ArgumentError: Images too small to reflect ``pad`` pixels.
        """
        batch, channels, height, width = images.shape
        if self.pad >= min(height, width):
            raise ArgumentError(
                f"pad must be below the image's shorter side, {min(height, width)}, got {self.pad}."
            )
        device = images.device
        draws = torch.rand(3, batch, 1, device=device, generator=generator)
        # Uniform integers in [-pad, pad].
        shifts = (draws[:2] * (2 * self.pad + 1)).long() - self.pad
        rows = _reflect(torch.arange(height, device=device) + shifts[0], height)
        columns = _reflect(torch.arange(width, device=device) + shifts[1], width)
        if self.flip:
            columns = torch.where(draws[2] < 0.5, columns, columns.flip(1))
        # One flat gather: the pixel of the output at (b, c, y, x) is at (b, c, rows, columns).
        places = (rows * width)[:, :, None] + columns[:, None, :]
        source = images.reshape(batch, channels, height * width)
        where = places.view(batch, 1, height * width).expand(-1, channels, -1)
        return source.gather(2, where).view(batch, channels, height, width)

    def __repr__(self) -> str:
        return f"Augmentation(pad={self.pad}, flip={self.flip})"


def _reflect(positions: Tensor, size: int) -> Tensor:
    """Mirror positions outside ``0..size-1`` at the first and last pixel."""
    # The absolute value mirrors at 0, the outer one at size - 1. Shifts are below size, so one
    # reflection on each side is enough.
    return (size - 1) - ((size - 1) - positions.abs()).abs()


#: Folder of the cache inside a data root.
CACHE_FOLDER = ".hpo_mab_cache"
_FORMAT = 5


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """A decoded data set.

    Attributes:
        parts: Images by part: ``"train"`` and, where they come with the data set, ``"validation"``
            and ``"test"``; all of the same classes.
        sides: Smallest and largest shorter side of the source images in pixels, if they were
            scaled.
        warnings: What the user is warned of each time the data set is loaded.
        names: File of each training image; empty where they come from no files of the user's.
        notes: Which files were used and which not, a sentence each; not kept in the cache.
    """

    parts: Mapping[str, ImageData]
    sides: tuple[int, int] | None = None
    warnings: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def fingerprint(files: Iterable[Path], *, root: Path, options: dict[str, Any]) -> str:
    """Digest of the names, sizes and modification times of source files, and of the options."""
    digest = hashlib.sha256(json.dumps([_FORMAT, options], sort_keys=True).encode())
    for file in sorted(files):
        stat = file.stat()
        text = f"{file.relative_to(root)}\0{stat.st_size}\0{stat.st_mtime_ns}\n"
        # A name may hold bytes that are no UTF-8.
        digest.update(text.encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def read(root: Path, *, name: str, key: str) -> Decoded | None:
    """The cached entry, memory-mapped; None where there is none or it cannot be used."""
    folder = root / CACHE_FOLDER / f"{name}-{key}"
    try:
        meta = json.loads((folder / "meta.json").read_text())
        classes = tuple(meta["classes"])
        parts = {part: _mapped_part(folder, part, classes) for part in meta["parts"]}
        sides = tuple(meta["sides"]) or None
        return Decoded(
            parts=parts,
            sides=sides,
            warnings=tuple(meta["warnings"]),
            names=tuple(meta["names"]),
        )
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        return None


def write(root: Path, decoded: Decoded, *, name: str, key: str) -> None:
    """Store an entry and remove the outdated ones of its name; does nothing on a read-only root.

    The entry appears under its name only when complete, so a reader never sees half of it.
    """
    cache = root / CACHE_FOLDER
    with contextlib.suppress(OSError):
        cache.mkdir(exist_ok=True)
        # With the rights of the umask, so that other users can read the entry.
        building = cache / f"tmp-{name}-{secrets.token_hex(8)}"
        building.mkdir()
        try:
            _write_entry(building, decoded)
            for old in (*cache.glob(f"{name}-*"), *_abandoned(cache, name)):
                shutil.rmtree(old, ignore_errors=True)
            # Raises if another worker has written the entry since; both entries are equal.
            os.replace(building, cache / f"{name}-{key}")  # noqa: PTH105
        finally:
            shutil.rmtree(building, ignore_errors=True)


_SECONDS_OF_A_DAY = 86_400.0


def _abandoned(cache: Path, name: str) -> Iterator[Path]:
    """Entries that a process was killed while building, at least a day ago."""
    for building in cache.glob(f"tmp-{name}-*"):
        # Another worker may just have completed it.
        with contextlib.suppress(OSError):
            if time.time() - building.stat().st_mtime > _SECONDS_OF_A_DAY:
                yield building


def _write_entry(folder: Path, decoded: Decoded) -> None:
    for part, data in decoded.parts.items():
        np.save(folder / f"{part}-images.npy", data.images.numpy())
        np.save(folder / f"{part}-labels.npy", data.labels.numpy())
    meta = {
        "classes": decoded.parts["train"].classes,
        "parts": list(decoded.parts),
        "sides": decoded.sides or (),
        "warnings": decoded.warnings,
        "names": decoded.names,
    }
    (folder / "meta.json").write_text(json.dumps(meta))


def _mapped_part(folder: Path, part: str, classes: tuple[str, ...]) -> ImageData:
    # Copy on write: torch needs writable memory, and writes must not change the file.
    images = np.load(folder / f"{part}-images.npy", mmap_mode="c")
    labels = np.load(folder / f"{part}-labels.npy")
    return ImageData(
        images=torch.from_numpy(images), labels=torch.from_numpy(labels), classes=classes
    )
