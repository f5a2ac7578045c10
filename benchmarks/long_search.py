"""What a long search loses if TPE is shown 1,000 of its trials instead of all.

    python benchmarks/long_search.py

TPE's time for a proposal grows with the number of trials. Here it searches four parameters of a
noisy quadratic function, with the successive halving of a study: once with all trials, once as a
study shows them (`hpo_mab.search._searchers.OwnHistory`). Until 1,000 trials both are equal. The
output has ratios of distances from the optimum, and of TPE's CPU time. The exit status is 1 if the
distances are larger, and their interval leaves out 1.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from _shared import table, write_json

from hpo_mab.compare._records import geometric_mean
from hpo_mab.search import _searchers
from hpo_mab.search._pruners import create_pruner
from hpo_mab.search._searchers import PlannedSearcher, searcher_maker

PARAMETERS = 4
EVALUATIONS = 8
#: Of the last evaluation; the first is 4.5 times as noisy.
NOISE = 0.003
LAST = 500


def search(seed: int, *, trials: int, shown: int) -> tuple[np.ndarray, float]:
    """Distance of each trial from the optimum [trials], and CPU seconds of the last `LAST`."""
    draws = np.random.default_rng(seed)
    optimum, scale = draws.uniform(0.15, 0.85, PARAMETERS), draws.uniform(0.3, 1.5, PARAMETERS)
    _searchers.SHOWN_TRIALS = shown
    study = optuna.create_study(
        direction="maximize",
        sampler=PlannedSearcher(searcher_maker("tpe", {}), seed=seed, initial=5),
        pruner=create_pruner("successive_halving", {}, evaluations=EVALUATIONS, averaged=True),
    )
    gaps, times = [], []
    for _ in range(trials):
        began = time.process_time()
        trial = study.ask()
        point = np.array([trial.suggest_float(f"x{i}", 0, 1) for i in range(PARAMETERS)])
        times.append(time.process_time() - began)
        gaps.append(float(np.sum(scale * (point - optimum) ** 2)))
        _train(study, trial, gaps[-1], draws)
    return np.array(gaps), sum(times[-LAST:])


def _train(study: optuna.Study, trial: optuna.Trial, gap: float, draws: Any) -> None:
    value = 0.0
    for step in range(1, EVALUATIONS + 1):
        noise = NOISE * (1 + 4 * (1 - step / EVALUATIONS))
        value = -gap + noise * draws.standard_normal()
        trial.report(value, step)
        if step < EVALUATIONS and trial.should_prune():
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            return
    study.tell(trial, value)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=3000)
    parser.add_argument("--shown", type=int, default=_searchers.SHOWN_TRIALS)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    ratios: dict[str, list[float]] = {"best trial": [], f"mean of the last {LAST}": [], "time": []}
    for seed in range(options.repeats):
        (whole, long), (part, short) = (
            search(seed, trials=options.trials, shown=shown)
            for shown in (options.trials, options.shown)
        )
        pair = [part.min() / whole.min(), part[-LAST:].mean() / whole[-LAST:].mean(), short / long]
        for name, ratio in zip(ratios, pair, strict=True):
            ratios[name].append(float(ratio))
        print(seed, *(f"{ratio:.2f}" for ratio in pair), file=sys.stderr)
    figures = {}
    for name, found in ratios.items():
        mean = geometric_mean(found)
        figures[name] = [mean.value, mean.low, mean.high]
    rows = [[name, f"{v:.2f}", f"{a:.2f} to {b:.2f}"] for name, (v, a, b) in figures.items()]
    print(table(["shown / all", "ratio", "95% interval"], rows))
    given = {"trials": options.trials, "shown": options.shown, "repeats": options.repeats}
    write_json(options.json, {**given, "ratios": figures})
    return int(any(low > 1 for name, (_, low, _) in figures.items() if name != "time"))


if __name__ == "__main__":
    sys.exit(main())
