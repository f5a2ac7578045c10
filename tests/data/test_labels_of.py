from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from hpo_mab._errors import ArgumentError
from hpo_mab._labels import check_examples, class_labels
from hpo_mab.data import labels_of


class _Plain(Dataset[Any]):
    """Knows its labels only by reading; counts the reads."""

    def __init__(self, labels: list[Any]) -> None:
        self.values = labels
        self.reads = 0

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, Any]:
        self.reads += 1
        return torch.zeros(1), self.values[index]


class _WithTargets(_Plain):
    def __init__(self, values: list[Any], **attributes: Any) -> None:
        super().__init__(values)
        self.__dict__.update(attributes)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, Any]:
        x, y = super().__getitem__(index)
        return x, getattr(self, "target_transform", int)(y)


def test_a_plain_data_set_is_read_once() -> None:
    dataset = _Plain([2, 0, 1])
    assert labels_of(dataset).tolist() == [2, 0, 1]
    assert dataset.reads == 3


@pytest.mark.parametrize("name", ["targets", "labels"])
@pytest.mark.parametrize("kind", [list, torch.tensor])
def test_stored_labels_are_taken_after_a_look_at_both_ends(name: str, kind: Any) -> None:
    dataset = _WithTargets([0, 1, 1], **{name: kind([0, 1, 1])})
    labels = labels_of(dataset)
    assert labels.dtype == torch.int64
    assert labels.tolist() == [0, 1, 1]
    assert dataset.reads == 2


def test_stored_labels_pass_the_target_transform() -> None:
    dataset = _WithTargets([10, 20], targets=[10, 20], target_transform=lambda y: y // 10 - 1)
    assert labels_of(dataset).tolist() == [0, 1]


def test_stored_labels_of_another_length_are_not_trusted() -> None:
    assert labels_of(_WithTargets([1, 0], targets=[0, 1, 1])).tolist() == [1, 0]


def test_stored_labels_that_items_contradict_are_not_trusted() -> None:
    assert labels_of(_WithTargets([1, 0, 2], targets=[2, 1, 3])).tolist() == [1, 0, 2]


def test_subsets_and_tensor_data_sets() -> None:
    tensors = TensorDataset(torch.zeros(4, 1), torch.tensor([3, 2, 1, 0]))
    assert labels_of(Subset(tensors, [3, 0])).tolist() == [0, 3]
    assert labels_of(Subset(_Plain([5, 6, 7]), [2, 1])).tolist() == [7, 6]


class _Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([(torch.zeros(1), 0)])


class _Items(_Plain):
    def __getitem__(self, index: int) -> Any:
        return self.values[index]


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (_Stream(), "map-style"),
        (_Plain([]), "must not be empty"),
        (_Plain([1, 1]), "at least two classes, got only 1"),
        (_Plain([-1, 1]), "at least 0, got -1"),
        (_Plain([0, 1, 3.7]), r"labels of dataset must be one integer.*got 3.7 at position 2"),
        (_Plain([0, "cat", 1]), "got 'cat' at position 1; number the classes"),
        (_Plain([0, 1, math.nan]), "got nan at position 2; leave out"),
        (_Plain([0, None, 1]), "got None at position 1"),
        (_Plain([torch.eye(3)[0], torch.eye(3)[1]]), r"shape \[2, 3\]; of one-hot rows use argmax"),
        (_Plain([torch.tensor([0]), torch.tensor([1])]), r"shape \[2, 1\]; use squeeze"),
        (_WithTargets([0, 1], targets=["a", "b"]), "got 'a' at position 0"),
        (TensorDataset(torch.zeros(2), torch.tensor([0.5, 1.0])), "got 0.5 at position 0"),
        (
            TensorDataset(torch.zeros(2), torch.tensor([0, 1]), torch.ones(2)),
            r"each item of dataset must be a pair \(input, class\), got 3 values",
        ),
        (TensorDataset(torch.zeros(2)), "got 1 values"),
        (_Items([{"image": torch.zeros(1), "label": 0}]), "got a dict of 'image', 'label'"),
        (_Items([torch.zeros(1)]), "got Tensor"),
    ],
)
def test_unusable_labels_are_refused(dataset: Dataset[Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        labels_of(dataset)


class _Series:
    """What a pandas Series is to a reader: values of its own, found by an index from 5."""

    def __init__(self, values: list[int]) -> None:
        self.values = np.array(values)

    def __array__(self, *arguments: Any, **options: Any) -> np.ndarray[Any, Any]:
        return self.values

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> int:
        return int({5 + place: value for place, value in enumerate(self.values)}[index])


@pytest.mark.parametrize(
    "values",
    [
        [2, 0, 1],
        (2.0, 0.0, 1.0),
        _Series([2, 0, 1]),
        np.array([2, 0, 1], dtype=np.uint8),
        np.array([2, 0, 1], dtype=object),
        torch.tensor([2.0, 0.0, 1.0], dtype=torch.bfloat16),
        [torch.tensor(2), torch.tensor(0), torch.tensor(1)],
    ],
)
def test_whole_numbers_in_any_container_are_labels(values: Any) -> None:
    labels = class_labels(values)
    assert labels.dtype == torch.int64
    assert labels.tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "not empty"),
        (3, r"shape \[\]"),
        ([[0], [0, 1]], "rows of different lengths"),
        (torch.eye(3), "one-hot rows use argmax"),
        ([0, math.inf], "got inf at position 1"),
        ([0, 2.0**63], "at position 1"),
        (np.array([0, 2**64 - 1], dtype=np.uint64), "got 18446744073709551615 at position 1"),
        ([0, [1]], "rows of different lengths"),
        (np.array([0, "b"], dtype=object), "labels must be .* got 'b' at position 1"),
    ],
)
def test_what_is_no_label_is_refused(values: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        class_labels(values)


def test_a_look_at_examples_reads_both_ends_only() -> None:
    dataset = _Plain([1, 1, 1])
    check_examples(dataset)
    assert dataset.reads == 2
    with pytest.raises(ArgumentError, match=r"labels of validation .* got 0.5 at position 1"):
        check_examples(_Plain([1, 0.5]), name="validation")
