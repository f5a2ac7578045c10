"""Both sides of one task: the usual script (`opponent.py`) and this package.

Same network, split, augmentation, batch size, optimiser, schedule, budget and number of trials::

    python benchmarks/versus.py data          # a training batch, from storage to network input
    python benchmarks/versus.py accuracy      # same configuration, several seeds
    python benchmarks/versus.py study         # whole studies, trials an hour

``data`` and ``study`` take turns and print ratios of medians, of CPU seconds and of wall-clock
seconds. CPU seconds are those of all processes of a side; on a busy machine their ratio is more
reliable. ``study`` runs whole commands, with start-up: the script with its default number of loader
workers and threads, the package with ``--workers auto``. The first turn is not counted. No trial is
pruned.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import _shared
import numpy as np
import opponent
import torch
from opponent import Task

from hpo_mab import samplers, training
from hpo_mab.advantage import mean_estimate
from hpo_mab.data import Augmentation, ImageSplits, Normalization
from hpo_mab.training._batches import TimedSampler
from hpo_mab.training._device import synchronize

HERE = Path(__file__).parent


def ours(
    task: Task,
    splits: ImageSplits,
    *,
    sampler: str = "uniform",
    weight_decay: float = 0.0,
    seed: int = 0,
    precision: str = "float32",
    graph: bool = False,
) -> Iterator[training.Evaluation]:
    """One training of the task by this package, on the device of ``splits``."""
    return _shared.start(
        splits,
        kind=sampler,
        model=task.model,
        batch_size=task.batch_size,
        seed=seed,
        augmentation=augmentation(splits),
        weight_decay=weight_decay,
        steps=task.steps,
        evaluations=task.evaluations,
        warmup=task.warmup,
        precision=precision,
        graph=graph,
    )


def augmentation(splits: ImageSplits) -> Augmentation:
    """The same shifts and flips as the opponent's."""
    return Augmentation(pad=min(splits.train.image_size) // 8, flip=True)


def batch_cost(
    splits: ImageSplits, *, rounds: int, batches: int, device: torch.device, batch_size: int = 128
) -> dict[str, list[float]]:
    """Seconds of ``batches`` training batches of each side, in turns, without loader workers.

    CPU seconds of the process on the CPU; on a GPU wall-clock seconds until the batch is there.
    """
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    loader, _ = opponent.loaders(splits, batch_size=batch_size, workers=0, device=device)
    there = splits.to(device)

    def source(kind: str) -> Iterator[Any]:
        sampler = samplers.create(kind, splits.train.labels, batch_size=batch_size, device=device)
        timed = TimedSampler(sampler, clock=lambda: 0.0)
        losses = torch.rand(batch_size, device=device)
        for batch in training.DeviceBatches(
            there.train,
            normalization=Normalization(there.mean, there.std, channels_last=True),
            augmentation=augmentation(splits),
        ).stream(timed):
            # The cost of a batch of the bandits includes learning.
            sampler.update(losses)
            yield batch

    def turn(stream: Iterator[Any]) -> float:
        started = clock()
        for _ in itertools.islice(stream, batches):
            pass
        synchronize(device)
        return clock() - started

    streams = {
        "opponent": opponent.endless(loader, device),
        "ours, uniform": source("uniform"),
        "ours, mab": source("mab"),
    }
    return _shared.in_turns(
        {name: functools.partial(turn, stream) for name, stream in streams.items()}, rounds=rounds
    )


def data_path(task: Task, options: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds a batch, and how many times cheaper."""
    times = batch_cost(
        task.splits(examples=options.examples),
        rounds=options.rounds or 9,
        batches=10,
        device=torch.device("cpu"),
        batch_size=task.batch_size,
    )
    figures = {
        name: {
            "batch_ms": 1e2 * statistics.median(values),
            "times_cheaper": _shared.ratio(times, "opponent", name)[0],
        }
        for name, values in times.items()
    }
    rows = [
        (name, f"{found['batch_ms']:.3f}", f"{found['times_cheaper']:.1f}")
        for name, found in figures.items()
    ]
    print(_shared.table(("side", "CPU ms a batch", "times cheaper"), rows))
    return figures


def accuracy(task: Task, options: argparse.Namespace) -> dict[str, Any]:
    """Validation accuracy of one configuration on both sides, by seed, and paired differences."""
    splits = task.splits(examples=options.examples)
    script = opponent.Objective(task, splits, device=torch.device("cpu"), workers=0)
    theirs: list[float] = []
    mine: list[float] = []
    for seed in range(options.rounds or 4):
        # With the same seed both sides have the same initial weights, but other batches.
        theirs.append(list(script.curve(0.1, 1e-4, seed=seed))[-1])
        mine.append(list(ours(task, splits, weight_decay=1e-4, seed=seed))[-1].accuracy)
        print(f"seed {seed}: {theirs[-1]:.4f}, {mine[-1]:.4f}", file=sys.stderr, flush=True)
    found = {"opponent": theirs, "ours, uniform": mine}
    rows = [(name, f"{statistics.mean(values):.2%}") for name, values in found.items()]
    print(_shared.table(("side", "validation accuracy"), rows))
    more = mean_estimate(np.subtract(mine, theirs))
    low, high = 100 * more.low, 100 * more.high
    print(f"difference {100 * more.value:+.2f} points ({low:+.2f} to {high:+.2f}, {more.n} seeds)")
    return found


def commands(task: Task, folder: Path) -> dict[str, list[str]]:
    """The command of each side; ours writes its study into ``folder``."""
    fields = dataclasses.asdict(task)
    script = [sys.executable, str(HERE / "opponent.py")]
    for name, value in fields.items():
        script += [f"--{name.replace('_', '-')}", str(value)]
    definition = folder / "task.toml"
    definition.write_text(
        f"""
name = "versus"
seed = {task.seed}
[data]
name = "{task.data}"
root = "{os.environ["HPO_MAB_DATA"]}"
download = false
validation = 0.1
augment = true
[model]
name = "{task.model}"
[budget]
steps = {task.steps}
evaluations = {task.evaluations}
early_validation = "all"  # As the script.
trials = {task.trials}
[optimizer]
name = "sgd"
lr = {{ low = 0.01, high = 0.5, log = true }}
weight_decay = {{ low = 1e-5, high = 1e-2, log = true }}
[training]
batch_size = {task.batch_size}
warmup = {task.warmup}
[pruner]
kind = "none"  # As the script.
[search]
initial = 0
"""
    )
    run = [sys.executable, "-m", "hpo_mab", "run", str(definition), "--workers", "auto", "--json"]
    return {
        "opponent": script,
        "ours, uniform": [*run, "--sampler", "uniform"],
        "ours, mab": [*run, "--sampler", "mab"],
    }


def timed(command: list[str], folder: Path, number: int) -> tuple[float, float, dict[str, Any]]:
    """Run a command to its end: wall-clock seconds, CPU seconds, and the JSON that it printed."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment["HPO_MAB_STORAGE"] = f"sqlite:///{folder}/{number}.db"
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr[-800:]}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall, cpu, json.loads(done.stdout[done.stdout.index("{") :])


def studies(task: Task, options: argparse.Namespace) -> dict[str, Any]:
    """Whole studies in turns: trials an hour by the wall clock and by the CPU clock."""
    wall: dict[str, list[float]] = {}
    cpu: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sides = commands(task, folder)
        counter = itertools.count()
        for turn in range(1 + (options.rounds or 1)):
            for side, command in sides.items():
                seconds, busy, said = timed(command, folder, next(counter))
                if turn == 0:  # The machine caches files in it.
                    continue
                wall.setdefault(side, []).append(seconds)
                cpu.setdefault(side, []).append(busy)
                print(f"{side}: {seconds:.1f} s, {busy:.1f} s of CPU, {_best(said)}", flush=True)
    rows = [
        (
            side,
            f"{3600 * task.trials / statistics.median(wall[side]):.0f}",
            f"{statistics.median(cpu[side]) / task.trials:.2f}",
            f"{_shared.ratio(wall, 'opponent', side)[0]:.2f}",
            f"{_shared.ratio(cpu, 'opponent', side)[0]:.2f}",
        )
        for side in wall
    ]
    head = ("side", "trials an hour", "CPU s a trial", "times faster", "times less CPU")
    print(_shared.table(head, rows))
    return {"wall": wall, "cpu": cpu}


def _best(said: dict[str, Any]) -> str:
    """Best validation accuracy, of either side's JSON."""
    best = said["best"]
    if isinstance(best, dict):
        best = best["validation_accuracy"]
    return "no trial complete" if best is None else f"best {best:.2%}"


def main() -> None:
    parts: dict[str, Callable[[Task, argparse.Namespace], dict[str, Any]]] = {
        "data": data_path,
        "accuracy": accuracy,
        "study": studies,
    }
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=parts)
    for field in dataclasses.fields(Task):
        kind = type(field.default)
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=field.default)
    parser.add_argument("--rounds", type=int, help="turns, or seeds")
    parser.add_argument("--examples", type=int, help="made-up training images instead of real ones")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    task = Task(**{field.name: getattr(options, field.name) for field in dataclasses.fields(Task)})
    if options.part == "study" and (options.examples or _shared.real(task.data) is None):
        parser.error("study needs HPO_MAB_DATA with the data set, and takes no --examples.")
    if options.part != "study":
        torch.set_num_threads(1)
    figures = parts[options.part](task, options)
    _shared.write_json(options.json, {options.part: figures, "task": dataclasses.asdict(task)})


if __name__ == "__main__":
    main()
