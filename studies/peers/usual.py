"""The training that all peers share: a plain PyTorch script.

Network, schedule and split are those of the studies. The data are in memory, normalised once.
Batches come from a shuffled `DataLoader` as in the peers' examples. The arms ``optuna_*_tensors``
index tensors on the device instead, as an expert would write it.
"""

from __future__ import annotations

import functools
import json
import sys
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from contract import EVALUATIONS, TASKS, WARMUP, Event, EventLog, Job, Task
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

_EVALUATION_BATCH = 1000

Part = tuple[Tensor, Tensor]


def prepare(task: Task, path: Path, *, root: str, seed: int) -> None:
    """Write the data as normalised tensors, with the split of hpo_mab's study of the seed."""
    from hpo_mab import data
    from hpo_mab.search import load_spec
    from hpo_mab.search._prepare import load_splits

    splits = load_splits(load_spec(task.data, {"seed": seed, "data.root": root}))
    normalize = data.Normalization(splits.mean, splits.std)
    parts = {
        name: (normalize(part.images), part.labels.long())
        for name in ("train", "validation", "test")
        for part in (getattr(splits, name),)
    }
    torch.save({**parts, "classes": splits.train.num_classes}, path)


@functools.cache
def _load(path: str) -> dict[str, Part]:
    return torch.load(path, mmap=True)


@functools.cache
def _part(path: str, name: str, device: str, most: int | None = None) -> Part:
    images, labels = _load(path)[name]
    if most is not None:
        rows = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[:most]
        images, labels = images[rows], labels[rows]
    return images.to(device), labels.to(device)


def network(job: Job) -> nn.Module:
    """The task's network, untrained."""
    from hpo_mab import models

    images, _ = _load(job.data)["train"]
    made: nn.Module = models.create(
        TASKS[job.task].model,
        in_channels=images.shape[1],
        num_classes=_load(job.data)["classes"],
        image_size=tuple(images.shape[2:]),
    )
    return made.to(job.device)


def _batches(job: Job, *, tensors: bool) -> Iterator[Part]:
    size = TASKS[job.task].batch_size
    if tensors:
        images, labels = _part(job.data, "train", job.device)
        while True:
            order = torch.randperm(len(labels), device=images.device)
            for rows in order.split(size):
                if len(rows) == size:
                    yield images[rows], labels[rows]
    images, labels = _load(job.data)["train"]
    loader = DataLoader(
        TensorDataset(images, labels),
        batch_size=size,
        shuffle=True,
        drop_last=True,
        pin_memory=job.device == "cuda",
    )
    while True:
        for data, target in loader:
            yield data.to(job.device, non_blocking=True), target.to(job.device, non_blocking=True)


@torch.no_grad()
def evaluate(
    model: nn.Module, job: Job, *, part: str = "validation", most: int | None = None
) -> float:
    """Accuracy on a part of the data, in [0, 1]; on a fixed sample of ``most``, if given."""
    images, labels = _part(job.data, part, job.device, most)
    model.eval()
    correct = sum(
        (model(x).argmax(1) == y).sum()
        for x, y in zip(
            images.split(_EVALUATION_BATCH), labels.split(_EVALUATION_BATCH), strict=True
        )
    )
    return float(correct) / len(labels)


