"""Replay the cost of searches with fewer validation examples at early evaluations.

    python studies/rungs/early.py fashion_mnist.json cifar10.json --out early.json

The recorded accuracies are of all validation examples; the replay adds the noise of a part of them.
The cost includes evaluations: an evaluated example counts as a third of a trained one. The rules
are those of `promotion.py`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from promotion import _costs
from tables import WINDOW, read_arms

#: Training examples of a trial and its validation examples, by data set.
SIZES = {"cifar10": (80_000, 10_000), "fashion_mnist": (48_000, 12_000)}
PARTS = (None, 5_000, 2_000, 1_000, 500)


def noisy(
    curves: NDArray[np.float64], count: int, *, validation: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """The accuracies on a random part of the examples; the last evaluation uses all.

    Args:
        curves: Accuracies [n, T].
        count: Examples of the part.
        validation: All examples.
        rng: Source of the noise.
    """
    found = curves.copy()
    early = curves[:, :-1]
    variance = early * (1 - early) * (1 / count - 1 / validation)
    found[:, :-1] += np.sqrt(variance) * rng.standard_normal(early.shape)
    return found


def replay(curves: NDArray[np.float64], name: str, *, repeats: int, orders: int) -> list[dict]:
    """Cost of each rule by the number of early validation examples.

    Args:
        curves: Accuracies [S, K, T].
        name: Name of the data set.
        repeats: Draws of the noise.
        orders: Random orders of the trainings per draw.
    """
    train, validation = SIZES[name]
    pool = curves.reshape(-1, curves.shape[-1])
    rows = []
    for count in PARTS:
        rng = np.random.default_rng(0)
        early = validation if count is None else count
        evaluations = ((pool.shape[1] - 1) * early + validation) / (3 * train)
        costs: dict[str, list[float]] = {}
        for _ in range(repeats):
            seen = pool if count is None else noisy(pool, count, validation=validation, rng=rng)
            for rule, (cost, _) in _costs(seen, initial=10, orders=orders).items():
                costs.setdefault(rule, []).append(cost * (1 + evaluations))
        shown = {rule: round(float(np.mean(values)), 3) for rule, values in costs.items()}
        rows.append({"examples": early, "evaluations": round(evaluations, 3), "cost": shown})
    return rows


def main() -> None:
    """Replay the records and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("records", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--orders", type=int, default=100)
    options = parser.parse_args()
    found = {}
    for path in options.records:
        document = json.loads(path.read_text(encoding="utf-8"))
        for about, kinds in read_arms(document):
            if about == {"sampler": "uniform", "schedule": "linear", "average": WINDOW}:
                found[path.stem] = replay(
                    kinds["averaged"], path.stem, repeats=options.repeats, orders=options.orders
                )
    options.out.write_text(json.dumps(found) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
