from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from hpo_mab._errors import ArgumentError
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


def test_a_plain_data_set_is_read_once() -> None:
    dataset = _Plain([2, 0, 1])
    assert labels_of(dataset).tolist() == [2, 0, 1]
    assert dataset.reads == 3


@pytest.mark.parametrize("name", ["targets", "labels"])
@pytest.mark.parametrize("kind", [list, torch.tensor])
def test_stored_labels_are_taken_without_reading(name: str, kind: Any) -> None:
    dataset = _WithTargets([0, 1, 1], **{name: kind([0, 1, 1])})
    labels = labels_of(dataset)
    assert labels.dtype == torch.int64
    assert labels.tolist() == [0, 1, 1]
    assert dataset.reads == 0


def test_stored_labels_pass_the_target_transform() -> None:
    dataset = _WithTargets([10, 20], targets=[10, 20], target_transform=lambda y: y // 10 - 1)
    assert labels_of(dataset).tolist() == [0, 1]


def test_stored_labels_of_another_length_are_not_trusted() -> None:
    assert labels_of(_WithTargets([1, 0], targets=[0, 1, 1])).tolist() == [1, 0]


def test_subsets_and_tensor_data_sets() -> None:
    tensors = TensorDataset(torch.zeros(4, 1), torch.tensor([3, 2, 1, 0]))
    assert labels_of(Subset(tensors, [3, 0])).tolist() == [0, 3]
    assert labels_of(Subset(_Plain([5, 6, 7]), [2, 1])).tolist() == [7, 6]


class _Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([(torch.zeros(1), 0)])


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (_Stream(), "map-style"),
        (_Plain([]), "must not be empty"),
        (_Plain([1, 1]), "at least two classes, got only 1"),
        (_Plain([-1, 1]), "at least 0, got -1"),
        (TensorDataset(torch.zeros(2), torch.tensor([0.0, 1.0])), "one integer for each"),
    ],
)
def test_unusable_labels_are_refused(dataset: Dataset[Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        labels_of(dataset)
