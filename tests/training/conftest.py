from __future__ import annotations

import pytest

from hpo_mab import data
from hpo_mab.data import ImageSplits


@pytest.fixture(scope="session")
def splits() -> ImageSplits:
    return data.split(*data.load("digits"))
