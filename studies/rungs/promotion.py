r"""Compare stopping with pausing on the recorded curves.

    python studies/rungs/promotion.py fashion_mnist.json cifar10.json digits.json \
        --out promotion.json
    python studies/rungs/promotion.py fashion_mnist.json cifar10.json --early --orders 100 \
        --out early.json

A replay searches a random order of the recorded trainings until a complete trial is as good as the
best of the first 24. The cost is divided by that of training each trial to the end. An order
counts as 48 full trials if a rule never finds such a trial, or needs more.

``--early`` replays the rules with fewer validation examples at early evaluations. The recorded
accuracies are of all validation examples; the replay adds the noise of a part of them. The cost
includes evaluations: an evaluated example counts as a third of a trained one.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tables import LONGEST, TRIALS, WINDOW, halving, read_arms

Floats = NDArray[np.float64]
#: Cost of finding the target; infinite if a rule never finds it.
Rule = Callable[[Floats, float, int], float]
#: Training examples of a trial and its validation examples, by data set.
SIZES = {"cifar10": (80_000, 10_000), "fashion_mnist": (48_000, 12_000)}
#: Validation examples of an early evaluation; None for all.
PARTS = (None, 5_000, 2_000, 1_000, 500)
#: Draws of the noise of a part.
REPEATS = 10


def train_all(curves: Floats, target: float, initial: int) -> float:
    """Every trial in full."""
    return int(np.argmax(curves[:, -1] >= target)) + 1


def stopping(first: int, factor: int) -> Rule:
    """`SuccessiveHalvingPruner`: a trial is judged once at each rung, against earlier ones."""

    def rule(curves: Floats, target: float, initial: int) -> float:
        steps = curves.shape[1]
        # The first trials are never judged, and no other trial is compared with them.
        used = np.full(len(curves), steps)
        used[initial:] = halving(curves[None, initial:], first=first, factor=factor)[0]
        found = np.flatnonzero((used == steps) & (curves[:, -1] >= target))
        return float(used[: found[0] + 1].sum() / steps) if len(found) else np.inf

    return rule


def promotion(first: int, factor: int) -> Rule:
    """`hpo_mab.pruners.PromotionPruner` with a total budget.

    Paused trials continue once they are among the best; at the end of the order, all continue.
    """

    def rule(curves: Floats, target: float, initial: int) -> float:
        steps = curves.shape[1]
        rungs = [*_rungs(first, factor, steps), steps]
        there: dict[int, list[int]] = {rung: [] for rung in rungs}
        gone: dict[int, set[int]] = {rung: set(range(initial)) for rung in rungs}
        cost, begun = 0.0, 0
        while True:
            found = _best_paused(curves, rungs, there, gone, factor)
            if found is None and begun == len(curves):
                found = _best_paused(curves, rungs, there, gone, 1)
            if found is None:
                trial, begun = begun, begun + 1
                reached = rungs if trial < initial else rungs[:1]
                cost += reached[-1] / steps
            else:
                place, trial = found
                gone[rungs[place]].add(trial)
                reached = [rungs[place + 1]]
                cost += (rungs[place + 1] - rungs[place]) / steps
            for rung in reached:
                there[rung].append(trial)
            if reached[-1] == steps and curves[trial, -1] >= target:
                return cost

    return rule


def _best_paused(
    curves: Floats,
    rungs: list[int],
    there: dict[int, list[int]],
    gone: dict[int, set[int]],
    factor: int,
) -> tuple[int, int] | None:
    for place in reversed(range(len(rungs) - 1)):
        rung = rungs[place]
        ranked = sorted(there[rung], key=lambda trial: -curves[trial, rung - 1])
        for trial in ranked[: len(ranked) // factor]:
            if trial not in gone[rung]:
                return place, trial
    return None


def _rungs(first: int, factor: int, steps: int) -> list[int]:
    return [first * factor**k for k in range(10) if first * factor**k < steps]


RULES: dict[str, Rule] = {
    "stop 1/4, halve": stopping(2, 2),
    "stop 1/8, halve": stopping(1, 2),
    "pause 1/4, halve": promotion(2, 2),
    "pause 1/8, halve": promotion(1, 2),
    "pause 1/8, third": promotion(1, 3),
}


def replay(curves: Floats, *, initial: int, orders: int) -> dict[str, list[float]]:
    """Cost of each rule, divided by that of no pruning.

    Args:
        curves: Accuracies [S, K, T].
        initial: First trials, which no rule may stop.
        orders: Random orders of all trainings, and of those of each seed.

    Returns:
        By rule: cost over all trainings, the lowest and the highest of the S seeds alone, and the
        share of orders in which the target was never found.
    """
    every = _costs(curves.reshape(-1, curves.shape[-1]), initial=initial, orders=orders)
    alone = [_costs(one, initial=initial, orders=orders) for one in curves]
    found = {}
    for name, (cost, missed) in every.items():
        ends = [one[name][0] for one in alone]
        found[name] = [round(one, 3) for one in (cost, min(ends), max(ends), missed)]
    return found


def _costs(pool: Floats, *, initial: int, orders: int) -> dict[str, tuple[float, float]]:
    rng = np.random.default_rng(0)
    costs: dict[str, list[float]] = {name: [] for name in RULES}
    base = []
    for _ in range(orders):
        order = pool[rng.permutation(len(pool))]
        target = float(order[:TRIALS, -1].max())
        base.append(train_all(order, target, initial))
        for name, rule in RULES.items():
            costs[name].append(rule(order, target, initial))
    return {
        name: (
            float(np.mean(np.minimum(values, LONGEST)) / np.mean(base)),
            float(np.mean(np.isinf(values))),
        )
        for name, values in costs.items()
    }


def noisy(curves: Floats, count: int, *, validation: int, rng: np.random.Generator) -> Floats:
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


def replay_early(curves: Floats, name: str, *, orders: int) -> list[dict[str, Any]]:
    """Cost of each rule by the number of early validation examples.

    Args:
        curves: Accuracies [S, K, T].
        name: Name of the data set.
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
        for _ in range(REPEATS):
            seen = pool if count is None else noisy(pool, count, validation=validation, rng=rng)
            for rule, (cost, _) in _costs(seen, initial=10, orders=orders).items():
                costs.setdefault(rule, []).append(cost * (1 + evaluations))
        shown = {rule: round(float(np.mean(values)), 3) for rule, values in costs.items()}
        rows.append({"examples": early, "evaluations": round(evaluations, 3), "cost": shown})
    return rows


