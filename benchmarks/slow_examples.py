"""Whether the bandits find the tenth of the examples that is slow to learn.

Losses are made up, so that the truth is known: 2,000 examples, of which a tenth takes four times as
many passes to learn as the others. The table holds the share of these among the draws of the last
third of six passes::

    python benchmarks/slow_examples.py --seeds 5

Uniform sampling draws a tenth. In the last column the loss of that tenth never falls, like that of
a flipped label; such draws are wasted.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import torch

from hpo_mab.samplers import BatchSampler, create

EXAMPLES, BATCH_SIZE, PASSES = 2000, 20, 6
SPECIAL = torch.arange(EXAMPLES) % 10 == 3

SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "uniform": ("uniform", {}),
    "mab, nothing forgotten (paper)": ("mab", {"memory": None}),
    "mab, memory 1/4 (default)": ("mab", {}),
    "mab, memory 1/4, floor 0.3": ("mab", {"floor": 0.3}),
}


def share_of_special(kind: str, knobs: dict[str, Any], *, learnable: bool, seed: int) -> float:
    """Share of the special examples among the draws of the last third."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.zeros(EXAMPLES, dtype=torch.long)
    sampler: BatchSampler = create(kind, labels, batch_size=BATCH_SIZE, seed=seed, **knobs)
    visits = torch.zeros(EXAMPLES)
    steps = PASSES * len(sampler)
    drawn = 0
    for step in range(steps):
        indices = sampler.draw()
        special = SPECIAL[indices]
        # A loss falls with each pass, four times as slowly if special, and with each own draw.
        slowness = torch.where(special, 6.0, 1.5)
        fall = torch.exp(-step / len(sampler) / slowness - 0.05 * visits[indices])
        if not learnable:
            fall[special] = 1.0
        noise = 0.5 + 0.5 * torch.empty(BATCH_SIZE).exponential_(generator=generator)
        sampler.update(torch.where(special, 3.0, 1.5) * fall * noise)
        visits[indices] += 1
        drawn += int(special.sum()) if step >= 2 * steps // 3 else 0
    return drawn / (BATCH_SIZE * (steps - 2 * steps // 3))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    seeds = range(parser.parse_args().seeds)
    torch.set_num_threads(1)
    print("| sampler | slow to learn | never learned (label noise) |")
    print("|---|---|---|")
    for name, (kind, knobs) in SAMPLERS.items():
        cells = []
        for learnable in (True, False):
            found = [share_of_special(kind, knobs, learnable=learnable, seed=s) for s in seeds]
            error = statistics.stdev(found) / len(found) ** 0.5 if len(found) > 1 else 0.0
            cells.append(f"{statistics.mean(found):.0%} ± {error:.1%}")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
