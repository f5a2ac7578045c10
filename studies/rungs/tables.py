"""How early the recorded curves rank configurations, and the cost of pruners on them.

python studies/rungs/tables.py fashion_mnist.json cifar10.json digits.json --out tables.json
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import optuna
from numpy.typing import NDArray

from hpo_mab import HpoMabWarning
from hpo_mab._attributes import PAIRED_KEY
from hpo_mab._machine import environment
from hpo_mab.advantage import (
    Estimate,
    PairedCurves,
    compare_fidelity,
    fidelity,
    mean_estimate,
    measure_evidence,
)
from hpo_mab.advantage._fidelity import Statistic, choice_regret, kendall_tau
from hpo_mab.pruners import AdvantagePruner, RungFidelity, _evidence
from hpo_mab.search._pruners import create_pruner

sys.path.append(str(Path(__file__).parents[1] / "replay"))
from simulation import Saving, Simulation, saving, simulate

Floats = NDArray[np.float64]
Curves = Mapping[str, Floats]

STATISTICS: tuple[Statistic, ...] = ("kendall", "recall", "regret")
#: Window of the average that studies use by default.
WINDOW = 0.2
#: Trials of the baseline's study, and of an arm that may run longer to reach its incumbent.
TRIALS, LONGEST = 24, 48
#: Rungs replayed: evaluation of the first rung of eight, reduction factor.
RUNGS = tuple((first, factor) for first in (1, 2, 3) for factor in (2, 3, 4))
BASELINE = ("uniform", "raw", "hyperband")
#: The former default, before weights were averaged.
BEFORE = ("raw", "halving 3/2")
TOP = 3
#: Number of first trials that are never pruned, the default of ``search.initial``.
INITIAL = 10
#: Coverage of tau-b's interval, and the bound above which a rung stays.
BARS = ((0.8, 0.1), (0.8, 0.2), (0.8, 0.3), (0.95, 0.0), (0.95, 0.2))
#: The same for the bound above which the first rung moves to an eighth.
EARLIER = ((0.8, 0.4), (0.8, 0.5), (0.8, 0.6), (0.8, 0.7))


def read_arms(document: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], Curves]]:
    """Each arm of a record with its curves [S, K, T] by kind.

    A trial with averaged weights reports the trained weights last, unless its rate is constant.
    """
    for arm in document["arms"]:
        key = {name: arm[name] for name in ("sampler", "schedule", "average")}
        rows = sorted(arm["curves"], key=_place)
        shape = (len({row["seed"] for row in rows}), len(document["configurations"]), -1)
        raw = np.reshape([row["raw"] for row in rows], shape)
        averaged = np.reshape([row["averaged"] for row in rows], shape)
        if arm["schedule"] == "linear":
            averaged[..., -1] = raw[..., -1]
        yield key, {"raw": raw, "averaged": averaged}


def _place(row: Mapping[str, Any]) -> tuple[int, int]:
    return row["seed"], row["configuration"]


def last_two(curves: Floats) -> Floats:
    """Mean of the last two evaluations at each evaluation but the first and the last."""
    smooth = curves.copy()
    smooth[..., 1:-1] = (curves[..., 1:-1] + curves[..., :-2]) / 2
    return smooth


def ranking(curves: Floats) -> dict[str, Any]:
    """How each evaluation but the last ranks the same trainings by final accuracy.

    Args:
        curves: Accuracies [S, K, T]; means over S are ranked.

    Returns:
        ``[value, low, high]`` by evaluation, for each statistic, and the mean tau of one seed.
    """
    mean = curves.mean(axis=0)
    found: dict[str, Any] = {
        statistic: [
            plain(
                fidelity(early, mean[:, -1], statistic=statistic, k=TOP, resamples=1000),
                scale=100 if statistic == "regret" else 1,
            )
            for early in mean.T[:-1]
        ]
        for statistic in STATISTICS
    }
    found["kendall of one seed"] = [
        round(float(np.mean([fidelity(x[:, t], x[:, -1], resamples=100).value for x in curves])), 3)
        for t in range(curves.shape[-1] - 1)
    ]
    return found


def gains(raw: Floats, averaged: Floats) -> list[list[float | None]]:
    """Tau of averaged minus tau of raw weights at each evaluation but the last, paired."""
    one, other = averaged.mean(axis=0), raw.mean(axis=0)
    return [
        plain(
            compare_fidelity(
                one[:, t], other[:, t], one[:, -1], other_final=other[:, -1], resamples=1000
            ).difference
        )
        for t in range(one.shape[-1] - 1)
    ]


def plain(estimate: Estimate, *, scale: float = 1.0, digits: int = 3) -> list[float | None]:
    """``[value, low, high]``, rounded; None where there is none."""
    ends = (estimate.value, estimate.low, estimate.high)
    return [round(float(end) * scale, digits) if np.isfinite(end) else None for end in ends]


# Other signals at a rung ------------------------------------------------------------------------


def power_law(curves: Floats) -> Floats:
    """Predicted final value at each evaluation from the third on: a + b / t, fitted so far.

    Args:
        curves: Accuracies [..., T].
    """
    steps = curves.shape[-1]
    found = curves.copy()
    for t in range(3, steps):
        x = np.stack([np.ones(t), 1 / np.arange(1.0, t + 1)], axis=1)
        end = np.asarray([1.0, 1 / steps]) @ np.linalg.pinv(x)
        found[..., t - 1] = curves[..., :t] @ end
    return found


def gaussian_process(curves: Floats, finished: Floats) -> Floats:
    """Predicted final value of each curve from its values so far, learned from finished ones.

    Args:
        curves: Accuracies [K, T].
        finished: Curves that were trained to the end [n, T].
    """
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import DotProduct, WhiteKernel

    found = curves.copy()
    for t in range(1, curves.shape[-1]):
        scale = finished[:, :t].std(axis=0) + 1e-6
        model = GaussianProcessRegressor(DotProduct() + WhiteKernel(), normalize_y=True)
        model.fit(finished[:, :t] / scale, finished[:, -1])
        found[:, t - 1] = model.predict(curves[:, :t] / scale)
    return found


def signals(curves: Floats, *, initial: int, replays: int, seed: int) -> list[dict[str, Any]]:
    """How several signals at an evaluation rank trials by final accuracy, over random orders.

    Args:
        curves: Accuracies [S, K, T].
        initial: Finished trials that a model may learn from; the others are ranked.
        replays: Random orders.
        seed: Of the orders.

    Returns:
        One row per signal: mean tau-b, and regret in points of its first choice, by evaluation.
    """
    rng = np.random.default_rng(seed)
    every = curves.reshape(-1, curves.shape[-1])
    names = ("value", "last two", "power law", "gaussian process")
    tau: dict[str, list[list[float]]] = {name: [] for name in names}
    regret: dict[str, list[list[float]]] = {name: [] for name in names}
    for _ in range(replays):
        rows = every[rng.permutation(len(every))[:TRIALS]]
        known, judged = rows[:initial], rows[initial:]
        signal = {
            "value": judged,
            "last two": last_two(judged),
            "power law": power_law(judged),
            "gaussian process": gaussian_process(judged, known),
        }
        for name, x in signal.items():
            end = judged[:, -1]
            tau[name].append([float(kendall_tau(x[None, :, t], end[None])[0]) for t in range(7)])
            regret[name].append(
                [100 * float(choice_regret(x[None, :, t], end[None])[0]) for t in range(7)]
            )
    return [
        {
            "signal": name,
            "kendall": np.round(np.nanmean(tau[name], axis=0), 3).tolist(),
            "kendall less value's": [
                plain(mean_estimate(np.asarray(tau[name])[:, t] - np.asarray(tau["value"])[:, t]))
                for t in range(7)
            ],
            "regret": np.round(np.mean(regret[name], axis=0), 2).tolist(),
        }
        for name in names
    ]


# Rungs moved by the fidelity measured in the study -----------------------------------------------


def measured_rungs(curves: Floats, *, replays: int, seed: int) -> list[dict[str, Any]]:
    """Replay rungs that stay, and rungs that the fidelity of a study's first trials moves later.

    Args:
        curves: Accuracies [S, K, T] of averaged weights.
        replays: Random orders, the same for every row.
        seed: Of the orders.

    Returns:
        One row a rule: ``cost``, ``regret`` in points, ``less`` (regret minus that of rungs that
        stay, in points), ``ratio`` (cost to the regret of rungs that stay, as a share of theirs)
        and the share of studies by ``first rung``.
    """
    studies, best = _drawn(curves, replays=replays, seed=seed)
    steps = curves.shape[-1]
    rules: dict[str, tuple[float, float]] = {"stays": (0.0, 0.0)}
    rules |= {f"{level:.0%} above {bar}": (level, bar) for level, bar in BARS}
    done: dict[str, list[Simulation]] = {}
    rows = []
    for name, (level, bar) in rules.items():
        measure = level > 0
        pruner = AdvantagePruner(
            min_resource=steps // 4, max_resource=steps, reduction_factor=2, fidelity=measure
        )
        with mock.patch.multiple(_evidence, _TRUSTED=bar, _CONFIDENCE=level or 0.5):
            done[name] = [simulate(x, pruner, initial=INITIAL) for x in studies]
            first = [
                _fidelity(x, steps).first_rung(steps // 4) if measure else steps // 4
                for x in studies
            ]
        rows.append(_moved(name, against(done["stays"], done[name], best), first))
    return rows


def earlier_rungs(curves: Floats, *, replays: int, seed: int) -> list[dict[str, Any]]:
    """Replay rungs that move from a quarter to an eighth, if an eighth is shown to rank trials.

    Returns:
        One row a rule, see `measured_rungs`; ``always`` begins at an eighth in every study.
    """
    studies, best = _drawn(curves, replays=replays, seed=seed)
    steps = curves.shape[-1]
    done = {}
    for first in (steps // 4, steps // 8):
        pruner = AdvantagePruner(
            min_resource=first, max_resource=steps, reduction_factor=2, fidelity=False
        )
        done[first] = [simulate(x, pruner, initial=INITIAL) for x in studies]
    rules: dict[str, tuple[float, float]] = {"stays": (0.8, 1.0)}
    rules |= {f"{level:.0%} above {bar}": (level, bar) for level, bar in EARLIER}
    rules["always"] = (0.8, -2.0)
    rows = []
    for name, (level, bar) in rules.items():
        with mock.patch.object(_evidence, "_CONFIDENCE", level):
            known = [_fidelity(x, steps).at(steps // 8) for x in studies]
        moved = [bool(tau.low > bar) for tau in known]
        first = [steps // 8 if yes else steps // 4 for yes in moved]
        studied = [done[step][number] for number, step in enumerate(first)]
        rows.append(_moved(name, against(done[steps // 4], studied, best), first))
    return rows


def _drawn(curves: Floats, *, replays: int, seed: int) -> tuple[Floats, Floats]:
    """Studies of random orders [R, LONGEST, T], and the best final accuracy of each [R]."""
    studies = curves[orders(curves.shape[:2], replays, seed)]
    return studies, studies[:, :TRIALS, -1].max(axis=1)


def _moved(rule: str, found: Saving, first: Sequence[int]) -> dict[str, Any]:
    """A row of `measured_rungs`."""
    return {
        "rule": rule,
        "cost": plain(found.cost, scale=1 / TRIALS),
        "regret": plain(found.regret, scale=100),
        "less": plain(found.regret_difference, scale=100),
        "ratio": ratio(found.saved),
        "first rung": {
            step: round(first.count(step) / len(first), 3) for step in sorted(set(first))
        },
    }


def _fidelity(curves: Floats, steps: int) -> RungFidelity:
    """What the pruner knows after a study's first trials have finished."""
    trials = [
        optuna.create_trial(
            value=curve[-1],
            user_attrs={PAIRED_KEY: True},
            intermediate_values=dict(enumerate(map(float, curve), start=1)),
        )
        for curve in curves[:INITIAL]
    ]
    found = RungFidelity.measure(trials, full=steps)
    assert found is not None
    return found


