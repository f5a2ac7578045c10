"""Tables of the record of ``run.py``: advantage and fidelity of each sampler, and the race.

    python studies/portfolio/tables.py

Seconds of the record are not compared, because its trainings shared a GPU. The cost of a sampler is
that of ``cpu.json``, in which each training had its own core.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hpo_mab.advantage import Estimate, compare_fidelity
from hpo_mab.advantage._advantage import mean_estimate
from hpo_mab.compare._tables import coefficient, points
from hpo_mab.search._choice import PairedTrial, Standing
from hpo_mab.search._portfolio import parse_portfolio
from hpo_mab.search._race import RacePlan, _survivors

HERE = Path(__file__).resolve().parent
DATA_SETS = ("fashion_mnist", "cifar10", "cifar100")
#: Numbers of trials of the replayed studies, and number of races of each.
TRIALS = (30, 60)
RACES = 400

Row = Mapping[str, Any]
#: A configuration under each sampler, by sampler.
Pair = Mapping[str, Row]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """The pairs of one data set, budget and share of flipped labels.

    Attributes:
        name: Data set, budget and share of flipped labels, as cells of a table.
        pairs: Configurations that every sampler has trained, without those that diverge under
            uniform sampling.
        costs: Seconds of a training by sampler, divided by those of uniform sampling.
    """

    name: tuple[str, str, str]
    pairs: Sequence[Pair]
    costs: Mapping[str, float]

    @property
    def arms(self) -> list[str]:
        """The samplers other than uniform."""
        return [arm for arm in self.pairs[0] if arm != "uniform"]

    def sides(self, arm: str) -> list[tuple[PairedTrial, PairedTrial]]:
        """A sampler's trainings and uniform's, in the form that a race takes."""
        return [(self._side(pair, arm), self._side(pair, "uniform")) for pair in self.pairs]

    def gains(self, arm: str, *, judged: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Accuracy minus uniform's, of each pair, at equal examples or seconds."""
        cost = self.costs[arm]
        if judged == "seconds" and cost > 1:
            return np.asarray([one.ahead_of(other, cost=cost) for one, other in self.sides(arm)])
        return np.asarray([one.accuracy - other.accuracy for one, other in self.sides(arm)])

    def fidelity(self, arm: str) -> Estimate:
        """Kendall's tau-b of accuracies at half and at the end, minus uniform's."""
        kept = [pair for pair in self.pairs if not pair[arm]["diverged"]]
        (half, end), (other, other_end) = (
            [np.asarray([pair[a]["accuracy"][at] for pair in kept]) for at in (1, -1)]
            for a in (arm, "uniform")
        )
        return compare_fidelity(half, other, end, other_final=other_end).difference

    def _side(self, pair: Pair, arm: str) -> PairedTrial:
        row = pair[arm]
        return PairedTrial(
            accuracy=0.0 if row["diverged"] else row["accuracy"][-1],
            curve=dict(enumerate(row["accuracy"], 1)),
            seconds=self.costs[arm],
        )


def whole_pairs(document: Mapping[str, Any]) -> dict[tuple[float, float], list[Pair]]:
    """Configurations that every sampler has trained, by epochs and share flipped."""
    found: dict[tuple[float, float], dict[tuple[int, int], dict[str, Row]]]
    found = collections.defaultdict(lambda: collections.defaultdict(dict))
    for row in document["rows"]:
        where = found[row["epochs"], row["flipped"]]
        where[row["seed"], row["configuration"]][row["arm"]] = row
    arms = set(document["arms"])
    return {
        key: [pair for _, pair in sorted(pairs.items()) if set(pair) == arms]
        for key, pairs in sorted(found.items(), key=lambda item: item[0][::-1])
    }


def read_cells() -> Iterator[Cell]:
    """All cells of the record."""
    measured = [p for pairs in whole_pairs(_read("cpu")).values() for p in pairs]
    seconds = {arm: sum(p[arm]["seconds"][-1] for p in measured) for arm in measured[0]}
    costs = {arm: seconds[arm] / seconds["uniform"] for arm in seconds}
    for name in DATA_SETS:
        for (epochs, flipped), pairs in whole_pairs(_read(name)).items():
            kept = [pair for pair in pairs if not pair["uniform"]["diverged"]]
            yield Cell(name=(name, f"{epochs:g}", f"{flipped:.0%}"), pairs=kept, costs=costs)


def _read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((HERE / f"{name}.json").read_text())
    return found