class Training:
    """One trial: trains a configuration, with accuracies at equal shares of the budget.

    Args:
        job: The arm's work.
        knobs: A configuration.
        seed: Of initial weights and batches.
        tensors: Whether batches are indexed from tensors on the device, in place of a loader.
        early: Validation examples in evaluations before the last; None takes all.
        checkpoint: File of a training that this one continues; None starts from nothing.
    """

    def __init__(
        self,
        job: Job,
        knobs: Mapping[str, float],
        *,
        seed: int,
        tensors: bool = False,
        early: int | None = None,
        checkpoint: Path | None = None,
    ) -> None:
        if job.device == "cpu":
            torch.set_num_threads(1)
        torch.manual_seed(seed)
        self.job = job
        self.share = 0
        self._early = early
        self.training = self.evaluating = 0.0
        task = TASKS[job.task]
        examples = len(_load(job.data)["train"][1])
        self._steps = max(1, round(task.epochs * examples / task.batch_size))
        self.examples_each = task.batch_size * self._steps / EVALUATIONS
        self.model = network(job)
        self._smoothing = knobs["label_smoothing"]
        self._optimizer = torch.optim.SGD(
            self.model.parameters(),
            lr=knobs["lr"],
            momentum=knobs["momentum"],
            weight_decay=knobs["weight_decay"],
        )
        rising = min(round(WARMUP * self._steps), self._steps - 1)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer,
            lambda step: (
                (step + 1) / rising
                if step < rising
                else max(self._steps - step, 0) / (self._steps - rising)
            ),
        )
        if checkpoint is not None:
            self._continue(torch.load(checkpoint, weights_only=True))
        self._batches = _batches(job, tensors=tensors)

    def _continue(self, state: dict[str, dict]) -> None:
        self.share = int(state["share"])
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])

    def save(self, path: Path) -> None:
        """Write a checkpoint."""
        torch.save(
            {
                "share": self.share,
                "model": self.model.state_dict(),
                "optimizer": self._optimizer.state_dict(),
                "schedule": self._schedule.state_dict(),
            },
            path,
        )

    def advance(self, *, evaluated: bool = True) -> float | None:
        """Train to the next share; returns the validation accuracy if it is to be evaluated."""
        began = time.perf_counter()
        first, last = (round(self._steps * s / EVALUATIONS) for s in (self.share, self.share + 1))
        self.model.train()
        for _ in range(first, last):
            data, target = next(self._batches)
            self._optimizer.zero_grad()
            loss = F.cross_entropy(self.model(data), target, label_smoothing=self._smoothing)
            loss.backward()
            self._optimizer.step()
            self._schedule.step()
        if self.job.device == "cuda":
            torch.cuda.synchronize()
        trained = time.perf_counter()
        self.share += 1
        most = self._early if self.share < EVALUATIONS else None
        accuracy = evaluate(self.model, self.job, most=most) if evaluated else None
        self.training, self.evaluating = trained - began, time.perf_counter() - trained
        return accuracy


@functools.cache
def _log(folder: str) -> EventLog:
    return EventLog(folder)


def train(
    job: Job,
    knobs: Mapping[str, float],
    *,
    trial: str,
    tensors: bool = False,
    early: int | None = None,
) -> Iterator[float]:
    """Validation accuracies of a trial at its shares, each logged; see `Training`.

    Args:
        job: The arm's work.
        knobs: A configuration.
        trial: The library's name of the trial.
        tensors: Whether batches are indexed from tensors on the device.
        early: Validation examples in evaluations before the last; None takes all.
    """
    log = _begin(job, knobs, trial)
    training = Training(job, knobs, seed=_seed(job, trial), tensors=tensors, early=early)
    while training.share < EVALUATIONS:
        accuracy = training.advance()
        _add(log, trial, training, accuracy)
        assert accuracy is not None
        yield accuracy


def train_to(
    job: Job,
    knobs: Mapping[str, float],
    *,
    trial: str,
    share: int,
    before: Path | None,
    after: Path,
) -> float:
    """Validation accuracy of a trial at a share, continued from a checkpoint; see `Training`.

    Args:
        job: The arm's work.
        knobs: A configuration.
        trial: The library's name of the trial.
        share: Where to end, in 1..`EVALUATIONS`.
        before: Checkpoint of an earlier share; None starts from nothing.
        after: Where to write the checkpoint of this one.
    """
    log = _begin(job, knobs, trial)
    training = Training(job, knobs, seed=_seed(job, trial), checkpoint=before)
    accuracy: float | None = None
    while training.share < share:
        accuracy = training.advance(evaluated=training.share + 1 == share)
        _add(log, trial, training, accuracy)
    training.save(after)
    if accuracy is None:
        raise ValueError(f"share must be above that of the checkpoint, {training.share}.")
    return accuracy


def _seed(job: Job, trial: str) -> int:
    return zlib.crc32(f"{job.seed}-{trial}".encode())


def _begin(job: Job, knobs: Mapping[str, float], trial: str) -> EventLog:
    log = _log(job.folder)
    log.add(Event(trial=trial, at=time.time(), share=0, config=dict(knobs)))
    return log


def _add(log: EventLog, trial: str, training: Training, accuracy: float | None) -> None:
    log.add(
        Event(
            trial=trial,
            at=time.time(),
            share=training.share,
            examples=round(training.examples_each),
            accuracy=accuracy,
            training=training.training,
            evaluating=training.evaluating,
        )
    )


def retrain(job: Job, knobs: Mapping[str, float], *, seed: int) -> float:
    """Test accuracy of a configuration after a full training with uniform batches."""
    training = Training(job, knobs, seed=seed, tensors=True)
    while training.share < EVALUATIONS:
        training.advance()
    return evaluate(training.model, job, part="test")


if __name__ == "__main__":  # python usual.py JOB KNOBS SEED...
    _job, _knobs = Job.load(sys.argv[1]), json.loads(sys.argv[2])
    print(json.dumps([retrain(_job, _knobs, seed=int(seed)) for seed in sys.argv[3:]]))
