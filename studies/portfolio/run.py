"""Every sampler of the portfolio, paired with uniform sampling; ``tables.py`` has the tables.

    python studies/portfolio/run.py --root data --out studies/portfolio

Each data set has its own file, which is saved after each configuration, so that the same command
continues. The most informative cells come first.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fcntl
import functools
import itertools
import json
import operator
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hpo_mab import data, samplers, training
from hpo_mab._examples import ExampleCounts
from hpo_mab._machine import environment
from hpo_mab.data import ImageData, ImageSplits, Normalization
from hpo_mab.search._portfolio import parse_portfolio
from hpo_mab.training import (
    Budget,
    DeviceBatches,
    DeviceSweep,
    Evaluation,
    StackedTrainer,
    Training,
    TrainingDiverged,
    select_device,
)
from hpo_mab.training._schedule import DEFAULT_AVERAGE
from hpo_mab.training._tally import ExampleTally

sys.path.append(str(Path(__file__).parents[1]))
from shared import configurations, flip, network, write

#: The samplers of ``sampler.portfolio`` by default.
ARMS: Mapping[str, Mapping[str, Any]] = {
    name: {"kind": part.name, **part.options} for name, part in parse_portfolio(None).items()
}
DATA_SETS = ("cifar10", "fashion_mnist", "cifar100")
#: The first is the most informative.
EPOCHS = (1.0, 0.5, 2.0)
FLIPPED = (0.0, 0.2)
CONFIGURATIONS = 16
#: Earlier trials, under uniform sampling, that measure the difficulty; as many as in a study.
EARLIER = 4
BATCH_SIZE = 128
EVALUATIONS = 4
#: Validation images of the evaluations before the last.
EARLY_IMAGES = 2000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """A group of pairs: their budget, flipped labels and seed.

    Attributes:
        epochs: Budget of a training.
        flipped: Share of the training labels that are flipped to any other class.
        seed: Seed of the configurations, the flips and the weights.
    """

    epochs: float
    flipped: float
    seed: int


class Cells:
    """Trains the configurations of one cell.

    Args:
        splits: The data, on the device.
        cell: Budget, flipped labels and seed of the pairs.
        slots: Trainings at the same time, as one stack; 1 trains each alone.
    """

    def __init__(self, splits: ImageSplits, cell: Cell, *, slots: int) -> None:
        train = splits.train
        labels = flip(
            train.labels.cpu(), share=cell.flipped, classes=train.num_classes, seed=cell.seed
        )
        self.device = train.device
        self.labels = labels
        self.train = ImageData(
            images=train.images, labels=labels.to(self.device), classes=train.classes
        )
        self.splits = splits
        self.cell = cell
        self.slots = slots
        # Those of the earlier trials come first.
        self.points = configurations(EARLIER + CONFIGURATIONS, seed=cell.seed)
        self.normalization = Normalization(splits.mean, splits.std, channels_last=slots == 1)
        rows = torch.randperm(len(splits.validation), generator=torch.Generator().manual_seed(0))[
            :EARLY_IMAGES
        ]
        self.early = splits.validation.subset(rows.sort().values.to(self.device))
        self.steps = Budget(epochs=cell.epochs).num_steps(
            num_examples=len(labels), batch_size=BATCH_SIZE
        )
        # Seconds of the process alone: other processes may be using the machine.
        self.clock = time.process_time if self.device.type == "cpu" else time.perf_counter

    @functools.cached_property
    def difficulty(self) -> Tensor:
        """Difficulty of each example in the earlier trials, [N]."""
        counts: list[ExampleCounts] = []
        for number in range(EARLIER):
            tally = ExampleTally(self.labels, device=self.device)
            self._alone({"kind": "uniform"}, number, tally=tally)
            counts.append(tally.take().on_host())
        return torch.from_numpy(functools.reduce(operator.add, counts).mean("loss"))

    def curves(self, arm: Mapping[str, Any], numbers: Sequence[int]) -> Iterator[dict[str, Any]]:
        """One record for each configuration, in order."""
        if self.slots == 1:
            for number in numbers:
                yield self._alone(arm, number)
        else:
            yield from self._stacked(arm, numbers)

    def _options(self, number: int) -> dict[str, Any]:
        return {
            "steps": self.steps,
            "evaluations": EVALUATIONS,
            "warmup": 0.15,
            "average": DEFAULT_AVERAGE,
            "label_smoothing": self.points[number]["label_smoothing"],
        }

    def _optimizer(self, number: int) -> dict[str, float]:
        return {k: v for k, v in self.points[number].items() if k != "label_smoothing"}

    def _seed(self, number: int) -> int:
        return 1000 * self.cell.seed + number

    def _network(self, number: int) -> nn.Module:
        return network(self.train, self._seed(number))

    def _sampler(
        self, arm: Mapping[str, Any], number: int, device: torch.device | str
    ) -> samplers.BatchSampler:
        knobs = dict(arm)
        kind = knobs.pop("kind")
        return samplers.create(
            kind,
            self.labels,
            batch_size=BATCH_SIZE,
            seed=self._seed(number),
            device=device,
            difficulty=self.difficulty if kind == "curriculum" else None,
            **knobs,
        )

    def _parts(self, seed: int) -> dict[str, Any]:
        normalization = self.normalization
        return {
            "batches": DeviceBatches(self.train, normalization=normalization, seed=seed),
            "validation": DeviceSweep(self.splits.validation, normalization=normalization),
            "early": DeviceSweep(self.early, normalization=normalization),
            "precision": "bfloat16" if self.device.type == "cuda" else "float32",
        }

    def _alone(
        self, arm: Mapping[str, Any], number: int, *, tally: ExampleTally | None = None
    ) -> dict[str, Any]:
        model = self._network(number).to(self.device)
        run = Training(
            model,
            sampler=self._sampler(arm, number, self.device),
            optimizer=training.create_optimizer(
                "sgd", model.parameters(), **self._optimizer(number)
            ),
            channels_last=True,
            graph=True,
            tally=tally,
            clock=self.clock,
            **self._parts(self._seed(number)),
            **self._options(number),
        )
        points: list[Evaluation] = []
        with contextlib.suppress(TrainingDiverged):
            for point in run:
                points.append(point)
        return _row(number, points)

    def _stacked(self, arm: Mapping[str, Any], numbers: Sequence[int]) -> list[dict[str, Any]]:
        stack = StackedTrainer(
            self._network(numbers[0]),
            slots=len(numbers),
            batch_size=BATCH_SIZE,
            seed=self._seed(numbers[0]),
            **self._parts(self._seed(numbers[0])),
        )
        for slot, number in enumerate(numbers):
            stack.start(
                slot,
                self._network(number),
                sampler=self._sampler(arm, number, "cpu" if arm["kind"] == "mab" else self.device),
                optimizer=self._optimizer(number),
                **self._options(number),
            )
        points: list[list[Evaluation]] = [[] for _ in numbers]
        while stack.busy:
            for slot, found in stack.advance():
                if isinstance(found, Evaluation):
                    points[slot].append(found)
        return [_row(number, each) for number, each in zip(numbers, points, strict=True)]


def _row(number: int, points: Sequence[Evaluation]) -> dict[str, Any]:
    return {
        "configuration": number,
        "accuracy": [round(point.accuracy, 5) for point in points],
        "seconds": [round(point.seconds, 3) for point in points],
        "diverged": len(points) < EVALUATIONS,
    }


class Record:
    """The file of one data set, which one process may write at a time.

    Args:
        folder: Where it is.
        name: Of the data set.
        device: Where to train.
    """

    def __init__(self, folder: Path, name: str, device: torch.device) -> None:
        self.path = folder / f"{name}.json"
        # Held until the process ends.
        self._lock = os.open(folder / f".{name}.lock", os.O_CREAT | os.O_RDWR)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.document: dict[str, Any] = {
            "data": name,
            "model": "small_cnn",
            "batch_size": BATCH_SIZE,
            "evaluations": EVALUATIONS,
            "early_images": EARLY_IMAGES,
            "earlier": EARLIER,
            "arms": ARMS,
            "environment": environment(),
            "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
            # Training only; on a CPU, CPU time of the process and not wall clock.
            "seconds": "wall clock" if device.type == "cuda" else "process",
            "rows": [],
        }
        if self.path.exists():
            self.document = json.loads(self.path.read_text())

    def missing(self, cell: Cell, arm: str) -> list[int]:
        """Configurations of a cell that an arm has not trained."""
        where = dataclasses.asdict(cell)
        done = {
            row["configuration"]
            for row in self.document["rows"]
            if row["arm"] == arm and all(row[key] == value for key, value in where.items())
        }
        return [n for n in range(EARLIER, EARLIER + CONFIGURATIONS) if n not in done]

    def add(self, cell: Cell, arm: str, row: Mapping[str, Any]) -> None:
        """Add a training and write the file."""
        self.document["rows"].append({**dataclasses.asdict(cell), "arm": arm, **row})
        rows = ",\n".join(json.dumps(each) for each in self.document["rows"])
        head = json.dumps({**self.document, "rows": []})
        write(self.path, head.removesuffix("]}") + f"\n{rows}\n]}}\n")


def run_cell(record: Record, splits: ImageSplits, cell: Cell, *, slots: int) -> None:
    """Train the missing pairs of a cell, a few configurations at a time under every sampler."""
    missing = {arm: record.missing(cell, arm) for arm in ARMS}
    numbers = sorted(set().union(*missing.values()))
    if not numbers:
        return
    cells = Cells(splits, cell, slots=slots)
    for first in range(0, len(numbers), slots):
        chunk = numbers[first : first + slots]
        for arm, options in ARMS.items():
            wanted = [number for number in chunk if number in missing[arm]]
            if wanted:
                for row in cells.curves(options, wanted):
                    record.add(cell, arm, row)
        print(time.strftime("%H:%M:%S"), record.path.stem, cell, chunk, flush=True)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=DATA_SETS, help="data sets")
    parser.add_argument("--root", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, default=Path("studies/portfolio"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=float, nargs="+", default=EPOCHS)
    parser.add_argument("--flipped", type=float, nargs="+", default=FLIPPED)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--slots", type=int, help="trainings at a time; 1, or 16 on a GPU")
    given = parser.parse_args()
    device = select_device(given.device)
    slots = given.slots or (CONFIGURATIONS if device.type == "cuda" else 1)
    given.out.mkdir(parents=True, exist_ok=True)
    sets = [
        (
            Record(given.out, name, device),
            data.load_splits(name, root=given.root, download=False).to(device),
        )
        for name in given.names
    ]
    # Every data set once, then further budgets, then further seeds.
    for seed, epochs, flipped in itertools.product(given.seeds, given.epochs, given.flipped):
        for record, splits in sets:
            run_cell(record, splits, Cell(epochs=epochs, flipped=flipped, seed=seed), slots=slots)


if __name__ == "__main__":
    main()
