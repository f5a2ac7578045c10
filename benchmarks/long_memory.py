"""Cost of a draw of bandits that forget nothing, by epoch of a training and by engine.

``memory=None`` is the paper's sampler: the number of its arms' states has no bound. On the CPU arms
of few pulls are counted by state, the others are drawn one by one; "dense" draws every arm in
tensors. Each example has its own mean loss, with noise. The figures are milliseconds of process
time of a draw and its update, the mean over the steps of an epoch::

    python benchmarks/long_memory.py
    python benchmarks/long_memory.py --examples 50000 --epochs 8

Ends with status 1 if the sampler as it ships takes more than four times as long in any epoch as in
its first.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

import torch

from hpo_mab.bandits import DeviceEngine
from hpo_mab.samplers import MABSampler

BATCH_SIZE = 128
SHIPPED = "shipped"
EPOCHS = (1, 2, 4, 8, 16, 32, 50, 100, 200)


def make(contestant: str, labels: torch.Tensor) -> MABSampler:
    """A sampler with the engine of a contestant."""
    sampler = MABSampler(labels, batch_size=BATCH_SIZE, memory=None)
    if contestant == "dense":
        generator = torch.Generator().manual_seed(0)
        sampler._engine = DeviceEngine(sampler._shares, sampler.settings, generator)
    return sampler


def run(sampler: MABSampler, losses: torch.Tensor, *, epochs: int) -> dict[int, float]:
    """Milliseconds a step in the epochs of `EPOCHS`."""
    noise = torch.Generator().manual_seed(1)
    found: dict[int, float] = {}
    for epoch in range(1, epochs + 1):
        seconds = []
        for _ in range(len(sampler)):
            started = time.process_time()
            indices = sampler.draw()
            drawn = time.process_time()
            given = 0.7 * losses[indices]
            given += 0.3 * torch.empty(BATCH_SIZE).exponential_(generator=noise)
            answered = time.process_time()
            sampler.update(given)
            seconds.append(time.process_time() - answered + drawn - started)
        if epoch in EPOCHS:
            found[epoch] = 1e3 * statistics.fmean(seconds)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=50)
    options = parser.parse_args()
    torch.set_num_threads(1)
    made = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 10, (options.examples,), generator=made)
    losses = torch.empty(options.examples).exponential_(generator=made)
    epochs = [epoch for epoch in EPOCHS if epoch <= options.epochs]
    print(f"{options.examples} examples, ms a step in epoch")
    print(f"{'':20s}" + "".join(f"{epoch:8d}" for epoch in epochs))
    run(make(SHIPPED, labels[:256]), losses, epochs=1)  # SciPy is imported at the first table.
    slower = 0.0
    for contestant in (SHIPPED, "dense"):
        figures = run(make(contestant, labels), losses, epochs=options.epochs)
        print(
            f"{contestant:20s}" + "".join(f"{figures[epoch]:8.3f}" for epoch in epochs), flush=True
        )
        if contestant == SHIPPED:
            slower = max(figures.values()) / figures[1]
    print(f"{SHIPPED}: at most {slower:.1f} times its first epoch, bound 4")
    return int(slower > 4)


if __name__ == "__main__":
    sys.exit(main())
