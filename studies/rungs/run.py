"""Learning curves of trained (raw) and averaged weights; ``tables.py`` evaluates rungs on them.

python studies/rungs/run.py fashion_mnist --root data --out fashion_mnist.json
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hpo_mab import data, samplers
from hpo_mab.data import ImageSplits, Normalization
from hpo_mab.training import (
    Budget,
    DeviceBatches,
    DeviceSweep,
    Evaluation,
    StackedTrainer,
    select_device,
)

sys.path.append(str(Path(__file__).parents[1]))
from shared import configurations, network, write

EVALUATIONS = 8
CONFIGURATIONS = 24
BATCH_SIZE = {"digits": 64}
EPOCHS = {"digits": 8.0}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arm:
    """A way to train the configurations.

    Attributes:
        sampler: Kind of batch sampler.
        schedule: Schedule of the learning rate.
        average: Window of the average, as a share of the steps so far.
    """

    sampler: str = "uniform"
    schedule: str = "linear"
    average: float = 0.2


ARMS = (
    *(Arm(average=window) for window in (0.05, 0.1, 0.2, 0.4)),
    *(Arm(sampler="mab", average=window) for window in (0.1, 0.2)),
    *(Arm(schedule="constant", average=window) for window in (0.1, 0.2, 0.4)),
    Arm(sampler="mab", schedule="constant", average=0.2),
)


class Recorder:
    """Trains all configurations of an arm at once and records both kinds of curves.

    Args:
        splits: The data, on the device.
        name: Of the data set.
        epochs: Budget of a training.
        model: Name of the network.
        slots: Trainings at the same time.
    """

    def __init__(
        self, splits: ImageSplits, *, name: str, epochs: float, model: str, slots: int
    ) -> None:
        self.splits = splits
        self.batch_size = BATCH_SIZE.get(name, 128)
        self.model = model
        self.steps = Budget(epochs=epochs).num_steps(
            num_examples=len(splits.train), batch_size=self.batch_size
        )
        normalization = Normalization(splits.mean, splits.std)
        self.test = DeviceSweep(splits.test, normalization=normalization)
        self.labels = splits.train.labels
        self.trainer = StackedTrainer(
            self.network(0),
            slots=slots,
            batches=DeviceBatches(splits.train, normalization=normalization),
            validation=DeviceSweep(splits.validation, normalization=normalization),
            batch_size=self.batch_size,
            precision="bfloat16" if splits.train.device.type == "cuda" else "float32",
        )

    def network(self, seed: int) -> nn.Module:
        """An untrained network."""
        return network(self.splits.train, seed, self.model)

    def curves(self, arm: Arm, points: list[dict[str, float]], *, seed: int) -> Iterator[Any]:
        """One record per configuration, with the same initial weights and, if uniform, batches."""
        slots = self.trainer.slots
        for first in range(0, len(points), slots):
            yield from self._some(arm, points[first : first + slots], first=first, seed=seed)

    def _some(
        self, arm: Arm, points: list[dict[str, float]], *, first: int, seed: int
    ) -> Iterator[Any]:
        device = "cpu" if arm.sampler == "mab" else self.labels.device
        network = self.network(seed)
        for slot, point in enumerate(points):
            knobs = dict(point)
            self.trainer.start(
                slot,
                network,
                sampler=samplers.create(
                    arm.sampler, self.labels, batch_size=self.batch_size, seed=seed, device=device
                ),
                steps=self.steps,
                evaluations=EVALUATIONS,
                warmup=0.15,
                schedule=arm.schedule,
                average=arm.average,
                label_smoothing=knobs.pop("label_smoothing"),
                optimizer=knobs,
            )
        slots = range(len(points))
        curves: dict[str, list[list[float]]] = {"averaged": [[] for _ in slots]}
        curves["raw"] = [[] for _ in slots]
        while self.trainer.busy:
            found = dict(self.trainer.advance())
            alive = [slot for slot, value in found.items() if isinstance(value, Evaluation)]
            for kind, averaged in (("averaged", True), ("raw", False)):
                for slot, (accuracy, _) in self.trainer.scores(alive, averaged=averaged).items():
                    curves[kind][slot].append(round(accuracy, 5))
        tests = {
            kind: self.trainer.scores(list(slots), averaged=averaged, sweep=self.test)
            for kind, averaged in (("averaged", True), ("raw", False))
        }
        for slot in slots:
            yield {
                "configuration": first + slot,
                "seed": seed,
                "averaged": curves["averaged"][slot],
                "raw": curves["raw"][slot],
                "test": {kind: round(score[slot][0], 5) for kind, score in tests.items()},
            }


def record(
    name: str,
    *,
    root: Path,
    out: Path,
    seeds: int,
    epochs: float | None,
    device: str,
    model: str,
    slots: int,
    arms: tuple[Arm, ...] = ARMS,
) -> None:
    """Train every arm on every seed; the file is saved after each arm."""
    where = select_device(device)
    splits = data.load_splits(name, root=root, download=False).to(where)
    budget = epochs or EPOCHS.get(name, 2.0)
    recorder = Recorder(splits, name=name, epochs=budget, model=model, slots=slots)
    points = configurations(CONFIGURATIONS, seed=0)
    document: dict[str, Any] = {
        "data": name,
        "model": model,
        "epochs": budget,
        "steps": recorder.steps,
        "batch_size": recorder.batch_size,
        "configurations": points,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if where.type == "cuda" else "cpu",
        "arms": [],
    }
    for arm in arms:
        started = time.perf_counter()
        curves = [
            curve for seed in range(seeds) for curve in recorder.curves(arm, points, seed=seed)
        ]
        seconds = time.perf_counter() - started
        document["arms"].append(
            {**dataclasses.asdict(arm), "seconds": round(seconds, 2), "curves": curves}
        )
        write(out, json.dumps(document) + "\n")
        print(name, arm, f"{seconds:.1f} s, captured: {recorder.trainer.captured}", flush=True)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=("digits", "fashion_mnist", "cifar10", "cifar100"))
    parser.add_argument("--root", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--model", default="small_cnn")
    parser.add_argument("--slots", type=int, default=CONFIGURATIONS)
    parser.add_argument(
        "--only-schedules",
        action="store_const",
        dest="arms",
        const=(Arm(), Arm(schedule="constant")),
        default=ARMS,
        help="uniform sampling with both schedules alone",
    )
    options = vars(parser.parse_args())
    record(options.pop("name"), **options)


if __name__ == "__main__":
    main()
