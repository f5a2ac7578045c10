from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch

from hpo_mab import data
from hpo_mab.data import ImageSplits, Normalization
from hpo_mab.training import DeviceBatches, DeviceSweep


@pytest.fixture(scope="session")
def splits() -> ImageSplits:
    return data.split(*data.load("digits"))


@pytest.fixture
def parts(splits: ImageSplits) -> dict[str, Any]:
    """Arguments of every training on digits: its batches and its validation examples."""
    scale = Normalization(splits.mean, splits.std)
    return {
        "batches": DeviceBatches(splits.train, normalization=scale),
        "validation": DeviceSweep(splits.validation, normalization=scale),
    }


@pytest.fixture(scope="session")
def saved() -> Callable[[Any], Any]:
    """Writes a state to a file and reads it again."""

    def reread(state: Any) -> Any:
        file = io.BytesIO()
        torch.save(state, file)
        file.seek(0)
        return torch.load(file, weights_only=True)

    return reread
