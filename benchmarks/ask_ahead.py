"""What it costs a search to ask for the next round of trials before this round has ended.

    python benchmarks/ask_ahead.py

A GPU that trains a stack of trials waits while Optuna is asked for the next ones. It would not
wait if they were asked for one round earlier, but the search then knows a round less. Here TPE, as
studies use it, searches four parameters of a noisy quadratic function in rounds of one stack, both
ways. Storage, Optuna and new networks take at most 37% of a study, see NOTES.md. So asking ahead
can save time only if it needs less than 1.6 times the trials.

The ratio is taken in both directions. `ask_ahead.json` is of one direction only (`trials_needed`),
which can be above 1 for equal searches, too.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import optuna
from _shared import table, write_json

from hpo_mab.compare._records import geometric_mean
from hpo_mab.search._searchers import searcher_maker

PARAMETERS = 4
NOISE = 0.003
#: Trials needed, as a ratio, at which asking ahead saves no time.
BREAK_EVEN = 1.6

Asked = tuple[optuna.trial.Trial, np.ndarray]


def gaps(seed: int, *, slots: int, trials: int, ahead: bool) -> np.ndarray:
    """Distance of the best trial so far from the optimum, after each trial [trials]."""
    draws = np.random.default_rng(seed)
    optimum, scale = draws.uniform(0.15, 0.85, PARAMETERS), draws.uniform(0.3, 1.5, PARAMETERS)
    sampler = searcher_maker("tpe", {})(seed=seed)
    study = optuna.create_study(sampler=sampler)

    def ask() -> list[Asked]:
        made = [study.ask() for _ in range(slots)]
        names = [f"x{i}" for i in range(PARAMETERS)]
        return [(t, np.array([t.suggest_float(name, 0, 1) for name in names])) for t in made]

    found: list[float] = []
    running = ask()
    while len(found) < trials:
        following = ask() if ahead else []
        for trial, point in running:
            gap = float(np.sum(scale * (point - optimum) ** 2))
            study.tell(trial, gap + NOISE * draws.standard_normal())
            found.append(gap)
        running = following or ask()
    return np.minimum.accumulate(found[:trials])


def trials_needed(one: np.ndarray, other: np.ndarray, *, after: int) -> float:
    """Ratio of the trials that both searches need to the best of ``other`` by trial ``after``.

    A lower bound if ``one`` never reaches that.
    """
    wanted = other[after - 1]
    reached = np.flatnonzero(one <= wanted)
    needed = reached[0] + 1 if len(reached) else len(one) + 1
    return float(needed / (np.argmax(other <= wanted) + 1))


def trials_ratio(one: np.ndarray, other: np.ndarray, *, after: int) -> float:
    """Ratio of the trials that both searches need to the best of each other by trial ``after``.

    Its geometric mean is 1 for equal searches. In one direction it can be above 1: the best of a
    search is partly luck, which the other must match.
    """
    there = trials_needed(one, other, after=after)
    back = trials_needed(other, one, after=after)
    return float(np.sqrt(there / back))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--trials", type=int, default=192)
    parser.add_argument("--repeats", type=int, default=24)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    size = {"slots": options.slots, "trials": options.trials}
    pairs = [
        [gaps(seed, **size, ahead=ahead) for ahead in (True, False)]
        for seed in range(options.repeats)
    ]
    figures = []
    for after in (options.trials // 4, options.trials // 2, options.trials * 2 // 3):
        mean = geometric_mean([trials_ratio(one, other, after=after) for one, other in pairs])
        ends = {"ratio": mean.value, "low": mean.low, "high": mean.high}
        figures.append({"best_after": after, **ends})
    rows = [
        [one["best_after"], f"{one['ratio']:.2f}", f"{one['low']:.2f} to {one['high']:.2f}"]
        for one in figures
    ]
    print(table(["best after", "trials needed, ratio", "95% interval"], rows))
    write_json(options.json, {**size, "repeats": options.repeats, "trials_ratio": figures})
    print(f"asking ahead pays below {BREAK_EVEN}")
    return int(min(one["ratio"] for one in figures) < BREAK_EVEN)


if __name__ == "__main__":
    sys.exit(main())
