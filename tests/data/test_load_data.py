from __future__ import annotations

import pytest
from sklearn.datasets import load_digits

from hpo_mab import data
from hpo_mab._errors import UnknownNameError


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
