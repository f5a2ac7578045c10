"""Replay recorded curves with pruners; see README.md in this folder.

python studies/replay/run.py extract sqlite:///studies.db --out curves.json
python studies/replay/run.py simulate curves.json --out record.json
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.pruners import BasePruner
from simulation import CurveTable, Simulation, false_prunings, saving, simulate

from hpo_mab._machine import environment
from hpo_mab.advantage import Estimate, Evidence, Rung, measure_evidence, pair_curves
from hpo_mab.advantage._advantage import equivalent_budget
from hpo_mab.compare import read_record
from hpo_mab.search import StudyRunner, make_spec
from hpo_mab.search._pruners import create_pruner
from hpo_mab.storage import Storage, StudyRun, read_run, study_names

Floats = np.ndarray[Any, np.dtype[np.float64]]

HALVING = "successive halving"
BASELINES = (
    "bandit, median",
    "bandit, hyperband",
    f"bandit, {HALVING}",
    "uniform, hyperband",
    f"uniform, {HALVING}",
)
#: Arms that prune by evidence, and the loss of fidelity that each accepts.
MARGINS = {"advantage": 0.1, "advantage, margin 0.3": 0.3}


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    extract = commands.add_parser("extract", help="curves of an unpruned comparison")
    extract.add_argument("sources", nargs="+", help="storage URL, or records of hpo-mab compare")
    extract.add_argument("--arm", default="mab")
    extract.add_argument("--reference", default="uniform")
    extract.add_argument("--out", type=Path, required=True)
    extract.set_defaults(run=extract_curves)
    simulation = commands.add_parser("simulate", help="replay them")
    simulation.add_argument("curves", type=Path)
    simulation.add_argument("--replays", type=int, default=200)
    simulation.add_argument("--configurations", type=int, default=40)
    simulation.add_argument("--pairs", type=int, default=20)
    simulation.add_argument("--every", type=int, default=1)
    simulation.add_argument("--seed", type=int, default=0)
    simulation.add_argument("--out", type=Path)
    simulation.set_defaults(run=simulate_all)
    finish = commands.add_parser("finish", help="finish a sample of a study's pruned trials")
    finish.add_argument("--storage", required=True)
    finish.add_argument("--study", required=True)
    finish.add_argument("--sample", type=int, default=10)
    finish.add_argument("--top", type=int, default=3)
    finish.add_argument("--data-root")
    finish.add_argument("--out", type=Path)
    finish.set_defaults(run=finish_pruned)
    options = parser.parse_args()
    options.run(options)


def extract_curves(options: argparse.Namespace) -> None:
    """Write the curves of two arms of studies to a table."""
    runs = [run for source in options.sources for run in _runs(source)]
    arms = [[run for run in runs if run.arm == arm] for arm in (options.arm, options.reference)]
    pairs = pair_curves(arms[0], arms[1])
    source = f"{arms[0][0].spec['name']}, {len(arms[0])} seeds, {options.arm}/{options.reference}"
    table = CurveTable.from_pairs(pairs, source=source)
    table.save(options.out)
    print(f"{len(table)} of {len(pairs)} pairs at {len(table.budgets)} budgets: {options.out}")


def _runs(source: str) -> list[StudyRun]:
    if source.endswith(".json"):
        return list(read_record(Path(source)).runs)
    storage = Storage(source, create=False)
    return [read_run(storage, name) for name in study_names(storage)]


def finish_pruned(options: argparse.Namespace) -> None:
    """Measure the share of pruned trials that would have ended in the top."""
    storage = Storage(options.storage, create=False)
    run = read_run(storage, options.study)
    raw = dict(run.spec)
    if options.data_root:
        raw["data"] = {**raw["data"], "root": options.data_root}
    found = false_prunings(
        StudyRunner(make_spec(raw), storage), run, sample=options.sample, top=options.top
    )
    share = found.share
    print(
        f"{share.value:.0%} of pruned trials would have ended in the top {found.top} "
        f"(95% interval {share.low:.0%} to {share.high:.0%}, "
        f"{share.n} of {found.pruned} pruned trials finished)"
    )
    if options.out:
        record = {"study": options.study, **found.to_json(), "environment": environment()}
        options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def simulate_all(options: argparse.Namespace) -> None:
    """Replay the recorded curves, a null case and a positive control."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    table = CurveTable.load(options.curves).every(options.every)
    record: dict[str, Any] = {
        "source": table.source,
        "pairs_recorded": len(table),
        "replays": options.replays,
        "configurations": options.configurations,
        "pairs": options.pairs,
        "seed": options.seed,
        "environment": environment(),
    }
    for name, change in CASES.items():
        record[name] = _simulate(table, change, options)
        _show(name, record[name])
    if options.out:
        options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _recorded(table: CurveTable, rng: np.random.Generator) -> tuple[Floats, Floats]:
    return table.bandit, table.uniform