def early(records: list[Path], *, orders: int) -> dict[str, list[dict[str, Any]]]:
    """`replay_early` of the records' uniform sampling, by data set."""
    found = {}
    for path in records:
        for about, kinds in read_arms(json.loads(path.read_text(encoding="utf-8"))):
            if about == {"sampler": "uniform", "schedule": "linear", "average": WINDOW}:
                found[path.stem] = replay_early(kinds["averaged"], path.stem, orders=orders)
    return found


def main() -> None:
    """Replay every record and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("records", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--orders", type=int, default=1000)
    parser.add_argument("--early", action="store_true")
    args = parser.parse_args()
    if args.early:
        args.out.write_text(json.dumps(early(args.records, orders=args.orders)) + "\n")
        return
    rows = []
    for path in args.records:
        document = json.loads(path.read_text(encoding="utf-8"))
        for key, kinds in read_arms(document):
            if key["average"] != WINDOW:
                continue
            for weights in ("averaged", "raw") if key["sampler"] == "uniform" else ("averaged",):
                for initial in (0, 10):
                    found = replay(kinds[weights], initial=initial, orders=args.orders)
                    row = {"data": document["data"], **key, "weights": weights, "initial": initial}
                    rows.append({**row, "cost": found})
                    print(row, found, flush=True)
    args.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
