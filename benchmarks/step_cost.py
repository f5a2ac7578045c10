"""What a batch sampler adds to a training step of the small network, and where the step goes.

One CPU thread, the package's own loop. Samplers take turns, a few steps each, so that other work of
the machine slows all of them equally. The ratio is the median over rounds. Seconds are CPU time of
the process, with the sampler::

    python benchmarks/step_cost.py
    python benchmarks/step_cost.py --profile      # operators by their own time

Ends with status 1 if a step with ``mab`` costs more than 1.03 times one with ``uniform``.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import _shared
import torch

from hpo_mab.data import Augmentation, ImageSplits
from hpo_mab.training import Evaluation, Training

BATCH_SIZE = 128
BOUND = 1.03
CONTESTANTS: dict[str, dict[str, Any]] = {
    "uniform": {"kind": "uniform"},
    "uniform again": {"kind": "uniform"},
    "mab": {"kind": "mab"},
}


def run(
    data: ImageSplits,
    *,
    batch_size: int = BATCH_SIZE,
    augment: bool = False,
    clock: Callable[[], float] = time.process_time,
    **options: Any,
) -> Training:
    """A training of the package, which yields after every ``steps / evaluations`` steps."""
    return _shared.start(
        data,
        batch_size=batch_size,
        augmentation=Augmentation() if augment else None,
        validation=data.validation.subset(torch.arange(min(batch_size, len(data.validation)))),
        clock=clock,
        **options,
    )


def contestant(evaluations: Iterator[Evaluation]) -> tuple[Callable[[], float], list[float]]:
    """A function that trains and times the next steps, and a list of the sampler's seconds."""
    before = [0.0, 0.0]
    sampler_seconds: list[float] = []

    def turn() -> float:
        evaluation = next(evaluations)
        now = [evaluation.seconds, evaluation.sampler_seconds]
        seconds, inside = now[0] - before[0], now[1] - before[1]
        before[:] = now
        sampler_seconds.append(inside)
        return seconds

    return turn, sampler_seconds


def measure(data: ImageSplits, *, rounds: int, steps: int, augment: bool) -> dict[str, Any]:
    """Milliseconds a step of each contestant, and ratios to ``uniform``."""
    warm_up = max(2, 400 // steps)
    turns = rounds + warm_up
    made = {
        name: contestant(
            run(data, steps=turns * steps, evaluations=turns, augment=augment, **sampler)
        )
        for name, sampler in CONTESTANTS.items()
    }
    times = _shared.in_turns(
        {name: turn for name, (turn, _) in made.items()}, rounds=rounds, warm_up=warm_up
    )
    figures: dict[str, Any] = {}
    for name, (_, inside) in made.items():
        middle, low, high = _shared.ratio(times, name, "uniform")
        figures[name] = {
            "step_ms": 1e3 * statistics.median(times[name]) / steps,
            "sampler_ms": 1e3 * statistics.median(inside[warm_up:]) / steps,
            "ratio": middle,
            "ratio_low": low,
            "ratio_high": high,
        }
    return figures


def profile(data: ImageSplits, *, augment: bool) -> None:
    """Print the operators of forty steps with ``mab`` by their own time."""
    evaluations = run(data, steps=200, evaluations=5, augment=augment, kind="mab")
    for _ in range(4):
        next(evaluations)
    with torch.profiler.profile() as record:
        next(evaluations)
    print(record.key_averages().table(sort_by="self_cpu_time_total", row_limit=30))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=sorted(_shared.SHAPES), default="fashion_mnist")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--steps", type=int, default=10, help="steps a round")
    parser.add_argument("--augment", action="store_true")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = _shared.real(options.data) or _shared.made_up(options.data)
    if options.profile:
        profile(data, augment=options.augment)
        return 0
    figures = measure(data, rounds=options.rounds, steps=options.steps, augment=options.augment)
    head = ("sampler", "step, ms", "of it sampler, ms", "ratio to uniform", "10% to 90%")
    rows = [
        (
            name,
            f"{found['step_ms']:.2f}",
            f"{found['sampler_ms']:.3f}",
            f"{found['ratio']:.3f}",
            f"{found['ratio_low']:.3f} to {found['ratio_high']:.3f}",
        )
        for name, found in figures.items()
    ]
    print(_shared.table(head, rows))
    _shared.write_json(options.json, {"step_cost": {options.data: figures}})
    met = figures["mab"]["ratio"] <= BOUND
    print(f"{'met' if met else 'MISSED'}: a step with mab is at most {BOUND} times uniform's")
    return int(not met)


if __name__ == "__main__":
    sys.exit(main())
