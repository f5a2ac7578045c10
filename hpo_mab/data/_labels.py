"""Labels of a user's own data set."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

from hpo_mab._errors import ArgumentError


def labels_of(dataset: Dataset[Any]) -> Tensor:
    """Class of each example of a map-style data set of ``(x, y)`` pairs, as samplers need them.

    Reads ``targets`` or ``labels`` where the data set has them (passed through its
    ``target_transform``), looks through ``Subset`` and ``TensorDataset``, and otherwise reads
    every example once.

    Args:
        dataset: Data set with ``__len__`` and ``__getitem__``.

    Returns:
        Labels, int64 [N], each at least 0.

    Raises:
        ArgumentError: A data set without length or without examples, labels that are not integers
            from 0, or that are all equal.
    """
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise ArgumentError(
            "dataset must be map-style, with __len__ and __getitem__, "
            f"got {type(dataset).__name__}."
        )
    size = len(dataset)
    if size == 0:
        raise ArgumentError("dataset must not be empty, got 0 examples.")
    found = _stored_labels(dataset, size)
    if found is None:
        found = np.asarray([int(dataset[index][1]) for index in range(size)])
    return _checked(found)


def _stored_labels(dataset: Any, size: int) -> np.ndarray[Any, Any] | None:
    """Labels the data set keeps, or None where it has to be read."""
    if isinstance(dataset, Subset):
        inner = _stored_labels(dataset.dataset, len(dataset.dataset))  # type: ignore[arg-type]
        return None if inner is None else inner[np.asarray(dataset.indices)]
    if isinstance(dataset, TensorDataset):
        return dataset.tensors[-1].cpu().numpy()
    for name in ("targets", "labels"):
        labels = getattr(dataset, name, None)
        if labels is not None and len(labels) == size:
            transform = getattr(dataset, "target_transform", None)
            values = labels.cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
            return values if transform is None else np.asarray([transform(v) for v in values])
    return None


def _checked(labels: np.ndarray[Any, Any]) -> Tensor:
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ArgumentError(
            "labels of dataset must be one integer for each example, "
            f"got {labels.dtype} of shape {list(labels.shape)}."
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0:
        raise ArgumentError(f"labels of dataset must be at least 0, got {low}.")
    if low == high:
        raise ArgumentError(f"labels of dataset must hold at least two classes, got only {low}.")
    return torch.from_numpy(labels.astype(np.int64))
