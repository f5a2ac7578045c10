from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture
def data_root() -> Path:
    """Root of data sets that do not ship with a dependency."""
    root = os.environ.get("HPO_MAB_DATA")
    if not root:
        pytest.skip("HPO_MAB_DATA does not name a folder with FashionMNIST, CIFAR10 and CIFAR100")
    return Path(root)


@pytest.fixture(autouse=True, scope="session")
def _quiet_optuna() -> Iterator[None]:
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    yield
    optuna.logging.set_verbosity(optuna.logging.INFO)
