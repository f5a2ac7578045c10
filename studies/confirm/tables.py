"""What `hpo-mab confirm` chooses, replayed on the recorded trainings.

python studies/confirm/tables.py digits.json fashion_mnist.json
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpo_mab._attributes import SLOT_KEY
from hpo_mab.search._confirm import best_first
from hpo_mab.storage import TrialRun

#: Trainings that the best has in the end; 0 takes the trial of the highest value.
TRAININGS = (0, 1, 2, 3)
MOST = 20
ORDERS = 500


@dataclasses.dataclass(frozen=True, kw_only=True)
class Replayed:
    """Means over random orders of the recorded trainings, in points but for ``cost``.

    Trainings that were used for the choice are not used to judge it.

    Attributes:
        test: Mean test accuracy of the choice's other trainings.
        cost: Trainings.
        excess: The value that the choice was made by, less the mean of its other trainings.
    """

    test: float
    cost: float
    excess: float


def replay(study: Mapping[str, Any], *, trainings: int) -> Replayed:
    """Choices by the rule of `hpo_mab.search.confirm` among a study's recorded configurations."""
    rng = np.random.default_rng(0)
    top = {one["number"]: np.asarray(one["again"]) for one in study["top"]}
    trials = [
        TrialRun(
            number=one["number"],
            slot=one["number"],
            state="complete",
            params={},
            value=one["value"],
            paired=False,
            curve=(),
            attrs={SLOT_KEY: one["number"]},
        )
        for one in study["top"]
    ]
    rows = [_once(trials, top, trainings=trainings, rng=rng) for _ in range(ORDERS)]
    test, cost, excess = np.mean(rows, axis=0)
    return Replayed(test=100 * test, cost=cost, excess=100 * excess)


def _once(
    trials: list[TrialRun],
    top: Mapping[int, NDArray[np.float64]],
    *,
    trainings: int,
    rng: np.random.Generator,
) -> tuple[float, float, float]:
    order = {number: rng.permutation(len(again)) for number, again in top.items()}
    repeats: dict[int, list[float]] = {}
    while True:
        candidates = best_first(trials, repeats)
        best, cost = candidates[0], sum(map(len, repeats.values()))
        if len(best.repeats) >= trainings or cost >= MOST:
            break
        number, done = best.trial.number, len(best.repeats)
        repeats[number] = [*best.repeats, float(top[number][order[number][done], 0])]
    if trainings:
        best = next(one for one in candidates if one.repeats)
    number = best.trial.number
    others = top[number][order[number][len(best.repeats) :]]
    validation, test = others.mean(axis=0)
    return float(test), float(cost), best.accuracy - float(validation)


def deviation(study: Mapping[str, Any]) -> float:
    """Standard deviation of the validation accuracies of one configuration, in points."""
    again = np.array([one["again"] for one in study["top"]])[..., 0]
    return 100 * float(np.sqrt(again.var(axis=1, ddof=1).mean()))


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("records", nargs="+", type=Path)
    print("| data, seed | finished | varies by | trainings | cost | too high by | test |")
    print("|---|---|---|---|---|---|---|")
    for path in parser.parse_args().records:
        document = json.loads(path.read_text())
        for study in document["studies"]:
            for trainings in TRAININGS:
                found = replay(study, trainings=trainings)
                print(
                    f"| {document['data']}, {study['seed']} | {study['finished']} "
                    f"| {deviation(study):.2f} | {trainings} | {found.cost:.1f} "
                    f"| {found.excess:.2f} | {found.test:.2f} |"
                )


if __name__ == "__main__":
    main()
