"""Tables of records of ``run.py`` in Markdown, and a figure.

    python studies/peers/tables.py digits.json --reach 98.5 98.9
    python studies/peers/tables.py digits.json fashion_mnist.json --figure incumbents.svg

An arm's incumbent is the best accuracy of the trials that have spent their whole budget. A stopped
trial has trained on fewer examples, and in some arms it has averaged weights. Intervals are 95%
over seeds. The figure needs the extra ``docs`` and Chrome or Chromium.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.subplots import make_subplots

from hpo_mab.advantage import Estimate, mean_estimate
from hpo_mab.compare._records import geometric_mean

OURS = "hpo_mab"
_COLOURS = {"hpo_mab": "#0072B2", "optuna": "#D55E00", "ray": "#009E73", "syne": "#CC79A7"}
_DASHES = ("solid", "dash", "dot", "dashdot")
_GRID = 200
#: Points of accuracy below the best that the figure shows.
_POINTS = 3.5

Run = Mapping[str, Any]
Floats = NDArray[np.float64]


def incumbents(run: Run, *, by: str) -> tuple[Floats, Floats]:
    """Steps of the incumbent's accuracy: where it rises [n], and its new values [n].

    Args:
        run: A run of a record.
        by: ``"seconds"`` of wall clock or ``"examples"`` of all trials.
    """
    where, what, best = [], [], 0.0
    for seconds, examples, accuracy in run["finished_trials"]:
        if accuracy is not None and accuracy > best:
            best = accuracy
            where.append(float(seconds if by == "seconds" else examples))
            what.append(best)
    return np.array(where), np.array(what)


def first_reached(run: Run, accuracy: float, *, by: str) -> float:
    """Where an incumbent first reaches a target; infinity if it never does."""
    where, what = incumbents(run, by=by)
    reached = where[what >= accuracy - 1e-9]
    return float(reached[0]) if len(reached) else math.inf


def at(run: Run, grid: Floats, *, by: str) -> Floats:
    """The incumbent's accuracy at points of a grid; NaN before the first."""
    where, what = incumbents(run, by=by)
    place = np.searchsorted(where, grid, side="right") - 1
    return np.where(place >= 0, np.append(what, np.nan)[place], np.nan)


def by_arm(record: Mapping[str, Any]) -> dict[str, dict[int, Run]]:
    """Runs by arm and seed."""
    found: dict[str, dict[int, Run]] = {}
    for run in record["runs"]:
        found.setdefault(run["arm"], {})[run["seed"]] = run
    return found


def final(run: Run) -> float:
    """The last incumbent's accuracy; NaN if no trial was finished."""
    _, what = incumbents(run, by="seconds")
    return float(what[-1]) if len(what) else math.nan


def tested(run: Run) -> float:
    """Mean test accuracy of the best configuration, trained again."""
    return float(np.mean(run["test"])) if run["test"] else math.nan


def searches(record: Mapping[str, Any]) -> list[str]:
    """One line per arm."""
    hours = record["minutes"] / 60
    rows = []
    for arm, runs in by_arm(record).items():
        own = list(runs.values())

        def mean(name: str, own: Sequence[Run] = own) -> float:
            known = [run[name] for run in own if run[name] is not None]
            return float(np.mean(known)) if known else math.nan

        rows.append(
            [
                f"`{arm}`",
                str(len(own)),
                shown(mean_estimate(np.array([final(run) for run in own])), ".2f", "%"),
                shown(mean_estimate(np.array([tested(run) for run in own])), ".2f", "%"),
                "/".join(
                    f"{mean(name) / hours:.0f}" for name in ("started", "finished", "stopped")
                ),
                f"{mean('seconds_to_first_result'):.1f}/{mean('seconds_to_first_finished'):.1f}",
                f"{100 * mean('not_training'):.0f}%",
                f"{mean('memory') / 2**30:.1f}"
                + (f" + {mean('gpu_memory') / 2**30:.1f}" if record["device"] == "cuda" else ""),
            ]
        )
    head = [
        "arm",
        "seeds",
        "validation",
        "test, trained again",
        "trials an hour: started/finished/stopped",
    ]
    head += ["seconds to the first report/finished trial", "not training", "GiB"]
    return table(head, rows)


