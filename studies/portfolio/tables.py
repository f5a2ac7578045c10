"""What the record of ``run.py`` says: advantage, cost and fidelity of each sampler, and the race.

python studies/portfolio/tables.py studies/portfolio/*.json
"""

from __future__ import annotations

import argparse
import collections
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hpo_mab.advantage import compare_fidelity
from hpo_mab.advantage._advantage import mean_estimate
from hpo_mab.compare._tables import coefficient, points
from hpo_mab.search._definition import PORTFOLIO
from hpo_mab.search._race import RacePlan, _survivors, portfolio
from hpo_mab.search._standing import Ended, Standing

#: Trials of the studies whose races are replayed, and races of each.
TRIALS = (30, 60)
RACES = 400

Row = Mapping[str, Any]
#: A configuration under each sampler, by sampler.
Pair = Mapping[str, Row]


def cells(documents: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, float, float, list[Pair]]]:
    """Data set, epochs, share flipped and the configurations that every sampler has trained."""
    for document in documents:
        found: dict[tuple[float, float], dict[tuple[int, int], dict[str, Row]]]
        found = collections.defaultdict(lambda: collections.defaultdict(dict))
        for row in document["rows"]:
            where = found[row["epochs"], row["flipped"]]
            where[row["seed"], row["configuration"]][row["arm"]] = row
        arms = set(document["arms"])
        for (epochs, flipped), pairs in sorted(found.items(), key=lambda item: item[0][::-1]):
            whole = [pair for _, pair in sorted(pairs.items()) if set(pair) == arms]
            if whole:
                yield document["data"], epochs, flipped, whole


def ended(row: Row) -> Ended:
    """A training as a race sees it."""
    return Ended(
        accuracy=0.0 if row["diverged"] else row["accuracy"][-1],
        curve=dict(enumerate(row["accuracy"], 1)),
        seconds=row["seconds"][-1] if row["seconds"] else 0.0,
    )


def both(pairs: Sequence[Pair], arm: str) -> list[tuple[Ended, Ended]]:
    """A sampler's trainings and uniform's; where uniform diverges there is no pair."""
    return [
        (ended(pair[arm]), ended(pair["uniform"]))
        for pair in pairs
        if not pair["uniform"]["diverged"]
    ]


def advantage(pairs: Sequence[Pair], arm: str) -> tuple[str, ...]:
    """Cells of a row: pairs, advantage at equal examples and seconds, cost, fidelity."""
    sides = both(pairs, arm)
    standing = Standing.of(arm, sides, error=0.025)
    equal = np.asarray([one.accuracy - other.accuracy for one, other in sides])
    earlier = np.asarray([one.at(1 / max(standing.cost, 1)) - o.accuracy for one, o in sides])
    kept = [pair for pair in pairs if not any(pair[a]["diverged"] for a in (arm, "uniform"))]
    half = [np.asarray([pair[a]["accuracy"][1] for pair in kept]) for a in (arm, "uniform")]
    final = np.asarray([pair["uniform"]["accuracy"][-1] for pair in kept])
    fidelity = compare_fidelity(half[0], half[1], final).difference
    return (
        arm,
        str(len(sides)),
        points(mean_estimate(equal)),
        points(standing.examples),
        points(mean_estimate(earlier)),
        f"{standing.cost:.2f}",
        coefficient(fidelity),
    )


def race(pairs: Sequence[Pair], plan: RacePlan, order: Sequence[int]) -> tuple[str, int]:
    """The choice of one race on the pairs in an order, and its twins."""
    alive, twins, before = list(plan.challengers), 0, 0
    standings: list[Standing] = []
    for number, (_, end) in enumerate(plan.rounds, 1):
        twins += len(alive) * (end - before)
        before = end
        part = [pairs[place] for place in order[:end]]
        standings = [
            Standing.of(
                name,
                both(part, name),
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
    judged = last.seconds if plan.judged == "seconds" else last.examples
    return (last.name if judged.above(0.0) else "uniform"), twins


def replay(pairs: Sequence[Pair], *, trials: int, judged: Any) -> tuple[str, ...]:
    """Cells of a row: what races on random orders of the pairs chose, and what that is worth."""
    challengers = {k: part for k, part in portfolio(PORTFOLIO).items() if k != "uniform"}
    plan = RacePlan.make(challengers, trials=trials, judged=judged)
    usable = [pair for pair in pairs if not pair["uniform"]["diverged"]]
    if plan is None or len(usable) < plan.pairs:
        return ()
    rng = np.random.default_rng(0)
    found = [race(usable, plan, rng.permutation(len(usable))) for _ in range(RACES)]
    gains = {"uniform": 0.0}
    for name in challengers:
        standing = Standing.of(name, both(usable, name), error=0.025)
        at = 1 / max(standing.cost, 1) if judged == "seconds" else 1.0
        sides = both(usable, name)
        gains[name] = float(np.mean([100 * (one.at(at) - o.accuracy) for one, o in sides]))
    counts = collections.Counter(name for name, _ in found)
    best = max(gains, key=lambda name: gains[name])
    mean = sum(gains[name] * count for name, count in counts.items()) / RACES
    chosen = ", ".join(f"{name} {count / RACES:.0%}" for name, count in counts.most_common())
    spent = np.mean([twins for _, twins in found])
    return str(trials), judged, chosen, f"{mean:+.2f}", f"{best} {gains[best]:+.2f}", f"{spent:.1f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("records", type=Path, nargs="+")
    documents = [json.loads(path.read_text()) for path in parser.parse_args().records]
    rows: list[tuple[str, ...]] = []
    races: list[tuple[str, ...]] = []
    for name, epochs, flipped, pairs in cells(documents):
        where = (name, f"{epochs:g}", f"{flipped:.0%}")
        seeds = str(len({pair["uniform"]["seed"] for pair in pairs}))
        arms = [arm for arm in pairs[0] if arm != "uniform"]
        rows += [(*where, seeds, *advantage(pairs, arm)) for arm in arms]
        for trials in TRIALS:
            for judged in ("examples", "seconds"):
                found = replay(pairs, trials=trials, judged=judged)
                if found:
                    races.append((*where, str(len(pairs)), *found))
    head = ("data", "epochs", "flipped", "seeds", "sampler", "pairs", "mean, equal examples")
    print(table((*head, "centre", "mean, equal seconds", "cost", "fidelity at half"), rows))
    head = ("data", "epochs", "flipped", "pairs", "trials", "judged at equal", "chosen")
    print("\n" + table((*head, "gain of the choice", "best", "twins"), races))


if __name__ == "__main__":
    main()