def _null(table: CurveTable, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Exchange samplers at random within each pair: no advantage, the same noise."""
    swap = rng.random((len(table), 1)) < 0.5
    return np.where(swap, table.uniform, table.bandit), np.where(swap, table.bandit, table.uniform)


def _faster(table: CurveTable, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Uniform curves at about twice the speed, with noise of a hundredth of a point."""
    share = table.budgets / table.budgets[-1]
    at = np.minimum(2.1 * share, 1.0)
    curves = np.stack([np.interp(at, share, row) for row in table.uniform])
    return curves + rng.normal(0, 1e-4, curves.shape), table.uniform


CASES: dict[str, Callable[[CurveTable, np.random.Generator], tuple[Floats, Floats]]] = {
    "recorded": _recorded,
    "null": _null,
    "faster": _faster,
}


def _pruners(steps: int) -> dict[str, BasePruner]:
    """Pruners as study definitions make them for evaluations of trained weights."""
    kinds = {"median": "median", "hyperband": "hyperband", HALVING: "successive_halving"}
    return {name: create_pruner(kind, {}, evaluations=steps) for name, kind in kinds.items()}


def _evidence(table: CurveTable, rows: Any) -> dict[str, Evidence]:
    pairs = table.pairs(rows)
    evidence = {
        name: measure_evidence(pairs, margin=margin, resamples=200)
        for name, margin in MARGINS.items()
    }
    unchecked = _without_fidelity(next(iter(evidence.values())))
    return {**evidence, "advantage, no fidelity": unchecked}


def _without_fidelity(evidence: Evidence) -> Evidence:
    """Rungs at the earliest equivalent budget, without a condition on the ranking there."""
    budgets = evidence.budgets
    reach = equivalent_budget(budgets, evidence.acceleration)
    rungs = []
    for budget in budgets:
        early = next(i for i, e in enumerate(reach) if e >= budget * (1 - 1e-9))
        at = min(budgets[early], budget)
        rungs.append(Rung(budget=budget, decided_at=at, equivalent=float(reach[early])))
    return dataclasses.replace(evidence, rungs=tuple(rungs))


@dataclasses.dataclass
class _Case:
    """Replays of one case, by arm."""

    replays: dict[str, list[Simulation]] = dataclasses.field(default_factory=dict)
    best: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    moved: dict[str, list[bool]] = dataclasses.field(default_factory=dict)

    def add(self, arm: str, curves: Floats, done: Simulation) -> Simulation:
        self.replays.setdefault(arm, []).append(done)
        self.best.setdefault(arm, []).append(float(curves[:, -1].max()))
        return done

    def one(self, table: CurveTable, order: Any, pairs: int) -> None:
        """One replay of every arm on the same configurations in the same order."""
        steps, searched = len(table.budgets), order[pairs:]
        halving: dict[str, Simulation] = {}
        for arm in ("bandit", "uniform"):
            curves = getattr(table, arm)[searched]
            for name, pruner in _pruners(steps).items():
                done = self.add(f"{arm}, {name}", curves, simulate(curves, pruner))
                halving[arm] = done
        for name, evidence in _evidence(table, order[:pairs]).items():
            self.moved.setdefault(name, []).append(evidence.moves)
            done = halving["bandit"]
            curves = table.bandit[searched]
            if evidence.moves:  # Otherwise its decisions are those of successive halving.
                pruner = create_pruner("advantage", {"evidence": evidence}, evaluations=steps)
                done = simulate(curves, pruner)
            self.add(f"bandit, {name}", curves, done)

    def rows(self, trials: int) -> dict[str, Any]:
        """Every arm against every baseline."""
        rows: dict[str, Any] = {}
        for arm, replays in self.replays.items():
            row = rows.setdefault(arm, {})
            for other in BASELINES:
                found = saving(
                    replays,
                    self.replays[other],
                    np.array(self.best[arm]),
                    np.array(self.best[other]),
                    trials=trials,
                )
                row["cost"], row["regret"] = _json(found.cost), _json(found.regret)
                row[f"saved against {other}"] = _json(found.saved)
                row[f"regret minus that of {other}"] = _json(found.regret_difference)
        return rows


def _simulate(table: CurveTable, change: Any, options: argparse.Namespace) -> dict[str, Any]:
    case = _Case()
    for index in range(options.replays):
        rng = np.random.default_rng([options.seed, index])
        bandit, uniform = change(table, rng)
        changed = dataclasses.replace(table, bandit=bandit, uniform=uniform)
        case.one(changed, rng.permutation(len(table)), options.pairs)
    moved = {name: float(np.mean(one)) for name, one in case.moved.items()}
    return {"rows": case.rows(options.configurations), "moved": moved}


def _json(estimate: Estimate) -> list[float | None]:
    fields = estimate.to_json()
    return [None if fields[k] is None else round(fields[k], 5) for k in ("value", "low", "high")]


def _show(name: str, case: dict[str, Any]) -> None:
    print(f"\n{name}; share of replays whose evidence moved a rung: {case['moved']}")
    for arm, row in case["rows"].items():
        print(f"  {arm}: cost {_text(row['cost'])}, regret {_text(row['regret'])}")
        for other in BASELINES:
            saved, more = row[f"saved against {other}"], row[f"regret minus that of {other}"]
            print(f"    against {other}: saved {_text(saved)}, regret {_text(more)}")


def _text(values: list[float | None]) -> str:
    value, low, high = ("-" if one is None else f"{one:.4f}" for one in values)
    return f"{value} [{low}, {high}]"


if __name__ == "__main__":
    main()
