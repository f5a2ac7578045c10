"""Parts of a data set, labels of a user's data sets, and whether data are the same."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import shutil
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.model_selection import train_test_split
from tools import photo
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from hpo_mab import _labels
from hpo_mab._errors import ArgumentError, DataError
from hpo_mab._labels import check_examples, class_labels, stratified_split
from hpo_mab.data import DataIdentity, DatasetSplits, ImageData, labels_of, load_splits, split
from hpo_mab.data._identity import source_digest
from hpo_mab.data._splits import Exclusion


def _data(counts: list[int], *, size: int = 4) -> ImageData:
    """``counts[c]`` images of class ``c``; each image is filled with its own position."""
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    values = torch.arange(len(labels)) % 256
    images = values.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 2, size, size).clone()
    return ImageData(images=images, labels=labels, classes=tuple(map(str, range(len(counts)))))


@given(
    counts=st.lists(st.integers(10, 40), min_size=2, max_size=6),
    share=st.floats(0.1, 0.9),
    seed=st.integers(0, 5),
)
@settings(max_examples=40)
def test_split_is_a_stratified_partition(counts: list[int], share: float, seed: int) -> None:
    data = _data(counts)
    parts = split(data, data, validation=share, seed=seed)
    both = torch.cat([parts.train.images, parts.validation.images])[:, 0, 0, 0]
    assert both.sort().values.tolist() == data.images[:, 0, 0, 0].sort().values.tolist()
    for number, count in enumerate(counts):
        held_out = int((parts.validation.labels == number).sum())
        # Off by the rounding of the total and of the class at most.
        assert abs(held_out - share * count) <= 2


@given(
    labels=st.lists(st.integers(-3, 3), min_size=2, max_size=60),
    share=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=300)
def test_the_split_is_that_of_scikit_learn(labels: list[int], share: float, seed: int) -> None:
    numbers = np.array(labels)
    distinct, counts = np.unique(numbers, return_counts=True)
    assume(len(distinct) > 1)
    single = np.isin(numbers, distinct[counts == 1])
    several = np.flatnonzero(~single)
    try:
        kept, held_out = train_test_split(
            several, test_size=share, random_state=seed, stratify=numbers[several]
        )
    except ValueError:
        with pytest.raises(ArgumentError, match="cannot hold some of each"):
            stratified_split(torch.tensor(labels), share=share, seed=seed)
        return
    first, second = stratified_split(torch.tensor(labels), share=share, seed=seed)
    assert first.tolist() == sorted([*kept, *np.flatnonzero(single)])
    assert second.tolist() == sorted(held_out)


def test_same_seed_same_split_other_seed_other_split() -> None:
    data = _data([30, 30])
    first, again, other = (split(data, data, seed=seed).validation.images for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_numbers_may_be_numpys() -> None:
    data = _data([30, 30])
    plain = split(data, data, validation=0.25, seed=3)
    again = split(data, data, validation=np.float32(0.25), seed=np.int64(3))
    assert torch.equal(plain.validation.images, again.validation.images)
    assert len(load_splits("digits", validation=np.float32(0.2)).validation) == 288


def test_a_class_seen_once_is_trained_on() -> None:
    parts = split(_data([20, 20, 1]), _data([20, 20, 1]), validation=0.25)
    assert (parts.train.labels == 2).sum() == 1
    assert not (parts.validation.labels == 2).any()


def test_statistics_are_those_of_the_training_part_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (50, 3, 4, 4), dtype=torch.uint8, generator=generator)
    images[:, 2] = 7
    data = ImageData(images=images, labels=torch.arange(50) % 2, classes=("a", "b"))
    parts = split(data, data, validation=0.3)
    pixels = parts.train.images.double().transpose(0, 1).flatten(1) / 255
    torch.testing.assert_close(parts.mean, pixels.mean(1).float())
    expected = pixels.std(1, correction=0).float()
    expected[2] = 1.0  # A constant channel must not divide by zero.
    torch.testing.assert_close(parts.std, expected)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 1.5])
def test_share_out_of_bounds_is_refused(share: float) -> None:
    with pytest.raises(
        ArgumentError, match=rf"validation must be a share in \(0, 1\), got {share}"
    ):
        split(_data([9, 9]), _data([9, 9]), validation=share)


def test_share_too_small_for_the_classes_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"validation = 0\.01 of 20 examples cannot hold"):
        split(_data([10, 10]), _data([10, 10]), validation=0.01)
    with pytest.raises(ArgumentError, match=r"test = 0\.2 .* Give the data set a test part of its"):
        stratified_split(torch.tensor([0, 1]), share=0.2, seed=0, name="test")


def test_a_single_class_is_refused() -> None:
    with pytest.raises(ArgumentError, match="at least two classes, got 1"):
        split(_data([20]), _data([20]))


def test_test_images_of_another_shape_are_refused() -> None:
    with pytest.raises(ArgumentError, match="test must have the classes and image shape"):
        split(_data([9, 9]), _data([9, 9], size=5))


def test_test_images_of_other_classes_are_refused_with_their_names() -> None:
    train = _data([9, 9])
    for classes, words in (
        (("0", "I"), "only in one of them: 1, I"),
        (("1", "0"), "another order"),
    ):
        test = ImageData(images=train.images, labels=train.labels, classes=classes)
        with pytest.raises(ArgumentError, match=f"got 2 classes .* for 2 .*; .*{words}"):
            split(train, test)


def test_parts_are_no_copies() -> None:
    data = _data([20, 20])
    parts = split(data, data, validation=0.25)
    data.images.fill_(99)
    for part in (parts.train, parts.validation):
        assert part.images.unique().tolist() == [99]


def test_given_validation_images_leave_the_training_images_whole() -> None:
    data, judged = _data([30, 30]), _data([5, 5])
    parts = split(data, data, validation=judged)
    assert len(parts.train) == 60
    assert torch.equal(parts.validation.images, judged.images)
    with pytest.raises(ArgumentError, match="validation must have the classes and image shape"):
        split(data, data, validation=_data([5, 5], size=3))


class _Plain(Dataset[Any]):
    """A data set without stored labels; counts the reads."""

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
def test_stored_labels_are_used_after_a_check_of_the_first_and_last(name: str, kind: Any) -> None:
    dataset = _WithTargets([0, 1, 1], **{name: kind([0, 1, 1])})
    labels = labels_of(dataset)
    assert labels.dtype == torch.int64
    assert labels.tolist() == [0, 1, 1]
    assert dataset.reads == 2


def test_stored_labels_pass_the_target_transform() -> None:
    dataset = _WithTargets([10, 20], targets=[10, 20], target_transform=lambda y: y // 10 - 1)
    assert labels_of(dataset).tolist() == [0, 1]


def test_reading_every_label_shows_its_progress(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seconds = itertools.count()
    clock = types.SimpleNamespace(monotonic=lambda: float(next(seconds)))
    monkeypatch.setattr(_labels, "time", clock)
    examples = [(torch.zeros(1), index % 2) for index in range(1_000)]
    labels_of(examples, name="the training set")  # type: ignore[arg-type]
    lines = [record.getMessage() for record in caplog.records]
    assert 80 < len(lines) < 110
    assert lines[0].startswith("the training set has no targets that agree with its items: 2 of")
    caplog.clear()
    labels_of(_WithTargets([1, 0], targets=[1, 0]))
    assert not caplog.records


def test_stored_labels_of_another_length_are_not_trusted() -> None:
    assert labels_of(_WithTargets([1, 0], targets=[0, 1, 1])).tolist() == [1, 0]


def test_stored_labels_that_items_contradict_are_not_trusted() -> None:
    assert labels_of(_WithTargets([1, 0, 2], targets=[2, 1, 3])).tolist() == [1, 0, 2]


@pytest.mark.parametrize(
    "labels", [["a", "b"], {0: "a", 1: "b"}, {"a", "b"}, lambda: [0, 1], [[1, 2], [3]]]
)
def test_what_is_not_the_examples_classes_is_not_taken_for_them(labels: Any) -> None:
    assert labels_of(_WithTargets([1, 0], labels=labels)).tolist() == [1, 0]


def test_subsets_and_tensor_data_sets() -> None:
    tensors = TensorDataset(torch.zeros(4, 1), torch.tensor([3, 2, 1, 0]))
    assert labels_of(Subset(tensors, [3, 0])).tolist() == [0, 3]
    assert labels_of(Subset(_Plain([5, 6, 7]), [2, 1])).tolist() == [7, 6]


class _Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([(torch.zeros(1), 0)])


class _LongStream(_Stream):
    def __len__(self) -> int:
        return 1


class _Items(_Plain):
    def __getitem__(self, index: int) -> Any:
        return self.values[index]


class _OneHot(_Items):
    """A data set that stores classes, and whose items have rows of NumPy."""

    targets = torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (_Stream(), "map-style"),
        (_LongStream(), "map-style"),
        (_Plain([]), "must not be empty"),
        (_Plain([1, 1]), "at least two classes, got only 1"),
        (_Plain([-1, 1]), "at least 0, got -1"),
        (_Plain([0, 1, 3.7]), r"labels of dataset must be one integer.*got 3.7 at position 2"),
        (_Plain([0, "cat", 1]), "got 'cat' at position 1; number the classes"),
        (_Plain([0, 1, math.nan]), "got nan at position 2; leave out"),
        (_Plain([0, None, 1]), "got None at position 1"),
        (_Plain([*torch.eye(2)]), r"shape \[1, 2\]; for one-hot rows use argmax"),
        (_Plain([torch.tensor([0]), torch.tensor([1])]), r"shape \[1, 1\]; use squeeze"),
        (TensorDataset(torch.zeros(2), torch.tensor([0.5, 1.0])), "got 0.5 at position 0"),
        (
            TensorDataset(torch.zeros(2), torch.tensor([0, 1]), torch.ones(2)),
            r"each item of dataset must be a pair \(input, class\), got 3 values",
        ),
        (TensorDataset(torch.zeros(2)), "got 1 values"),
        (_Items([{"image": torch.zeros(1), "label": 0}]), "got a dict of 'image', 'label'"),
        (_Items([torch.zeros(1)]), "got Tensor"),
        (TensorDataset(torch.zeros(2), torch.eye(2)), "for one-hot rows use argmax"),
        (_OneHot([(torch.zeros(1), row) for row in np.eye(2)]), "for one-hot rows use argmax"),
    ],
)
def test_unusable_labels_are_refused(dataset: Dataset[Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        labels_of(dataset)


@pytest.mark.parametrize(
    ("first", "message"),
    [
        ("cat", "number the classes"),
        (0.5, "classes are whole numbers"),
        (torch.zeros(4, 4), "one-dimensional"),
    ],
)
def test_labels_of_another_kind_are_refused_at_the_first_example(first: Any, message: str) -> None:
    dataset = _Plain([first, 1, 0])
    with pytest.raises(ArgumentError, match=message):
        labels_of(dataset)
    assert dataset.reads == 1


def test_a_wrong_validation_part_is_refused_before_the_training_part_is_read() -> None:
    train = _Plain([0, 1])
    with pytest.raises(ArgumentError, match="labels of the validation set in data"):
        DatasetSplits.of(train, _Plain([0.5]))
    assert train.reads == 0


class _Series:
    """Like a pandas Series: values with an index that begins at 5."""

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
        (3, "got 3"),
        ([[0], [0, 1]], "rows of different lengths"),
        (torch.eye(3), r"one-hot rows use argmax\(1\)"),
        ([0, math.inf], "got inf at position 1"),
        (np.array([0, 2**64 - 1], dtype=np.uint64), "got 18446744073709551615 at position 1"),
        ([0, [1]], "rows of different lengths"),
        (np.array([0, "b"], dtype=object), "labels must be .* got 'b' at position 1"),
    ],
)
def test_what_is_no_label_is_refused(values: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        class_labels(values)


def test_the_check_of_a_data_set_reads_the_first_and_last_example_only() -> None:
    dataset = _Plain([1, 1, 1])
    check_examples(dataset)
    assert dataset.reads == 2
    with pytest.raises(ArgumentError, match=r"labels of validation .* got 0.5 at position 1"):
        check_examples(_Plain([1, 0.5]), name="validation")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    for number, name in enumerate(("cat", "dog", "owl")):
        for index in range(12):
            photo(root / name / f"{index:02}.png", 20 * number + index)
    return root


def _identity(root: Path) -> DataIdentity:
    return DataIdentity.of(load_splits("image_folder", root=root, size=8, validation=0.2))


def test_data_are_the_same_twice_and_in_a_copy(photos: Path, tmp_path: Path) -> None:
    first = _identity(photos)
    assert _identity(photos) == first
    copied = shutil.copytree(photos, tmp_path / "copy", copy_function=shutil.copyfile)
    shutil.rmtree(copied / ".hpo_mab_cache")
    assert _identity(copied).files != first.files, "a copy has other times"
    assert _identity(copied).is_same(first)


def test_other_pixels_of_untouched_files_are_the_same_data(photos: Path) -> None:
    first = _identity(photos)
    decoded_elsewhere = DataIdentity(classes=3, content="other", files=first.files)
    assert decoded_elsewhere.is_same(first)
    assert not DataIdentity(classes=3, content="other").is_same(
        DataIdentity(classes=3, content="another")
    )


def _other_class(root: Path) -> None:
    (root / "owl").rename(root / "rat")


def _other_picture(root: Path) -> None:
    photo(root / "cat" / "03.png", 999)
    os.utime(root / "cat" / "03.png", ns=(1, time.time_ns() + 10**9))


def _file_of_another_class(root: Path) -> None:
    (root / "cat" / "03.png").rename(root / "dog" / "99.png")
    (root / "dog" / "03.png").rename(root / "cat" / "03.png")


def test_lists_that_leave_out_as_many_images_of_each_class_are_other_data(photos: Path) -> None:
    splits = load_splits("image_folder", root=photos, size=8, validation=0.2)
    assert splits.positions is not None
    first, second = splits.positions.tolist()[:2]
    assert splits.labels[0] == splits.labels[1]
    identities = [
        DataIdentity.of(splits.without(Exclusion(labels=splits.source, indices=(index,))))
        for index in (first, first, second)
    ]
    assert identities[0].is_same(identities[1])
    assert not identities[0].is_same(identities[2])


@pytest.mark.parametrize("change", [_other_class, _other_picture, _file_of_another_class])
def test_equal_counts_of_other_data_are_noticed(photos: Path, change: object) -> None:
    first = _identity(photos)
    change(photos)  # type: ignore[operator]
    changed = _identity(photos)
    assert changed.classes == first.classes
    assert not changed.is_same(first)


def test_a_million_labels_take_little_time() -> None:
    labels = torch.arange(1_000_000) % 10
    data = ImageData(
        images=torch.zeros(10, 3, 4, 4, dtype=torch.uint8),
        labels=labels[:10],
        classes=tuple("abcdefghij"),
        files="digest",
    ).subset(labels)
    splits = split(data, data.subset(torch.arange(10)), validation=0.1, seed=0)
    began = time.process_time()
    DataIdentity.of(splits)
    assert time.process_time() - began < 5


def test_the_digest_of_the_source_does_not_depend_on_the_split() -> None:
    one, other = (load_splits("digits", seed=seed) for seed in (0, 1))
    assert not DataIdentity.of(one).is_same(DataIdentity.of(other))
    assert source_digest(one) == source_digest(other)
    fewer = dataclasses.replace(one, train=one.train.subset(torch.arange(1000)))
    assert source_digest(fewer) != source_digest(one)
    swapped = dataclasses.replace(one, test=one.test.subset(torch.arange(360).flip(0)))
    assert source_digest(swapped) != source_digest(one)
    excluded = [Exclusion(labels=one.source, indices=tuple(range(0, 300, step))) for step in (3, 4)]
    digests = [[source_digest(each.without(some)) for each in (one, other)] for some in excluded]
    assert digests[0][0] == digests[0][1]
    assert len({source_digest(one), digests[0][0], digests[1][0]}) == 3


@pytest.mark.parametrize("middle", [None, 0.5, math.nan])
def test_every_stored_label_is_checked(middle: Any) -> None:
    with pytest.raises(ArgumentError, match="at position 1"):
        check_examples(_WithTargets([0, 1, 1], targets=[0, middle, 1]), name="data")


def test_reversed_labels_are_labels() -> None:
    assert class_labels(np.arange(3)[::-1]).tolist() == [2, 1, 0]


@pytest.mark.parametrize("indices", [range(20), range(0, 20, 2)])
def test_an_exclusion_must_leave_some_images_of_each_class(indices: range) -> None:
    data = ImageData.from_arrays(np.zeros((20, 8, 8), dtype=np.uint8), ["cat", "dog"] * 10)
    splits = dataclasses.replace(split(data, data, validation=0.2), names=("a.png", "b.png"))
    excluded = Exclusion(labels=splits.source, indices=tuple(indices), path="out.json")
    with pytest.raises(DataError, match=r"out\.json lists all training images of class cat"):
        splits.without(excluded)


def test_an_exclusion_may_hold_any_numbers(tmp_path: Path) -> None:
    data = ImageData.from_arrays(np.zeros((20, 8, 8), dtype=np.uint8), [0, 1] * 10)
    splits = split(data, data, validation=0.2)
    large = Exclusion(labels=splits.source, indices=(2**70, -5, 0, 1), path="out.json")
    held_out = {0, 1} - set(splits.positions.tolist() if splits.positions is not None else ())
    assert len(splits.without(large).train) == len(splits.train) - 2 + len(held_out)
    path = tmp_path / "out.json"
    path.write_text(large.to_json().replace(str(2**70), "1e400"))
    with pytest.raises(DataError, match="is not a list of images"):
        Exclusion.load(path)
