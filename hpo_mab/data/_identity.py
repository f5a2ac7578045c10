"""The identity of the data of a study; a stored one is read without torch."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hpo_mab.data._images import ImageData
    from hpo_mab.data._splits import DatasetSplits, ImageSplits

#: Pixels that are read for a digest, in bytes; a larger data set is sampled evenly.
_PIXELS = 32 * 2**20


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DataIdentity:
    """Digests of a data set, small enough to be kept with a study.

    Data are the same if either digest is. Copying files changes ``files``, because it includes
    their times. Another version of Pillow may decode other pixels, which changes ``content``.

    Attributes:
        classes: Number of classes.
        content: Digest of the class names, the labels and pixels of all parts (of large parts a
            sample of the images), and the training part's mean and deviation. For data sets that
            are not images: of the training labels and the sizes only.
        files: Digest of names, sizes and times of the files, of the labels, and of the places of
            the training images; empty where the data do not come from files of the user's.
    """

    classes: int
    content: str
    files: str = ""

    @classmethod
    def of(cls, splits: ImageSplits | DatasetSplits) -> DataIdentity:
        """The identity of data that are split; of data sets, by labels and sizes alone."""
        from hpo_mab.data._splits import DatasetSplits

        if isinstance(splits, DatasetSplits):
            held = hashlib.blake2b(splits.labels.numpy().tobytes(), digest_size=16)
            held.update(repr(splits.sizes).encode())
            return cls(classes=splits.num_classes, content=held.hexdigest())
        labels = hashlib.blake2b(json.dumps(splits.train.classes).encode(), digest_size=16)
        for part in (splits.train, splits.validation, splits.test):
            # With a separator, so that examples that move to another part change the digest.
            labels.update(part.labels.cpu().numpy().tobytes() + b"\x1f")
        content = labels.copy()
        if splits.positions is not None:
            # Labels of a folder are sorted: two lists of excluded images may give equal labels.
            labels.update(splits.positions.cpu().numpy().tobytes())
        for part in (splits.train, splits.validation, splits.test):
            content.update(_sampled_pixels(part))
        # The statistics depend on every training pixel; `_sampled_pixels` may leave pixels out.
        content.update(splits.mean.cpu().numpy().tobytes() + splits.std.cpu().numpy().tobytes())
        files = splits.train.files
        labels.update(files.encode())
        return cls(
            classes=splits.train.num_classes,
            content=content.hexdigest(),
            files=labels.hexdigest() if files else "",
        )

    def is_same(self, other: DataIdentity) -> bool:
        """Whether both are of the same data."""
        return self.content == other.content or (self.files == other.files != "")


def source_digest(splits: ImageSplits | DatasetSplits) -> str:
    """Digest of the data that were split, whatever the seed of the split.

    Of images: class names, numbers of training images by class, and the test part's labels and
    pixels (a sample where they are many). If images are left out: the labels of all training images
    and the list, in place of the numbers. Of data sets: sizes, number of classes and shape of an
    input.
    """
    import torch

    from hpo_mab.data._splits import DatasetSplits

    if isinstance(splits, DatasetSplits):
        known = repr((splits.sizes, splits.num_classes, splits.input_shape))
        return hashlib.blake2b(known.encode(), digest_size=16).hexdigest()
    train, validation, test = splits.train, splits.validation, splits.test
    labels = torch.cat([train.labels.cpu(), validation.labels.cpu()])
    counts = labels.bincount(minlength=train.num_classes)
    held = hashlib.blake2b(json.dumps(train.classes).encode(), digest_size=16)
    numbers: tuple[object, ...] = (splits.sizes, counts.tolist())
    if splits.left_out:
        # How many of them the training part has depends on the split.
        numbers = (splits.sizes[1:], splits.source, splits.left_out)
    held.update(repr(numbers).encode())
    held.update(test.labels.cpu().numpy().tobytes() + _sampled_pixels(test))
    return held.hexdigest()


def _sampled_pixels(part: ImageData) -> bytes:
    """Pixels of all images of a part; of evenly spaced ones where all would be too many."""
    import torch

    size = part.channels * part.image_size[0] * part.image_size[1]
    # Three parts share the limit.
    every = 1 + len(part) * size // (_PIXELS // 3)
    rows = torch.arange(0, len(part), every, device=part.device)
    return part.gather(rows).cpu().numpy().tobytes()
