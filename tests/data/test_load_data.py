from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch.utils.data import TensorDataset

from hpo_mab import data
from hpo_mab._errors import ArgumentError, UnknownNameError
from hpo_mab.data import DataIdentity, DatasetSplits, ImageData, _load


def test_digits_are_the_grey_levels_of_scikit_learn() -> None:
    train, test = data.load("digits")
    source = load_digits().images
    assert len(train) + len(test) == len(source)
    assert len(test) == 360
    assert (train.image_size, train.channels, train.num_classes) == ((8, 8), 1, 10)
    levels = sorted(set(train.images.flatten().tolist()))
    assert levels == [round(level * 255 / 16) for level in range(17)]
    total = int(train.images.sum()) + int(test.images.sum())
    assert total == pytest.approx(source.sum() * 255 / 16, rel=1e-3)
    share = test.labels.bincount() / (train.labels.bincount() + test.labels.bincount())
    assert (share - 0.2).abs().max() < 0.01


@pytest.mark.parametrize("installed", [True, False], ids=["its file", "its function"])
def test_digits_are_all_of_scikit_learn(installed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not installed:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    images, classes = load_digits(return_X_y=True)
    rows = _load._digits_of_sklearn()
    assert (rows[:, :-1] == images).all()
    assert (rows[:, -1] == classes).all()


def test_digits_split_is_fixed() -> None:
    assert data.load("digits")[1].labels.tolist() == data.load("digits")[1].labels.tolist()


def test_unknown_names_offer_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"data set 'fashion_mnits'.*'fashion_mnist'"):
        data.load("fashion_mnits")
    with pytest.raises(UnknownNameError, match=r"option of data set 'image_folder' 'sise'.*'size'"):
        data.load("image_folder", sise=3)
    with pytest.raises(UnknownNameError, match="option of data set 'digits' 'size'"):
        data.load("digits", size=3)


def test_every_name_has_options() -> None:
    assert {name: data.options(name) for name in data.available() if data.options(name)} == {
        "image_folder": ("size",)
    }
    assert "cifar100" in data.available()
    assert list(data.available()) == sorted(data.available())


def _table(*, examples: int = 100, labels: int = 4) -> dict[str, Any]:
    classes = torch.arange(examples) % labels
    return {"train": TensorDataset(torch.arange(examples).float()[:, None], classes)}


def test_parts_that_a_data_set_lacks_are_held_out_class_by_class() -> None:
    splits = data.load_splits(_table, validation=0.25, seed=3, examples=100)
    assert isinstance(splits, DatasetSplits)
    assert (splits.sizes, splits.num_classes, splits.input_shape) == ((60, 20, 20), 4, (1,))
    parts = (splits.train, splits.validation, splits.test)
    seen = [{int(part[i][0]) for i in range(len(part))} for part in parts]  # type: ignore
    assert len(set.union(*seen)) == 100
    assert splits.labels.bincount().tolist() == [15] * 4
    assert [int(splits.train[i][1]) for i in range(60)] == splits.labels.tolist()
    # The test part is the same for every seed, the validation part is not.
    other = data.load_splits(_table, validation=0.25, seed=4)
    assert other.test.indices == splits.test.indices  # type: ignore
    assert other.validation.indices != splits.validation.indices  # type: ignore


def test_data_sets_of_other_labels_are_other_data() -> None:
    one, same, other = (
        DataIdentity.of(data.load_splits(_table, **options)) for options in ({}, {}, {"labels": 5})
    )
    assert one.is_same(same)
    assert not one.is_same(other)


def test_a_function_is_given_what_it_takes() -> None:
    seen: dict[str, Any] = {}

    def load(*, root: Path, seed: int, size: int = 2) -> dict[str, Any]:
        seen.update(root=root, seed=seed, size=size)
        return _table()

    data.load_splits(load, root="here", seed=7, size=5)
    assert seen == {"root": Path("here"), "seed": 7, "size": 5}
    assert data.options(load) == ("size",)


def test_parts_of_another_form_are_refused() -> None:
    images = ImageData(
        images=torch.zeros(4, 1, 8, 8, dtype=torch.uint8),
        labels=torch.tensor([0, 1, 0, 1]),
        classes=("a", "b"),
    )
    for found, words in (
        ([1], "must return a mapping with 'train'.*, got list"),
        ({"valid": images}, "got the keys 'valid'"),
        ({**_table(), "test": images}, "must all be ImageData, or none .* test ImageData"),
        ({"train": [3, 4]}, r"each item of the training set in data must be a pair"),
    ):
        with pytest.raises(ArgumentError, match=words):
            data.load_splits(lambda found=found: found)
    with pytest.raises(ArgumentError, match="is not one of images; use load_splits"):
        data.load(_table)


def test_images_to_leave_out_are_for_data_sets_of_images(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"data.exclude is for data sets of images.*_table"):
        data.load_splits(_table, exclude=tmp_path / "exclude.json")
