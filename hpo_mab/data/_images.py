"""Images with their labels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from hpo_mab._errors import ArgumentError
from hpo_mab._labels import class_labels


class ImageData:
    """A labelled image data set in tensors on one device.

    Sets cut out of one another (`subset`) share the images in memory, and with them the file that
    they may be mapped from: a split costs no copy, and neither does another process.

    Args:
        images: Pixels, uint8 [M, channels, height, width].
        labels: Class of each example, int64 [N] in ``0..C-1``. A class may be absent.
        classes: Names of the ``C`` classes.
        rows: The image of each example, int64 [N]; None for all images in order, so that N = M.
        files: Digest of the files the images were read from; empty if they come from none.

    Attributes:
        labels: Class of each example, int64 [N].
        classes: Names of the ``C`` classes.
        files: See above.

    Raises:
        ArgumentError: A tensor of another type or shape, no image, or a label out of range.
    """

    __slots__ = ("_pixels", "_rows", "classes", "files", "labels")

    def __init__(
        self,
        *,
        images: Tensor,
        labels: Tensor,
        classes: tuple[str, ...],
        rows: Tensor | None = None,
        files: str = "",
    ) -> None:
        _check_images(images)
        examples = len(images) if rows is None else _checked_length(rows, len(images))
        _check_labels(labels, examples, len(classes))
        if labels.device != images.device:
            raise ArgumentError(
                f"labels must be on the device of the images, {images.device}, got {labels.device}."
            )
        self._pixels = images
        self._rows = rows
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
        pixels = torch.as_tensor(images)
        if pixels.ndim == 3:
            pixels = pixels.unsqueeze(1)
        names = np.asarray(labels)
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
        """Where the data are."""
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
        """The examples at ``indices``, int64 [n], in that order; the images stay where they are."""
        where = indices.to(self.device)
        return type(self)(
            images=self._pixels,
            labels=self.labels[where],
            classes=self.classes,
            rows=where if self._rows is None else self._rows[where],
            files=self.files,
        )


def _check_images(images: Tensor) -> None:
    if images.ndim != 4 or images.dtype != torch.uint8:
        raise ArgumentError(
            "images must be uint8 [N, channels, height, width], "
            f"got {images.dtype} {list(images.shape)}."
        )
    if 0 in images.shape:
        raise ArgumentError(f"images must not be empty, got shape {list(images.shape)}.")


def _checked_length(rows: Tensor, images: int) -> int:
    if rows.ndim != 1 or rows.dtype != torch.int64:
        raise ArgumentError(f"rows must be int64 [N], got {rows.dtype} {list(rows.shape)}.")
    if len(rows) == 0:
        raise ArgumentError("rows must not be empty.")
    low, high = int(rows.min()), int(rows.max())
    if low < 0 or high >= images:
        raise ArgumentError(f"rows must be in [0, {images}), got values from {low} to {high}.")
    return len(rows)


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
