"""How time and memory grow with the numbers of examples, bandits and trials.

    python benchmarks/growth.py --json growth.json --figure growth.svg

One CPU thread, CPU seconds, medians. Examples and bandits: time of draw, update and set-up of the
samplers, and their memory. Trials: time of Optuna's `ask`, `suggest`, `report`, `should_prune` and
`tell` for one trial, by the number of finished ones. The study is in memory, with a median pruner.
TPE has the options of a definition, but is shown all trials; in a study it is shown about 1,000.
``storage_load.py`` has the cost of a database.
"""

from __future__ import annotations

import argparse
import pickle
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _shared
import numpy as np
import optuna
import torch

from hpo_mab import samplers
from hpo_mab.compare.figures._style import colours
from hpo_mab.search._searchers import sampler_factory

BANDITS = (32, 128, 512, 1024, 4096)
EXAMPLES = (10_000, 100_000, 1_000_000, 10_000_000)
TRIALS = (10, 100, 1_000, 10_000)
ARMS = 390
EVALUATIONS = 8
LINES = ("uniform", "mab", "random", "tpe")


def drawing(kind: str, *, examples: int, bandits: int, steps: int) -> dict[str, Any]:
    """Cost of a sampler, by the numbers of examples and bandits."""
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(rng.integers(0, 10, examples))
    losses = torch.from_numpy(rng.exponential(size=examples).astype(np.float32))
    started = time.process_time()
    sampler = samplers.create(kind, labels, batch_size=bandits)
    sampler.draw()  # Makes what later draws need.
    sampler.discard()
    made = time.process_time() - started
    times = []
    for number in range(3 * steps):
        started = time.process_time()
        indices = sampler.draw()
        drawn = time.process_time()
        found = losses[indices]
        answered = time.process_time()
        sampler.update(found)
        if number >= 2 * steps:
            times.append(time.process_time() - answered + drawn - started)
    held = len(pickle.dumps(sampler)) - sampler.labels.nbytes
    return {
        "kind": kind,
        "examples": examples,
        "bandits": bandits,
        "step_ms": 1e3 * statistics.median(times),
        "setup_s": made,
        "bytes_an_example": held / examples,
    }


def searching(search: str, *, trials: int, rounds: int) -> dict[str, Any]:
    """Optuna's time for one more trial, by the number of trials of the study."""
    study = optuna.create_study(
        direction="maximize",
        sampler=sampler_factory(search, {})(seed=0),
        pruner=optuna.pruners.MedianPruner(n_warmup_steps=2),
    )
    study.add_trials([_finished(number) for number in range(trials)])
    times: dict[str, list[float]] = {}

    def timed(what: str, call: Callable[[], Any]) -> Any:
        started = time.process_time()
        result = call()
        times.setdefault(what, []).append(time.process_time() - started)
        return result

    for _ in range(rounds):
        trial = timed("ask", study.ask)
        timed("suggest", lambda trial=trial: _suggest(trial))
        timed("report and judge", lambda trial=trial: _report(trial))
        timed("tell", lambda trial=trial: study.tell(trial, 0.5))
    parts = {what: 1e3 * statistics.median(values) for what, values in times.items()}
    return {"search": search, "trials": trials, "parts_ms": parts, "trial_ms": sum(parts.values())}


def _suggest(trial: optuna.Trial) -> dict[str, float]:
    trial.suggest_float("optimizer.lr", 1e-3, 1.0, log=True)
    trial.suggest_float("optimizer.momentum", 0.5, 0.98)
    trial.suggest_float("optimizer.weight_decay", 1e-6, 1e-2, log=True)
    trial.suggest_float("training.label_smoothing", 0.0, 0.2)
    return trial.params


def _report(trial: optuna.Trial) -> None:
    for step in range(1, EVALUATIONS + 1):
        trial.report(0.5, step=step)
        trial.should_prune()


