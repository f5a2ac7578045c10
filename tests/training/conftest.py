from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from hpo_mab import data, models, samplers, training
from hpo_mab.data import Augmentation, ImageSplits, Normalization
from hpo_mab.samplers import BatchSampler
from hpo_mab.training import DeviceBatches, DeviceSweep, LoaderBatches, Training


@pytest.fixture
def exact() -> Iterator[None]:
    """The same kernels for the same arithmetic, none of them in TF32."""
    backends = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [backend.allow_tf32 for backend in backends]
    chosen = {"deterministic": True, "benchmark": False}
    settings = {name: getattr(torch.backends.cudnn, name) for name in chosen}
    try:
        for backend in backends:
            backend.allow_tf32 = False
        for name, value in chosen.items():
            setattr(torch.backends.cudnn, name, value)
        yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.allow_tf32 = value
        for name, value in settings.items():
            setattr(torch.backends.cudnn, name, value)


@pytest.fixture(scope="session")
def splits() -> ImageSplits:
    return data.load_splits("digits")


@pytest.fixture
def parts(splits: ImageSplits) -> dict[str, Any]:
    """Arguments of every training on digits: its batches and its validation examples."""
    scale = Normalization(splits.mean, splits.std)
    return {
        "batches": DeviceBatches(splits.train, normalization=scale),
        "validation": DeviceSweep(splits.validation, normalization=scale),
    }


@pytest.fixture
def start(splits: ImageSplits, parts: dict[str, Any]) -> Callable[..., Training]:
    """Starts a training with dropout, momentum and, unless a loader brings them, crops.

    ``kind`` is a name or class of batch samplers. With ``graph`` steps are those of CUDA, without
    a capture.
    """

    def make(
        kind: str | type[BatchSampler] = "mab",
        *,
        seed: int = 0,
        lr: float = 0.05,
        loader: int | None = None,
        optimizer: str = "sgd",
        knobs: dict[str, Any] | None = None,
        network: Callable[[], nn.Module] | None = None,
        graph: bool = False,
        **changes: Any,
    ) -> Training:
        torch.manual_seed(seed)
        shape = {"in_channels": 1, "num_classes": 10, "image_size": 8, "width": 8}
        small = functools.partial(models.create, "small_cnn", **shape, dropout=0.1)
        model = (network or small)()
        labels, normalization = splits.train.labels, parts["batches"].normalization
        crops = Augmentation(pad=1, flip=False)
        batches: Any = DeviceBatches(
            splits.train, normalization=normalization, augmentation=crops, seed=seed
        )
        if loader is not None:
            dataset = TensorDataset(normalization(splits.train.images), labels)
            batches = LoaderBatches(dataset, num_workers=loader)
        sampler = functools.partial(samplers.create, kind) if isinstance(kind, str) else kind
        arguments: dict[str, Any] = {
            "batches": batches,
            "validation": parts["validation"],
            "sampler": sampler(labels, batch_size=64, seed=seed, **knobs or {}),
            "optimizer": training.create_optimizer(optimizer, model.parameters(), lr=lr),
            "steps": 24,
            "evaluations": 4,
            "channels_last": True,
        }
        made = Training(model, **arguments | changes)
        made._may_use_graph = graph
        return made

    return make