def reached(record: Mapping[str, Any], targets: Sequence[float]) -> list[str]:
    """Seconds to fixed accuracies: the median over seeds, their range and number.

    A seed that does not reach an accuracy counts as infinity.

    Args:
        record: A record.
        targets: Accuracies in percent.
    """
    rows = []
    for arm, runs in by_arm(record).items():
        found = (
            [first_reached(run, target / 100, by="seconds") for run in runs.values()]
            for target in targets
        )
        rows.append([f"`{arm}`", *(spread(seconds, ".0f") for seconds in found)])
    head = [f"seconds to {target:g}%: median (range), seeds" for target in targets]
    return table(["arm", *head], rows)


def spread(found: Sequence[float], form: str) -> str:
    """The median, the range of those that are finite, and their number."""
    known = sorted(one for one in found if math.isfinite(one))
    middle = float(np.median(found))
    text = f"{middle:{form}}" if math.isfinite(middle) else "-"
    if known:
        text += f" ({known[0]:{form}} to {known[-1]:{form}})"
    return f"{text}, {len(known)} of {len(found)}"


def shares(record: Mapping[str, Any]) -> list[str]:
    """Share of its time after which each arm has the other's final accuracy, paired by seed.

    A seed in which an arm never has that accuracy counts as infinity.
    """
    arms = by_arm(record)
    rows = []
    for arm, peer, seeds in _against(arms):
        both = [(arms[arm][seed], arms[peer][seed]) for seed in seeds]
        cells = [
            [first_reached(a, final(b), by="seconds") / (60 * record["minutes"]) for a, b in pairs]
            for pairs in (both, [(peers, own) for own, peers in both])
        ]
        rows.append([f"`{arm}`", f"`{peer}`", *(spread(cell, ".2f") for cell in cells)])
    what = "share of the time: median (range), seeds"
    head = ["arm", "peer", f"arm has the peer's final accuracy, {what}"]
    return table([*head, f"peer has the arm's, {what}"], rows)


def _against(
    arms: Mapping[str, Mapping[int, Run]],
) -> Iterator[tuple[str, str, list[int]]]:
    """Each arm of ours with each peer, and the seeds that both have."""
    for arm in (name for name in arms if name.startswith(OURS)):
        for peer in (name for name in arms if not name.startswith(OURS)):
            if seeds := sorted(arms[arm].keys() & arms[peer].keys()):
                yield arm, peer, seeds


def contrasts(record: Mapping[str, Any]) -> list[str]:
    """Each arm of ours against each peer, paired by seed."""
    arms = by_arm(record)
    rows = []
    for arm, peer, seeds in _against(arms):
        pairs = [(arms[arm][seed], arms[peer][seed]) for seed in seeds]
        gain = np.array([final(own) - final(other) for own, other in pairs])
        test = np.array([tested(own) - tested(other) for own, other in pairs])
        rows.append(
            [
                f"`{arm}`",
                f"`{peer}`",
                str(mean_estimate(gain).n),
                shown(mean_estimate(gain), "+.2f"),
                *(
                    ratio(pairs, by=by, most=60 * record["minutes"])
                    for by in ("seconds", "examples")
                ),
                shown(mean_estimate(test), "+.2f"),
            ]
        )
    head = ["arm", "peer", "pairs", "validation", "wall clock to the peer's accuracy"]
    head += ["examples to it", "test, trained again"]
    return table(head, rows)


def ratio(pairs: Iterable[tuple[Run, Run]], *, by: str, most: float) -> str:
    """Cost of an arm to the peer's last incumbent, divided by the peer's cost, over seeds.

    Args:
        pairs: The arm's run and the peer's of each seed.
        by: ``"seconds"`` or ``"examples"``.
        most: Seconds of a run; an arm that did not get there needs at least as many.
    """
    found, censored = [], False
    for own, other in pairs:
        where, what = incumbents(other, by=by)
        if not len(what):
            continue
        spent = first_reached(own, what[-1], by=by)
        if math.isinf(spent):
            censored = True
            spent = own["examples"] if by == "examples" else most
        found.append(spent / where[-1])
    if not found:
        return "-"
    mean = geometric_mean(found, censored=censored)
    more = "at least " if censored else ""
    interval = f" ({mean.low:.2f} to {mean.high:.2f})" if mean.n > 1 else ""
    return f"{more}{mean.value:.2f}{interval}"