def _finished(number: int) -> optuna.trial.FrozenTrial:
    rng = np.random.default_rng(number)
    ranges = {
        "optimizer.lr": optuna.distributions.FloatDistribution(1e-3, 1.0, log=True),
        "optimizer.momentum": optuna.distributions.FloatDistribution(0.5, 0.98),
        "optimizer.weight_decay": optuna.distributions.FloatDistribution(1e-6, 1e-2, log=True),
        "training.label_smoothing": optuna.distributions.FloatDistribution(0.0, 0.2),
    }
    values = {name: float(rng.uniform(range_.low, range_.high)) for name, range_ in ranges.items()}
    curve = np.sort(rng.random(EVALUATIONS))
    return optuna.trial.create_trial(
        params=values,
        distributions=ranges,
        value=float(curve[-1]),
        intermediate_values={step: float(value) for step, value in enumerate(curve, start=1)},
    )


def measure(*, scale: float) -> dict[str, list[dict[str, Any]]]:
    """All figures; ``scale`` below 1 leaves out sizes above that share of the largest."""
    examples = [n for n in EXAMPLES if n <= scale * EXAMPLES[-1]]
    bandits = [n for n in BANDITS if n <= scale * BANDITS[-1]]
    trials = [n for n in TRIALS if n <= scale * TRIALS[-1]]
    steps = 100 if scale == 1 else 5
    return {
        "examples": [
            drawing(kind, examples=n, bandits=min(128, n), steps=steps)
            for kind in ("uniform", "mab")
            for n in examples or [1_000]
        ],
        "bandits": [
            drawing(kind, examples=n * ARMS, bandits=n, steps=steps)
            for kind in ("uniform", "mab")
            for n in bandits or [8]
        ],
        "trials": [
            searching(search, trials=n, rounds=11 if scale == 1 else 3)
            for search in ("random", "tpe")
            for n in trials or [10]
        ],
    }


def tables(figures: dict[str, list[dict[str, Any]]]) -> str:
    """Three Markdown tables."""
    text = []
    for what in ("examples", "bandits"):
        rows = [
            (
                row["kind"],
                f"{row['examples']:,}",
                f"{row['bandits']:,}",
                f"{row['step_ms']:.3f}",
                f"{row['setup_s']:.2f}",
                f"{row['bytes_an_example']:.1f}",
            )
            for row in figures[what]
        ]
        head = ("sampler", "examples", "bandits", "draw + update, ms", "set-up, s", "bytes/example")
        text.append(_shared.table(head, rows))
    rows = [
        (row["search"], f"{row['trials']:,}", *(f"{ms:.2f}" for ms in row["parts_ms"].values()))
        for row in figures["trials"]
    ]
    head = ("search", "trials", *(f"{part}, ms" for part in figures["trials"][0]["parts_ms"]))
    text.append(_shared.table(head, rows))
    return "\n\n".join(text)


def draw_figure(figures: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Three panels of lines on logarithmic axes, as a picture."""
    from plotly import graph_objects as go
    from plotly.subplots import make_subplots

    figure = make_subplots(cols=3, subplot_titles=("examples", "bandits", "trials in the study"))
    panels = [("examples", "kind", "step_ms"), ("bandits", "kind", "step_ms")]
    for column, (what, name, value) in enumerate([*panels, ("trials", "search", "trial_ms")], 1):
        for line in dict.fromkeys(row[name] for row in figures[what]):
            rows = [row for row in figures[what] if row[name] == line]
            trace = go.Scatter(
                x=[row[what] for row in rows],
                y=[row[value] for row in rows],
                name=line,
                legendgroup=line,
                showlegend=what != "bandits",
                line={"color": colours(LINES)[line]},
                mode="lines+markers",
            )
            figure.add_trace(trace, row=1, col=column)
        figure.update_xaxes(type="log", title=what, row=1, col=column)
        unit = "ms a trial" if what == "trials" else "ms a draw and update"
        figure.update_yaxes(type="log", title=unit, row=1, col=column)
    figure.update_layout(width=1100, height=380, template="plotly_white", margin={"t": 40})
    figure.write_image(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", type=float, default=1.0, help="share of the largest sizes")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    figures = measure(scale=options.scale)
    print(tables(figures))
    _shared.write_json(options.json, {"growth": figures})
    if options.figure:
        draw_figure(figures, options.figure)


if __name__ == "__main__":
    main()
