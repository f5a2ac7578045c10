"""What a draw of the bandits and its update cost, against drawing a Beta variate for every arm.

One CPU thread. The contestants take turns of ten steps, so that other work of the machine slows all
of them equally. The figures are medians over the rounds, of a turn's first step and of its other
steps. At the first step the caches hold other data, as in a training. Targets are about the other
steps; `step_cost.py` measures the cost in a training. Every sampler first learns a history until
its window is full: each example has its own mean loss, with noise::

    python benchmarks/draw_cost.py

With ``--epochs``, the cost of a step in the epochs of a training of bandits that forget nothing:
with ``memory=None``, the paper's sampler, the number of its arms' states has no bound. On the CPU
arms of few pulls are counted by state, the others are drawn one by one; "dense" draws every arm in
tensors. The figures are means of CPU time::

    python benchmarks/draw_cost.py --epochs 50

Ends with status 1 if a target is missed; with ``--epochs``, if the sampler as it ships takes more
than four times as long in any epoch as in its first.
"""

from __future__ import annotations

import argparse
import pickle
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from _shared import draw_and_update

from hpo_mab.bandits._device import DeviceEngine
from hpo_mab.samplers import BatchSampler, MABSampler, create

BANDITS = 128
ARMS = 390
MANY_ARMS = 10_000
#: Steps of a turn.
STEPS = 10
SHIPPED = "shipped"
EPOCHS = (1, 2, 4, 8, 16, 32, 50, 100, 200)

#: One step of a contestant; returns the seconds that count.
Step = Callable[[], float]


