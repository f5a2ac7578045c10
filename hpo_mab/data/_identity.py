"""Whether data are the data that a study was made on."""

from __future__ import annotations

import dataclasses
import hashlib
import json

import torch

from hpo_mab.data._images import ImageData
from hpo_mab.data._splits import ImageSplits

#: Pixels that are read for a digest, in bytes; a larger data set is sampled evenly.
_PIXELS = 32 * 2**20


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DataIdentity:
    """Digests of a data set, small enough to be kept with a study.

    Data are the same if nobody has touched their files, or if the content is the same: copies of
    files have other times, and other versions of Pillow decode the same file to other pixels.

    Attributes:
        classes: Number of classes.
        content: Digest of the class names, the labels of all parts, and the pixels (mean and
            deviation of the training part; of other parts, a sample where they are many).
        files: Digest of names, sizes and times of the files and of the labels; empty where the
            data do not come from files of the user's.
    """

    classes: int
    content: str
    files: str = ""

    @classmethod
    def of(cls, splits: ImageSplits) -> DataIdentity:
        """The identity of data that are split."""
        labels = hashlib.blake2b(json.dumps(splits.train.classes).encode(), digest_size=16)
        for part in (splits.train, splits.validation, splits.test):
            labels.update(part.labels.cpu().numpy().tobytes() + b"\x1f")
        content = labels.copy()
        for part in (splits.train, splits.validation, splits.test):
            content.update(_sample(part))
        # Of every training pixel.
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


def _sample(part: ImageData) -> bytes:
    size = part.channels * part.image_size[0] * part.image_size[1]
    every = 1 + len(part) * size // (_PIXELS // 3)
    rows = torch.arange(0, len(part), every, device=part.device)
    return part.gather(rows).cpu().numpy().tobytes()
