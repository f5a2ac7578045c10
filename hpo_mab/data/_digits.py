"""The handwritten digits that ship with scikit-learn."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits

from hpo_mab.data._images import ImageData
from hpo_mab.data._splits import stratified_halves

_TEST_SHARE = 0.2


def digits() -> tuple[ImageData, ImageData]:
    """1,797 grey 8x8 images of ten digits; a fixed stratified fifth is the test part."""
    source = load_digits()
    # Grey levels 0..16 become 0..255.
    pixels = np.rint(source.images * (255 / 16)).astype(np.uint8)
    data = ImageData(
        images=torch.from_numpy(pixels).unsqueeze(1),
        labels=torch.from_numpy(source.target.astype(np.int64)),
        classes=tuple(str(name) for name in source.target_names),
    )
    train, test = stratified_halves(data.labels, share=_TEST_SHARE, seed=0)
    return data.subset(train), data.subset(test)
