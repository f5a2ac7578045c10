"""A sampler in a Lightning module, as the documentation has it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from hpo_mab import MABSampler

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    lightning: Any = pytest.importorskip("lightning", reason="needs the extra 'lightning'")

X = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(60) % 3


class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 3)
        self.skipped = 0

    def train_dataloader(self) -> DataLoader[Any]:
        self.sampler = MABSampler(
            Y, batch_size=6, rank=self.trainer.global_rank, world_size=self.trainer.world_size
        )
        return DataLoader(TensorDataset(X, Y), batch_sampler=self.sampler)

    def training_step(self, batch: Any, batch_index: int) -> torch.Tensor | None:
        inputs, targets = batch
        if batch_index % 4 == 1:
            self.sampler.discard()
            self.skipped += 1
            return None
        losses = F.cross_entropy(self.layer(inputs), targets, reduction="none")
        return self.sampler.update(losses, targets=targets)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore")
def test_lightning_answers_every_draw(tmp_path: Path) -> None:
    module = Module()
    lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    ).fit(module)
    assert module.skipped == 6
    assert module.sampler.outstanding == 0
