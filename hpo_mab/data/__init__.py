"""Image data sets held on the device: loading, splits, augmentation, normalisation."""

from hpo_mab._labels import labels_of
from hpo_mab.data._folder import DataWarning
from hpo_mab.data._images import Augmentation, ImageData, Normalization
from hpo_mab.data._load import available, default_augmentation, load, load_splits, options
from hpo_mab.data._splits import DataIdentity, DatasetSplits, Exclusion, ImageSplits, split

__all__ = [
    "Augmentation",
    "DataIdentity",
    "DataWarning",
    "DatasetSplits",
    "Exclusion",
    "ImageData",
    "ImageSplits",
    "Normalization",
    "available",
    "default_augmentation",
    "labels_of",
    "load",
    "load_splits",
    "options",
    "split",
]