# Decisions of Optuna's pruners for many orders of trials at the same time ------------------------


def halving(curves: Floats, *, first: int, factor: int) -> NDArray[np.int64]:
    """Evaluations that each trial of each study gets from ``SuccessiveHalvingPruner``.

    Args:
        curves: Accuracies [R, n, T] of R studies' trials, in the order they run.
        first: Evaluation of the first rung, counted from 1.
        factor: Reduction factor.

    Returns:
        Evaluations until the trial is pruned, or T, [R, n].
    """
    studies, trials, steps = curves.shape
    used = np.full((studies, trials), steps)
    alive = np.ones((studies, trials), dtype=bool)
    step = first
    while step < steps:
        values = np.where(alive, curves[..., step - 1], -np.inf)
        reached = np.cumsum(alive, axis=1)
        for trial in range(trials):
            better = (values[:, :trial] > values[:, [trial]]).sum(axis=1)
            lost = alive[:, trial] & (better >= np.maximum(reached[:, trial] // factor, 1))
            used[lost, trial] = step
        alive &= used > step
        step *= factor
    return used


def median(curves: Floats, *, warmup: int) -> NDArray[np.int64]:
    """Evaluations that each trial gets from ``MedianPruner``, see `halving`.

    Args:
        curves: Accuracies [R, n, T].
        warmup: First evaluation after which a trial may be pruned.
    """
    studies, trials, steps = curves.shape
    # Trials that must have finished, by its default.
    startup = 5
    used = np.full((studies, trials), steps)
    best = np.maximum.accumulate(curves, axis=2)
    for trial in range(startup, trials):
        done = used[:, :trial] == steps
        for study in np.flatnonzero(done.sum(axis=1) >= startup):
            middle = np.median(curves[study, :trial][done[study]], axis=0)
            lost = np.flatnonzero(best[study, trial, warmup - 1 : -1] < middle[warmup - 1 : -1])
            if len(lost):
                used[study, trial] = warmup + lost[0]
    return used


def hyperband(curves: Floats) -> NDArray[np.int64]:
    """Evaluations that each trial gets from ``HyperbandPruner``, simulated by itself."""
    steps = curves.shape[-1]
    studies = (
        simulate(x, create_pruner("hyperband", {}, evaluations=steps), name=f"replay {index}")
        for index, x in enumerate(curves)
    )
    return np.stack([np.rint(study.cost * steps) for study in studies]).astype(np.int64)


def orders(shape: tuple[int, int], replays: int, seed: int) -> tuple[NDArray[np.int64], ...]:
    """Seed and configuration of each trial of each replay, two arrays [R, LONGEST]."""
    rng = np.random.default_rng(seed)
    seeds, points = shape
    drawn = np.stack([rng.permutation(seeds * points)[:LONGEST] for _ in range(replays)])
    return drawn // points, drawn % points


def replay(
    arms: Mapping[tuple[str, str], Floats],
    tests: Mapping[str, Floats],
    *,
    replays: int,
    seed: int,
) -> list[Any]:
    """Studies of random orders of the recorded trainings, pruned.

    Args:
        arms: Curves [S, K, T] by sampler and kind.
        tests: Final test accuracy of the trained weights [S, K] by sampler.
        replays: Random orders, the same for all arms.
        seed: Of the orders.

    Returns:
        One row a sampler, kind and pruner: ``cost`` as a share of unpruned trials, ``regret`` in
        points below the best final accuracy of the unpruned uniform study, ``false``: share of
        pruned trials that would have ended in the top 3, ``ratio``: cost of coming to the
        incumbent of `BASELINE`, as a share of its cost, ``ratio to before``: the same of `BEFORE`
        under the arm's own sampler, ``test``: test accuracy of the incumbent less that of
        `BASELINE`'s, in points, both as the study trained them.
    """
    some = next(iter(arms.values()))
    where = orders(some.shape[:2], replays, seed)
    studies: dict[tuple[str, str, str], tuple[Floats, NDArray[np.int64]]] = {}
    for (sampler, kind), recorded in arms.items():
        curves = recorded[where]
        decided = {f"halving {f}/{r}": halving(curves, first=f, factor=r) for f, r in RUNGS}
        decided["median"] = median(curves, warmup=curves.shape[-1] // 4)
        decided["median, from the first"] = median(curves, warmup=1)
        if kind in ("raw", "averaged"):
            decided["hyperband"] = hyperband(curves)
        for pruner, used in decided.items():
            studies[sampler, kind, pruner] = curves, used
    best = arms["uniform", "raw"][where][:, :TRIALS, -1].max(axis=1)
    done = {key: simulations(*study) for key, study in studies.items()}
    tested = {key: incumbents(*study, tests[key[0]][where]) for key, study in studies.items()}
    rows = []
    for key, study in studies.items():
        found = against(done[BASELINE], done[key], best)
        before = against(done[(key[0], *BEFORE)], done[key], best)
        rows.append(
            dict(zip(("sampler", "kind", "pruner"), key, strict=True))
            | {
                "cost": plain(found.cost, scale=1 / TRIALS),
                "regret": plain(found.regret, scale=100),
                "false": plain(false_share(*study)),
                "ratio": ratio(found.saved),
                "ratio to before": ratio(before.saved),
                "test": plain(
                    mean_estimate(tested[key] - tested[BASELINE], resamples=500), scale=100
                ),
            }
        )
    return rows


def against(baseline: list[Simulation], arm: list[Simulation], best: Floats) -> Saving:
    """An arm that may continue until it reaches the incumbent of the baseline's study."""
    return saving(arm, baseline, best, best, trials=TRIALS, resamples=300)


def ratio(saved: Estimate) -> list[float | None]:
    """Cost as a share of the baseline's, ``[value, low, high]``; None if it is not reached."""
    value, low, high = (None if x is None else round(1 - x, 3) for x in plain(saved))
    return [value, high, low]


def simulations(curves: Floats, used: NDArray[np.int64]) -> list[Simulation]:
    """Replayed studies in the form that `saving` takes."""
    steps = curves.shape[-1]
    final = np.where(used == steps, curves[..., -1], np.nan)
    return [Simulation(u / steps, f) for u, f in zip(used, final, strict=True)]


def incumbents(curves: Floats, used: NDArray[np.int64], test: Floats) -> Floats:
    """Test accuracy of each study's incumbent [R]."""
    done = used[:, :TRIALS] == curves.shape[-1]
    best = np.where(done, curves[:, :TRIALS, -1], -np.inf).argmax(axis=1)
    return test[np.arange(len(test)), best]


def false_share(curves: Floats, used: NDArray[np.int64]) -> Estimate:
    """Mean share of a study's pruned trials that would have ended in its top 3."""
    final = curves[:, :TRIALS, -1]
    pruned = used[:, :TRIALS] < curves.shape[-1]
    top = final >= np.sort(final, axis=1)[:, [-TOP]]
    with np.errstate(invalid="ignore"):
        return mean_estimate((top & pruned).sum(axis=1) / pruned.sum(axis=1), resamples=500)


def schedules(arms: Sequence[tuple[dict[str, Any], Curves]]) -> list[dict[str, Any]]:
    """Final accuracy in points of each schedule and window, and the difference from linear.

    Both are means over the seeds that all arms have.
    """
    seeds = min(len(curves["averaged"]) for _, curves in arms)
    ends = {
        (arm["sampler"], arm["schedule"], arm["average"]): x["averaged"][:seeds, :, -1].mean(axis=0)
        for arm, x in arms
    }
    return [
        {
            "sampler": sampler,
            "schedule": schedule,
            "average": window,
            "median": round(100 * float(np.median(end)), 2),
            "best": round(100 * float(end.max()), 2),
            "minus linear": plain(
                mean_estimate(end - ends[sampler, "linear", WINDOW]), scale=100, digits=2
            ),
        }
        for (sampler, schedule, window), end in ends.items()
        if schedule == "constant" or window == WINDOW
    ]


def tables(document: Mapping[str, Any], *, replays: int) -> dict[str, Any]:
    """All tables of one record."""
    arms = list(read_arms(document))
    tests = {
        arm["sampler"]: np.reshape(
            [row["test"]["raw"] for row in sorted(arm["curves"], key=_place)],
            (-1, len(document["configurations"])),
        )
        for arm in document["arms"]
        if arm["schedule"] == "linear" and arm["average"] == WINDOW
    }
    found: dict[str, Any] = {
        "seeds": len(arms[0][1]["raw"]),
        "configurations": len(document["configurations"]),
        "epochs": document["epochs"],
        "ranking": [],
        "schedules": schedules(arms),
    }
    searched: dict[tuple[str, str], Floats] = {}
    for arm, curves in arms:
        default = arm["schedule"] == "linear" and arm["average"] == WINDOW
        kinds = dict(curves)
        if default:
            kinds |= {f"{kind}, last two": last_two(x) for kind, x in curves.items()}
            searched |= {(arm["sampler"], kind): x for kind, x in kinds.items()}
        found["ranking"] += [{**arm, "kind": kind, **ranking(x)} for kind, x in kinds.items()]
        found["ranking"].append({**arm, "kind": "averaged less raw", "kendall": gains(**curves)})
    for (sampler, kind), x in searched.items():
        if kind == "averaged":
            found.setdefault("measured rungs", {})[sampler] = measured_rungs(
                x, replays=replays // 2, seed=0
            )
            found.setdefault("earlier rungs", {})[sampler] = earlier_rungs(
                x, replays=replays // 2, seed=0
            )
            found.setdefault("signals", {})[sampler] = signals(
                x, initial=INITIAL, replays=replays // 4, seed=0
            )
    found["replay"] = replay(searched, tests, replays=replays, seed=0)
    if ("mab", "averaged") in searched:
        found["evidence moves a rung"] = {
            kind: measure_evidence(
                PairedCurves(
                    budgets=np.arange(1.0, x.shape[-1] + 1),
                    arm=x.mean(axis=0),
                    reference=searched["uniform", kind].mean(axis=0),
                )
            ).moves
            for (sampler, kind), x in searched.items()
            if sampler == "mab" and kind in ("raw", "averaged")
        }
    return found


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("records", nargs="+", type=Path)
    parser.add_argument("--replays", type=int, default=200)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    warnings.filterwarnings("ignore", "AdvantagePruner decides", HpoMabWarning)
    document: dict[str, Any] = {
        "trials": TRIALS,
        "replays": options.replays,
        "environment": environment(),
        "sets": {
            path.stem: tables(json.loads(path.read_text()), replays=options.replays)
            for path in options.records
        },
    }
    options.out.write_text(compact(document))


def compact(document: Mapping[str, Any]) -> str:
    """JSON with one row a line."""
    text = json.dumps(document, separators=(",", ":"))
    for first in ("sampler", "rule", "signal", "configuration"):
        text = text.replace(f'{{"{first}"', f'\n{{"{first}"')
    return text + "\n"


if __name__ == "__main__":
    main()
