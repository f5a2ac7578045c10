"""Data sets: loading, labels and splits; augmentation and normalisation of images on the device.

Names are imported when first used: a stored study is read without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpo_mab._registry import lazy_names

if TYPE_CHECKING:
    from hpo_mab._labels import labels_of
    from hpo_mab.data._identity import DataIdentity
    from hpo_mab.data._images import Augmentation, ImageData, Normalization
    from hpo_mab.data._load import load_splits
    from hpo_mab.data._splits import DatasetSplits, ImageSplits, split

__all__ = [
    "Augmentation",
    "DataIdentity",
    "DatasetSplits",
    "ImageData",
    "ImageSplits",
    "Normalization",
    "labels_of",
    "load_splits",
    "split",
]

__getattr__, __dir__ = lazy_names(__name__)
