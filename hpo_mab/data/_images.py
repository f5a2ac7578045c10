"""Images held in one tensor, with their labels."""

from __future__ import annotations

import dataclasses
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from hpo_mab._errors import ArgumentError


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImageData:
    """A labelled image data set in two tensors on one device.

    Attributes:
        images: Pixels, uint8 [N, channels, height, width].
        labels: Class of each image, int64 [N] in ``0..C-1``. A class may be absent.
        classes: Names of the ``C`` classes.

    Raises:
        ArgumentError: A tensor of another type or shape, no image, or a label out of range.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        _check_images(self.images)
        _check_labels(self.labels, len(self.images), len(self.classes))
        if self.labels.device != self.images.device:
            raise ArgumentError(
                f"labels must be on the device of the images, {self.images.device}, "
                f"got {self.labels.device}."
            )

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
        if names.ndim != 1 or names.dtype.kind not in "iuUb":
            raise ArgumentError(
                "labels must be one integer or text for each image, "
                f"got {names.dtype} of shape {list(names.shape)}."
            )
        distinct, numbers = np.unique(names, return_inverse=True)
        return cls(
            images=pixels,
            labels=torch.from_numpy(numbers.astype(np.int64)).to(pixels.device),
            classes=tuple(str(name) for name in distinct),
        )

    def __len__(self) -> int:
        """Number of images, ``N``."""
        return len(self.images)

    @property
    def num_classes(self) -> int:
        """Number of classes, ``C``."""
        return len(self.classes)

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return self.images.shape[1]

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of an image in pixels."""
        return self.images.shape[2], self.images.shape[3]

    def to(self, device: torch.device | str) -> Self:
        """The same data on another device."""
        return dataclasses.replace(
            self, images=self.images.to(device), labels=self.labels.to(device)
        )

    def subset(self, indices: Tensor) -> Self:
        """The images at ``indices``, int64 [n], in that order."""
        where = indices.to(self.images.device)
        return dataclasses.replace(self, images=self.images[where], labels=self.labels[where])


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
