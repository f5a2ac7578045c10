"""The usual script: a well-written script that tunes a network with Optuna.

One process; torchvision's transforms of PIL images in a ``DataLoader`` with workers that persist,
pinned memory and non-blocking copies on CUDA, SGD with a linear warm-up and decay, a report and a
look at the pruner after every evaluation, validation under ``inference_mode`` in large batches.
No trial is pruned. Network, split, augmentation, batch size and budget are those of the other side
of `versus.py`::

    python benchmarks/opponent.py --trials 4 --steps 200
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import _shared
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from hpo_mab import models
from hpo_mab.data import ImageData, ImageSplits

if TYPE_CHECKING:
    import optuna


@dataclasses.dataclass(kw_only=True)
class Task:
    """What both sides of the comparison do.

    Attributes:
        data: A name of `_shared.SHAPES`.
        model: Network of `hpo_mab.models`.
        batch_size: Examples a batch.
        steps: Optimiser steps a trial.
        evaluations: Evaluations a trial, equally spaced.
        trials: Trials of the study.
        warmup: Share of the steps to warm the learning rate up over.
        seed: Seed of split, search and training.
    """

    data: str = "fashion_mnist"
    model: str = "small_cnn"
    batch_size: int = 128
    steps: int = 420
    evaluations: int = 4
    trials: int = 8
    warmup: float = 0.15
    seed: int = 0

    def splits(self, *, examples: int | None = None) -> ImageSplits:
        """The data set, or made-up data if it is not there."""
        found = None if examples else _shared.real(self.data, seed=self.seed)
        return found or _shared.made_up(self.data, train=examples or 50_000, rest=1_000)


class Pictures(Dataset[tuple[Tensor, int]]):
    """Images as in torchvision's data sets: PIL, then a transform."""

    def __init__(self, data: ImageData, transform: Any) -> None:
        from PIL import Image

        pixels = np.ascontiguousarray(data.images.permute(0, 2, 3, 1).numpy())
        self.pixels = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
        self.labels = data.labels.tolist()
        self.transform = transform
        self._image = Image.fromarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self._image(self.pixels[index])), self.labels[index]


def loaders(
    splits: ImageSplits, *, batch_size: int, workers: int, device: torch.device
) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Training batches, shuffled and augmented, and validation batches."""
    from torchvision import transforms

    size, pad = splits.train.image_size, min(splits.train.image_size) // 8
    plain = [
        transforms.ToTensor(),
        transforms.Normalize(splits.mean.tolist(), splits.std.tolist()),
    ]
    changed = [
        transforms.RandomCrop(size, padding=pad, padding_mode="reflect"),
        transforms.RandomHorizontalFlip(),
        *plain,
    ]
    shared = {
        "num_workers": workers,
        "persistent_workers": workers > 0,
        "pin_memory": device.type == "cuda",
    }
    train = DataLoader(
        Pictures(splits.train, transforms.Compose(changed)),
        batch_size=batch_size,
        shuffle=True,
        drop_last=True,
        **shared,
    )
    validation = DataLoader(
        Pictures(splits.validation, transforms.Compose(plain)), batch_size=1024, **shared
    )
    return train, validation


def endless(loader: DataLoader[Any], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches on the device, epoch after epoch."""
    while True:
        for inputs, targets in loader:
            yield inputs.to(device, non_blocking=True), targets.to(device, non_blocking=True)


class Objective:
    """Trains one configuration a call; loaders and their workers live as long as the study."""

    def __init__(
        self,
        task: Task,
        splits: ImageSplits,
        *,
        device: torch.device,
        workers: int,
        precision: str = "float32",
    ) -> None:
        self.task = task
        self.device = device
        self.precision = precision
        self.splits = splits
        self.train_loader, self.validation_loader = loaders(
            splits, batch_size=task.batch_size, workers=workers, device=device
        )
        self.batches = endless(self.train_loader, device)

    def __call__(self, trial: optuna.Trial) -> float:
        """Train a configuration; validation accuracy at the end of the budget."""
        # Imported here: `gpu.py` uses the rest of this file where Optuna may be missing.
        import optuna

        lr = trial.suggest_float("lr", 0.01, 0.5, log=True)
        weight_decay = trial.suggest_float("weight_decay", 1e-5, 1e-2, log=True)
        accuracy = 0.0
        for index, accuracy in enumerate(self.curve(lr, weight_decay, seed=trial.number), start=1):
            trial.report(accuracy, step=index)
            if trial.should_prune():
                raise optuna.TrialPruned
        return accuracy

    def curve(self, lr: float, weight_decay: float, *, seed: int = 0) -> Iterator[float]:
        """Validation accuracy after each part of the budget."""
        task, train = self.task, self.splits.train
        torch.manual_seed(seed)
        model = models.create(
            task.model,
            in_channels=train.channels,
            num_classes=train.num_classes,
            image_size=train.image_size,
        ).to(self.device)
        optimizer = torch.optim.SGD(
            model.parameters(), lr=lr, momentum=0.9, weight_decay=weight_decay
        )
        warm_up = max(1, round(task.warmup * task.steps))
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda step: min((step + 1) / warm_up, (task.steps - step) / (task.steps - warm_up)),
        )
        stops = {task.steps * part // task.evaluations for part in range(1, task.evaluations + 1)}
        for step in range(1, task.steps + 1):
            self.step(model, optimizer, *next(self.batches))
            schedule.step()
            if step in stops:
                yield self.accuracy(model)

    def step(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor, targets: Tensor
    ) -> None:
        """One optimiser step."""
        optimizer.zero_grad(set_to_none=True)
        with self._autocast():
            loss = F.cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()

    def accuracy(self, model: nn.Module) -> float:
        """Share of validation images classified correctly."""
        model.eval()
        correct = torch.zeros((), dtype=torch.int64, device=self.device)
        with torch.inference_mode(), self._autocast():
            for inputs, targets in self.validation_loader:
                outputs = model(inputs.to(self.device, non_blocking=True))
                correct += (outputs.argmax(1) == targets.to(self.device, non_blocking=True)).sum()
        model.train()
        return int(correct) / len(self.splits.validation)

    def _autocast(self) -> torch.autocast:
        bf16 = self.precision == "bfloat16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=bf16)


def study(objective: Objective) -> dict[str, Any]:
    """Run a study.

    Returns:
        Seconds, trials, and the best validation accuracy.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    task = objective.task
    search = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=task.seed),
        # Which trials are pruned depends on luck, and trials an hour would depend on it too.
        pruner=optuna.pruners.NopPruner(),
    )
    started = time.perf_counter()
    search.optimize(objective, n_trials=task.trials)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "trials": len(search.trials), "best": search.best_value}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for field in dataclasses.fields(Task):
        kind = type(field.default)
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=field.default)
    parser.add_argument("--workers", type=int, default=min(16, len(os.sched_getaffinity(0))))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--examples", type=int, help="made-up training images instead of real ones")
    options = vars(parser.parse_args())
    device, workers = torch.device(options.pop("device")), options.pop("workers")
    precision, examples = options.pop("precision"), options.pop("examples")
    task = Task(**options)
    objective = Objective(
        task, task.splits(examples=examples), device=device, workers=workers, precision=precision
    )
    print(json.dumps(study(objective)))


if __name__ == "__main__":
    main()
