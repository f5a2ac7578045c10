"""The share of draws that are of mislabelled examples, by the memory of the bandits.

Trains a small network on scikit-learn's digits with a tenth of the training labels flipped, at an
equal number of steps for every sampler, and prints for each the share of mislabelled examples
among the draws of each pass, and the accuracy on clean held-out digits::

    python benchmarks/label_noise.py --epochs 8 --seeds 5

Uniform sampling draws a tenth. The loss of an example with a wrong label stays high, so bandits
that forget nothing draw more and more of them.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from hpo_mab.samplers import BatchSampler, create

BATCH_SIZE = 16
FLIPPED = 0.1
TEST_EXAMPLES = 357

SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "uniform": ("uniform", {}),
    "mab, nothing forgotten (paper)": ("mab", {"memory": None}),
    "mab, memory 1/2 of the arms": ("mab", {"memory": 45}),
    "mab, memory 1/4 (default)": ("mab", {}),
    "mab, memory 1/8": ("mab", {"memory": 11}),
    "mab, discount 0.95": ("mab", {"discount": 0.95}),
    "mab, nothing forgotten, floor 0.3": ("mab", {"memory": None, "floor": 0.3}),
    "mab, memory 1/4, floor 0.3": ("mab", {"floor": 0.3}),
}


def noisy_digits(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Digits in random order, their labels, and which labels are flipped."""
    pixels, digits = load_digits(return_X_y=True)
    order = torch.randperm(len(digits), generator=generator)
    images = torch.as_tensor(pixels, dtype=torch.float32)[order] / 16
    labels = torch.as_tensor(digits)[order]
    flipped = torch.rand(len(labels), generator=generator) < FLIPPED
    flipped[:TEST_EXAMPLES] = False
    other = (labels + torch.randint(1, 10, labels.shape, generator=generator)) % 10
    return images, torch.where(flipped, other, labels), flipped


def train(kind: str, knobs: dict[str, Any], *, epochs: int, seed: int) -> tuple[list[float], float]:
    """Train once.

    Returns:
        Share of mislabelled examples among each pass's draws, and accuracy on clean digits.
    """
    generator = torch.Generator().manual_seed(seed)
    images, labels, flipped = noisy_digits(generator)
    test_images, test_labels = images[:TEST_EXAMPLES], labels[:TEST_EXAMPLES]
    images, labels, flipped = (part[TEST_EXAMPLES:] for part in (images, labels, flipped))
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sampler: BatchSampler = create(kind, labels, batch_size=BATCH_SIZE, seed=seed, **knobs)
    steps = epochs * len(sampler)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.01, total_iters=steps)
    shares = []
    for _ in range(epochs):
        drawn = 0
        for _ in range(len(sampler)):
            indices = sampler.draw()
            drawn += int(flipped[indices].sum())
            losses = F.cross_entropy(model(images[indices]), labels[indices], reduction="none")
            optimiser.zero_grad()
            sampler.update(losses).backward()
            optimiser.step()
            schedule.step()
        shares.append(drawn / (len(sampler) * BATCH_SIZE))
    with torch.no_grad():
        correct = model(test_images).argmax(dim=1) == test_labels
    return shares, float(correct.float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    passes = [epoch for epoch in (1, 2, 4, 8, 16, 32) if epoch <= options.epochs]
    heads = "".join(f" pass {epoch} |" for epoch in passes)
    print(f"| sampler |{heads} clean accuracy |")
    print("|---" * (len(passes) + 2) + "|")
    for name, (kind, knobs) in SAMPLERS.items():
        runs = [train(kind, knobs, epochs=options.epochs, seed=s) for s in range(options.seeds)]
        means = [statistics.mean(shares[epoch - 1] for shares, _ in runs) for epoch in passes]
        accuracy = [accuracy for _, accuracy in runs]
        error = statistics.stdev(accuracy) / len(accuracy) ** 0.5 if len(accuracy) > 1 else 0.0
        cells = "".join(f" {share:.0%} |" for share in means)
        print(f"| {name} |{cells} {statistics.mean(accuracy):.1%} ± {error:.1%} |", flush=True)


if __name__ == "__main__":
    main()