def shown(one: Estimate, form: str, unit: str = "") -> str:
    """An accuracy or a difference of accuracies in points, with its interval."""
    if one.n == 0:
        return "none"
    text = f"{100 * one.value:{form}}{unit}"
    return text + (f" ({100 * one.low:{form}} to {100 * one.high:{form}})" if one.bounded else "")


def restarts(record: Mapping[str, Any]) -> list[str]:
    """Table of the trials after a kill."""
    head = ["arm", "trials known at the kill", "at the end", "best at the kill", "at the end"]
    head += ["trials that were running", "finished after it"]
    rows = [
        [
            f"`{run['arm']}`",
            str(run["known"]),
            str(run["known_at_the_end"]),
            *(
                "none" if run[n] is None else f"{100 * run[n]:.2f}%"
                for n in ("best", "best_at_the_end")
            ),
            ", ".join(run["cut_off"]) or "none",
            str(run["finished_after"]),
        ]
        for run in record["runs"]
    ]
    return table(head, rows)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def figure(records: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Mean incumbents: a row per record, by wall clock and by examples."""
    made = make_subplots(rows=len(records), cols=2, horizontal_spacing=0.07)
    # An arm looks the same in every row.
    everyone = sorted({run["arm"] for record in records for run in record["runs"]})
    named: set[str] = set()
    for row, record in enumerate(records, start=1):
        arms = by_arm(record)
        best = 100 * np.nanmax([final(run) for runs in arms.values() for run in runs.values()])
        for column, by in enumerate(("seconds", "examples"), start=1):
            last = [run["examples"] for runs in arms.values() for run in runs.values()]
            grid = np.linspace(0, 60 * record["minutes"] if by == "seconds" else max(last), _GRID)
            for arm, runs in sorted(arms.items()):
                curves = np.array([at(run, grid, by=by) for run in runs.values()])
                made.add_trace(
                    go.Scatter(
                        x=grid,
                        # From where every seed has a finished trial.
                        y=100 * curves.mean(axis=0),
                        name=arm,
                        legendgroup=arm,
                        showlegend=arm not in named,
                        mode="lines",
                        line={"shape": "hv", "width": 1.8, **_style(arm, everyone)},
                    ),
                    row=row,
                    col=column,
                )
                named.add(arm)
            made.update_yaxes(range=[best - _POINTS, best + 0.2], row=row, col=column)
            made.update_xaxes(title_text=f"{by}, {record['task']}", row=row, col=column)
    made.update_yaxes(title_text="validation accuracy, %", col=1)
    made.update_layout(
        template="plotly_white",
        title={"text": "Best finished trial, mean of seeds", "font": {"size": 15}, "x": 0.01},
        width=1000,
        height=360 * len(records) + 60,
        margin={"l": 50, "r": 10, "t": 50, "b": 50},
    )
    return made


def _style(arm: str, arms: Sequence[str]) -> dict[str, str]:
    kind = next((name for name in _COLOURS if arm.startswith(name)), "")
    others = [other for other in arms if other.startswith(kind)] if kind else [arm]
    return {
        "color": _COLOURS.get(kind, "#666666"),
        "dash": _DASHES[others.index(arm) % len(_DASHES)],
    }


def main() -> None:
    """Print the tables of each record, and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("records", nargs="+", type=Path)
    parser.add_argument("--reach", type=float, nargs="+", default=[], help="accuracies in percent")
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    records = [json.loads(path.read_text(encoding="utf-8")) for path in options.records]
    for record in records:
        about = f"{record['task']}, {record['minutes']:g} minutes, {record['device']}"
        print(f"\n### {about}, {record['workers']} trainings at a time\n")
        if record["kind"] == "restart":
            print("\n".join(restarts(record)))
            continue
        print("\n".join([*searches(record), "", *contrasts(record), "", *shares(record)]))
        if options.reach:
            print("\n".join(["", *reached(record, options.reach)]))
    if options.figure:
        drawn = [record for record in records if record["kind"] == "search"]
        figure(drawn).write_image(options.figure)


if __name__ == "__main__":
    main()
