"""Labels: the checks of samplers, data sets and feedback, and splits in proportion to classes."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from hpo_mab._errors import ArgumentError, require

_log = logging.getLogger("hpo_mab.data")
#: Seconds before the first progress line, and between two.
FIRST_LINE, NEXT_LINE = 2.0, 10.0
_HINT_OF_NUMBERING = "number the classes, e.g. numpy.unique(labels, return_inverse=True)[1]"


def class_labels(values: Any, *, name: str = "labels") -> Tensor:
    """The classes of examples as integers, from any container that holds whole numbers.

    Whole numbers are integers, booleans, and floats without a fraction. A pandas Series is read in
    its order, whatever its index.

    Args:
        values: One class an example: a tensor, an array, a Series or a sequence, [N].
        name: The argument, for errors.

    Returns:
        Int64 [N] on the CPU; ``values`` itself where it already is that.

    Raises:
        ArgumentError: Not one whole number an example; names the first that is none.
    """
    if isinstance(values, Dataset):
        raise ArgumentError(
            f"{name} must be one integer for each example, got {type(values).__name__}; "
            "hpo_mab.data.labels_of returns those of a data set."
        )
    if isinstance(values, Tensor):
        tensor = values.detach().cpu()
        if tensor.dtype == torch.int64 and tensor.ndim == 1 and len(tensor):
            return tensor
        # NumPy has no bfloat16.
        values = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    try:
        array = np.asarray(values)
        # One text makes NumPy convert all values to text; the error must show the first as given.
        if array.dtype.kind in "US":
            array = np.asarray(values, dtype=object)
    except ValueError:
        raise ArgumentError(
            f"{name} must be one integer for each example, got rows of different lengths."
        ) from None
    if array.ndim != 1 or not array.size:
        shape = f"shape {list(array.shape)}{_hint_of_shape(array.shape)}"
        raise ArgumentError(
            f"{name} must be one-dimensional and not empty, one integer for each example, "
            f"got {shape if array.ndim else repr(values)}."
        )
    wrong = _first_not_whole(array)
    if wrong is not None:
        value = array[wrong]
        text = str(value) if isinstance(value, np.generic) else repr(value)
        raise ArgumentError(
            f"{name} must be one integer for each example, got {text} at position {wrong}; "
            f"{_hint_of_value(value)}."
        )
    # torch warns of arrays that it must not write to, and takes none that is reversed.
    copy = not array.flags.writeable or array.strides[0] < 0
    return torch.from_numpy(array.astype(np.int64, copy=copy))


def labels_of(dataset: Dataset[Any], *, name: str = "dataset") -> Tensor:
    """Class of each example of a map-style data set of ``(x, y)`` pairs, as samplers need them.

    Reads ``targets`` or ``labels`` (through ``target_transform``) if they agree with the first and
    the last example. Looks into ``Subset`` and ``TensorDataset``. Otherwise reads every example
    once. That may take long: from 2 seconds on it logs its progress (``hpo_mab.data``, a warning,
    every 10 seconds).

    Args:
        dataset: Data set with ``__len__`` and ``__getitem__``.
        name: The argument, for errors.

    Returns:
        Labels, int64 [N], each at least 0.

    Raises:
        ArgumentError: A data set without length or examples, or items that are not pairs. Labels
            that are not integers from 0, or are all equal.
    """
    labels = _checked_labels(dataset, name, read=True)
    low, high = int(labels.min()), int(labels.max())
    if low == high:
        raise ArgumentError(f"labels of {name} must hold at least two classes, got only {low}.")
    return labels


def check_examples(
    dataset: Dataset[Any], *, name: str = "dataset", classes: int | None = None
) -> None:
    """Raise for a data set whose items are not ``(x, y)`` pairs with an integer class.

    Checks the labels that the data set keeps, or else its first and its last example. One class
    alone is allowed.

    Args:
        dataset: Map-style data set.
        name: The argument, for errors.
        classes: Classes of the training set; None is not checked.
    """
    high = int(_checked_labels(dataset, name, read=False).max())
    if classes is not None:
        bound = f"in [0, {classes}), the classes of the training set"
        require(high < classes, f"labels of {name}", bound, high)


def _checked_labels(dataset: Any, name: str, *, read: bool) -> Tensor:
    mapped = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    if not mapped or isinstance(dataset, IterableDataset):
        raise ArgumentError(
            f"{name} must be map-style, with __len__ and __getitem__, got {type(dataset).__name__}."
        )
    size = len(dataset)
    if size == 0:
        raise ArgumentError(f"{name} must not be empty, got 0 examples.")
    ends = (0, size - 1)
    labels = None
    found = _stored_labels(dataset, size)
    if found is not None:
        # Items are checked before labels: a wrong item explains a wrong label.
        items = [_label_at(dataset, index, name) for index in ends]
        if found[list(ends)].tolist() == items:
            labels = class_labels(found, name=f"labels of {name}")
    if labels is None:
        places = range(size) if read else ends
        items = _labels_at(dataset, places, name)
        labels = class_labels(items, name=f"labels of {name}")
    low = int(labels.min())
    if low < 0:
        raise ArgumentError(f"labels of {name} must be at least 0, got {low}.")
    return labels


def _labels_at(dataset: Any, places: Iterable[int], name: str) -> list[Any]:
    """Label of each of these examples, with lines of progress where reading them takes long."""
    items = []
    due = time.monotonic() + FIRST_LINE
    for done, index in enumerate(places, start=1):
        items.append(_label_at(dataset, index, name))
        if done == 1:
            # Labels of another kind are refused before every example is read.
            class_labels(items, name=f"labels of {name}")
        if time.monotonic() >= due:
            due = time.monotonic() + NEXT_LINE
            _log.warning(
                "%s has no targets that agree with its items: %s of %s examples read for their "
                "class. An attribute 'targets' with one class per example avoids this.",
                name,
                f"{done:,}",
                f"{len(dataset):,}",
            )
    return items


def _label_at(dataset: Any, index: int, name: str) -> Any:
    item = dataset[index]
    if not isinstance(item, tuple | list) or len(item) != 2:
        what = (
            f"a dict of {', '.join(map(repr, item))}"
            if isinstance(item, dict)
            else f"{len(item)} values"
            if isinstance(item, tuple | list)
            else type(item).__name__
        )
        raise ArgumentError(
            f"each item of {name} must be a pair (input, class), got {what}; "
            "wrap the data set so that __getitem__ returns the pair."
        )
    label = item[1]
    return label.tolist() if isinstance(label, Tensor | np.ndarray) else label


def _stored_labels(dataset: Any, size: int) -> np.ndarray[Any, Any] | None:
    """Labels [N] that the data set keeps; None where it has to be read."""
    try:
        found = np.asarray(_kept_labels(dataset, size))
    except Exception:  # What is called labels may be of any kind.
        return None
    return found if found.shape == (size,) else None


def _kept_labels(dataset: Any, size: int) -> Any:
    if isinstance(dataset, Subset):
        inner = _stored_labels(dataset.dataset, len(dataset.dataset))  # type: ignore[arg-type]
        return None if inner is None else np.asarray(inner)[np.asarray(dataset.indices)]
    if isinstance(dataset, TensorDataset):
        return dataset.tensors[1].cpu().numpy() if len(dataset.tensors) > 1 else None
    for name in ("targets", "labels"):
        labels: Any = getattr(dataset, name, None)
        # A method, or a table of names, is not the examples' labels.
        if hasattr(labels, "__len__") and not isinstance(labels, Mapping) and len(labels) == size:
            transform = getattr(dataset, "target_transform", None)
            values = labels.cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
            return values if transform is None else [transform(value) for value in values]
    return None


def _first_not_whole(array: np.ndarray[Any, Any]) -> int | None:
    """Place of the first value that is no whole number; None if all are."""
    if array.dtype.kind in "iubf":
        # A value that int64 cannot hold, such as NaN, comes back as another.
        with np.errstate(invalid="ignore", over="ignore"):
            wrong = array.astype(np.int64) != array
    else:
        wrong = np.array([not _is_whole(value) for value in array.tolist()])
    return int(wrong.argmax()) if wrong.any() else None


def _is_whole(value: Any) -> bool:
    try:
        return not isinstance(value, str | bytes) and int(value) == value
    except (TypeError, ValueError, OverflowError):
        return False


def _hint_of_shape(shape: tuple[int, ...]) -> str:
    if len(shape) != 2:
        return ""
    return "; use squeeze(1)" if shape[1] == 1 else "; for one-hot rows use argmax(1)"


def _hint_of_value(value: Any) -> str:
    number = isinstance(value, float | np.floating)
    if value is None or (number and math.isnan(value)):
        return "leave out examples without a class"
    return "classes are whole numbers" if number else _HINT_OF_NUMBERING


def stratified_split(
    labels: Tensor, *, share: float, seed: int, name: str = "validation"
) -> tuple[Tensor, Tensor]:
    """Split positions in two, each class in proportion; a class seen once stays on the first side.

    A class with few examples may be absent from the smaller side.

    Args:
        labels: Class of each example, int64 [N].
        share: Share of the second side, in (0, 1).
        seed: Seed of the split.
        name: Name of the share in errors.

    Returns:
        Sorted positions of the first and of the second side, int64.
    """
    require(0 <= seed < 2**32, "seed", "in [0, 2**32)", seed)
    require(0.0 < share < 1.0, name, "a share in (0, 1)", share)
    _, classes, sizes = np.unique(labels.cpu().numpy(), return_inverse=True, return_counts=True)
    if len(sizes) < 2:
        raise ArgumentError(f"labels must hold at least two classes, got {len(sizes)}.")
    repeated = sizes > 1
    positions = np.flatnonzero(repeated[classes])
    of_second = math.ceil(share * len(positions))
    if min(of_second, len(positions) - of_second) < max(1, int(repeated.sum())):
        # Nobody chooses the share of a test part.
        hint = " Give the data set a test part of its own." if name == "test" else ""
        raise ArgumentError(
            f"{name} = {share} of {len(classes)} examples cannot hold some of each of the "
            f"{len(sizes)} classes on both sides.{hint}"
        )
    # Classes that are seen more than once, numbered from 0.
    numbers = (np.cumsum(repeated) - 1)[classes[positions]]
    second = positions[_stratified(numbers, sizes[repeated], of_second, seed=seed)]
    kept = np.ones(len(classes), dtype=bool)
    kept[second] = False
    return torch.from_numpy(np.flatnonzero(kept)), torch.from_numpy(second)


# The choice is that of scikit-learn's `train_test_split(stratify=...)`. Its import would take a
# second or two at every start of a process.


def _stratified(
    numbers: NDArray[np.int64], sizes: NDArray[np.int64], count: int, *, seed: int
) -> NDArray[np.int64]:
    """Sorted positions of ``count`` examples, each class in proportion.

    Args:
        numbers: Class of each example, from 0, [N].
        sizes: Examples of each class, [C].
        count: Examples to choose.
        seed: Seed of the choice.
    """
    random = np.random.RandomState(seed)
    others = _proportional(sizes, len(numbers) - count, random)
    chosen = _proportional(sizes - others, count, random)
    members = np.split(np.argsort(numbers, kind="stable"), np.cumsum(sizes)[:-1])
    found = []
    for of_class, before, own in zip(members, others, chosen, strict=True):
        shuffled = of_class[random.permutation(len(of_class))]
        found.append(shuffled[before : before + own])
    return np.sort(np.concatenate(found))


def _proportional(
    sizes: NDArray[np.int64], count: int, random: np.random.RandomState
) -> NDArray[np.int64]:
    """Divide ``count`` in proportion; the largest remainders get one more, equal ones at random."""
    exact = sizes / sizes.sum() * count
    shares: NDArray[np.float64] = np.floor(exact)
    remainders = exact - shares
    left = int(count - shares.sum())
    for remainder in np.unique(remainders)[::-1]:
        if left == 0:
            break
        (equal,) = np.where(remainders == remainder)
        more = random.choice(equal, size=min(len(equal), left), replace=False)
        shares[more] += 1
        left -= len(more)
    return shares.astype(np.int64)