class SamplerStep:
    """A sampler with a history; a step is a draw and its update."""

    def __init__(
        self, *, arms: int = ARMS, kind: str = "mab", history: int | None = None, **knobs: Any
    ) -> None:
        rng = np.random.default_rng(0)
        self.examples = arms * BANDITS
        labels = torch.from_numpy(rng.integers(0, 10, self.examples))
        self.losses = torch.from_numpy(rng.exponential(size=self.examples).astype(np.float32))
        self.noise = torch.Generator().manual_seed(0)
        self.sampler: BatchSampler = create(kind, labels, batch_size=BANDITS, **knobs)
        # A quarter of the arms is the default window.
        for _ in range(max(600, arms // 3) if history is None else history):
            self()

    def __call__(self, clock: Callable[[], float] = time.perf_counter) -> float:
        """Draw and update; returns the seconds of these two."""
        return draw_and_update(self.sampler, self._losses, clock=clock)

    def _losses(self, indices: torch.Tensor) -> torch.Tensor:
        noise = torch.empty(BANDITS).exponential_(generator=self.noise)
        return 0.7 * self.losses[indices] + 0.3 * noise

    def bytes_an_example(self) -> float:
        """Memory of the sampler per example, without the labels, which the caller has."""
        return (len(pickle.dumps(self.sampler)) - self.sampler.labels.nbytes) / self.examples


def dense_draws(alpha: np.ndarray, beta: np.ndarray) -> dict[str, Step]:
    """Draws from every arm's posterior, without any update."""
    rng = np.random.default_rng(0)
    alphas, betas = torch.from_numpy(alpha).float(), torch.from_numpy(beta).float()

    def timed(draw: Callable[[], Any]) -> Step:
        def step() -> float:
            started = time.perf_counter()
            draw()
            return time.perf_counter() - started

        return step

    def gammas() -> torch.Tensor:
        first = torch._standard_gamma(alphas)
        return (first / (first + torch._standard_gamma(betas))).argmax(dim=1)

    return {
        "numpy Generator.beta, draw only": timed(lambda: rng.beta(alpha, beta).argmax(axis=1)),
        "torch.distributions.Beta, draw only": timed(
            lambda: torch.distributions.Beta(alphas, betas).sample().argmax(dim=1)
        ),
        "two torch._standard_gamma, draw only": timed(gammas),
    }


def contestants() -> tuple[dict[str, Step], dict[str, SamplerStep]]:
    """Dense draws, and samplers, by name."""
    samplers = {
        "mab": SamplerStep(),
        "mab, 10,000 arms": SamplerStep(arms=MANY_ARMS),
        "mab, memory=None": SamplerStep(memory=None),
        "mab, floor=0.2, correction=0.5": SamplerStep(floor=0.2, correction=0.5),
        "mab, softmax": SamplerStep(policy="softmax"),
        "mab, epsilon_greedy": SamplerStep(policy="epsilon_greedy"),
        "mab, discount=0.99": SamplerStep(discount=0.99),
        "mab, replacement=True": SamplerStep(replacement=True),
        "contextual": SamplerStep(kind="contextual"),
        "contextual, all examples scored": SamplerStep(kind="contextual", candidates=ARMS),
        "uniform": SamplerStep(kind="uniform"),
    }
    # The posteriors that the first of them has come to.
    counts = samplers["mab"].sampler._engine.counts().numpy()  # type: ignore[attr-defined]
    return dense_draws(1 + counts[..., 0], 1 + counts[..., 1]), samplers


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--epochs", type=int, help="cost by epoch, with memory=None")
    parser.add_argument("--arms", type=int, default=80, help="of each bandit, with --epochs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.epochs is not None:
        return by_epoch(options.arms, epochs=options.epochs)
    dense, samplers = contestants()
    first, medians = in_turns({**dense, **samplers}, rounds=options.rounds)
    print(f"{BANDITS} bandits of {ARMS} arms unless said; medians of {options.rounds} rounds")
    print(f"{'':40s} first step  further steps    an example")
    for name, seconds in medians.items():
        size = f"{samplers[name].bytes_an_example():11.1f} B" if name in samplers else ""
        print(f"{name:40s} {1e3 * first[name]:7.3f} ms {1e3 * seconds:11.3f} ms {size}")
    return verdict(medians, samplers)


def by_epoch(arms: int, *, epochs: int) -> int:
    """Print milliseconds a step in the epochs of `EPOCHS`; 1 if the bound is missed."""
    shown = [epoch for epoch in EPOCHS if epoch <= epochs]
    print(f"{BANDITS} bandits of {arms} arms, ms a step in epoch")
    print(f"{'':20s}" + "".join(f"{epoch:8d}" for epoch in shown))
    SamplerStep(arms=2, history=2, memory=None)  # SciPy is imported at the first table.
    slower = 0.0
    for contestant in (SHIPPED, "dense"):
        step = SamplerStep(arms=arms, history=0, memory=None)
        if contestant == "dense":
            make_dense(step.sampler)
        found = []
        for _ in range(epochs):
            seconds = [step(time.process_time) for _ in range(len(step.sampler))]
            found.append(1e3 * statistics.fmean(seconds))
        figures = [found[epoch - 1] for epoch in shown]
        print(f"{contestant:20s}" + "".join(f"{figure:8.3f}" for figure in figures), flush=True)
        if contestant == SHIPPED:
            slower = max(figures) / figures[0]
    print(f"{SHIPPED}: at most {slower:.1f} times its first epoch, bound 4")
    return int(slower > 4)


def make_dense(sampler: MABSampler) -> None:
    """Replace a sampler's engine by the one that draws every arm in tensors."""
    generator = torch.Generator().manual_seed(0)
    sampler._engine = DeviceEngine(sampler._shares, sampler.settings, generator)


def in_turns(steps: dict[str, Step], *, rounds: int) -> tuple[dict[str, float], dict[str, float]]:
    """Median seconds of the first step of a turn, and of the others."""
    first: dict[str, list[float]] = {name: [] for name in steps}
    others: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            first[name].append(step())
            others[name].extend(step() for _ in range(STEPS - 1))
    return (
        {name: statistics.median(values) for name, values in first.items()},
        {name: statistics.median(values) for name, values in others.items()},
    )


def verdict(medians: dict[str, float], samplers: dict[str, SamplerStep]) -> int:
    """Print each target and what was reached; 1 if one is missed."""
    mab, many = medians["mab"], medians["mab, 10,000 arms"]
    targets = [
        (
            "cheaper than numpy's dense draw",
            medians["numpy Generator.beta, draw only"] / mab,
            10,
            1,
        ),
        ("10,000 arms against 390", many / mab, 1.5, -1),
        ("bytes an example", samplers["mab"].bytes_an_example(), 16, -1),
        ("bytes an example, 10,000 arms", samplers["mab, 10,000 arms"].bytes_an_example(), 16, -1),
    ]
    missed = 0
    for name, reached, bound, sign in targets:
        met = sign * reached >= sign * bound
        missed += not met
        relation = "at least" if sign > 0 else "at most"
        print(f"{'met   ' if met else 'MISSED'} {name}: {reached:.2f}, {relation} {bound}")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