def race(cell: Cell, plan: RacePlan, order: Sequence[int]) -> tuple[str, int]:
    """The choice of one race on ordered pairs, and its number of twins."""
    sides = {name: cell.sides(name) for name in plan.challengers}
    alive, twins, before = list(plan.challengers), 0, 0
    standings: list[Standing] = []
    for number, (_, end) in enumerate(plan.rounds, 1):
        twins += len(alive) * (end - before)
        before = end
        standings = [
            Standing.of(
                name,
                [sides[name][place] for place in order[:end]],
                error=plan.error,
                judged=plan.judged,
                final=plan.pairs,
            )
            for name in alive
        ]
        if number < len(plan.rounds):
            alive = _survivors(standings, plan.rounds[number][0], plan.judged)
    if not alive:
        return "uniform", twins
    (last,) = standings
    ahead = all(estimate.above(0.0) for estimate in last.gains(plan.judged))
    return (last.name if ahead else "uniform"), twins


def replay(cell: Cell, *, trials: int, judged: Any) -> tuple[str, ...]:
    """Choices of races on random orders of the pairs, their mean gain, and their twins.

    The gain of a choice is that in the pairs that its race did not use.
    """
    challengers = {k: part for k, part in parse_portfolio(None).items() if k != "uniform"}
    plan = RacePlan.make(challengers, trials=trials, judged=judged)
    if plan is None or len(cell.pairs) < plan.pairs:
        return ("", "", "")
    rng = np.random.default_rng(0)
    orders = [rng.permutation(len(cell.pairs)) for _ in range(RACES)]
    found = [race(cell, plan, order) for order in orders]
    counts = collections.Counter(name for name, _ in found)
    gains = {name: 100 * cell.gains(name, judged=judged) for name in counts if name != "uniform"}
    mean = np.mean(
        [
            0.0 if name == "uniform" else gains[name][order[plan.pairs :]].mean()
            for (name, _), order in zip(found, orders, strict=True)
        ]
    )
    chosen = ", ".join(f"{name} {count / RACES:.0%}" for name, count in counts.most_common())
    return chosen, f"{mean:+.2f}", f"{np.mean([twins for _, twins in found]):.1f}"


def gain(cell: Cell, name: str, *, judged: str) -> float:
    """Mean gain over uniform sampling, in points."""
    return 0.0 if name == "uniform" else float(100 * cell.gains(name, judged=judged).mean())


def best(cell: Cell, *, judged: str) -> str:
    """The sampler with the highest mean gain, and that gain."""
    gains = {name: gain(cell, name, judged=judged) for name in ("uniform", *cell.arms)}
    name = max(gains, key=lambda name: gains[name])
    return f"{name} {gains[name]:+.2f}"


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, below its title."""
    head = ("data", "epochs", "flipped", *head)
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return "\n".join([f"**{title}**", "", lines[0], "|---" * len(head) + "|", *lines[1:], ""])


def main() -> None:
    """Print the tables."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    cells = list(read_cells())
    arms = cells[0].arms
    for title, judged in (("Mean gain, equal examples", "examples"), ("Equal seconds", "seconds")):
        rows = [
            (*c.name, *(points(mean_estimate(c.gains(arm, judged=judged))) for arm in arms))
            for c in cells
        ]
        print(table(title, arms, rows))
    rows = [
        (*c.name, *(points(Standing.of(a, c.sides(a), error=0.025).examples) for a in arms))
        for c in cells
    ]
    print(table("Centre of the gains, equal examples", arms, rows))
    rows = [(*c.name, *(coefficient(c.fidelity(arm)) for arm in arms)) for c in cells]
    print(table("Fidelity at half, minus uniform's", arms, rows))
    for judged in ("examples", "seconds"):
        head = [f"{trials} trials: {what}" for trials in TRIALS for what in ("chosen", "gain")]
        found = [[replay(c, trials=trials, judged=judged) for trials in TRIALS] for c in cells]
        rows = [
            (*c.name, best(c, judged=judged), *(cell for r in races for cell in r[:2]))
            for c, races in zip(cells, found, strict=True)
        ]
        print(table(f"Races, judged at equal {judged}", ("best", *head), rows))
        for place, trials in enumerate(TRIALS):
            twins = [float(races[place][2]) for races in found]
            print(f"Twins of {trials} trials: {min(twins):.1f} to {max(twins):.1f}.\n")
    print(
        "Cost on a CPU core: " + ", ".join(f"{arm} {cells[0].costs[arm]:.2f}" for arm in arms) + "."
    )


if __name__ == "__main__":
    main()
