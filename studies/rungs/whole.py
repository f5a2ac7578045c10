r"""Whole studies by sampler, pruner and evaluated weights, with winners trained again.

    python studies/rungs/whole.py digits --out studies/rungs/whole-digits.json
    python studies/rungs/whole.py fashion_mnist --root data --workers 8 --slots 4 \
        --out studies/rungs/whole-fashion_mnist.json

If it is interrupted, the same command continues. Every study is paired by seed with uniform
sampling under Hyperband on trained weights. The incumbent of that study is the target of all costs.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import json
import multiprocessing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import optuna
import torch

from hpo_mab.compare import ComparisonRuns, run_comparison, summarise
from hpo_mab.search import StudySpec, load_spec
from hpo_mab.storage import Storage, StudyRun
from hpo_mab.training import select_device

#: Epochs of a trial, and trainings of each winner, by data set.
DATA: Mapping[str, tuple[int, int]] = {"digits": (8, 2), "fashion_mnist": (1, 1), "cifar10": (1, 1)}
#: Weights that an evaluation within a trial evaluates, and the schedule of the learning rate.
WEIGHTS: Mapping[str, Mapping[str, Any]] = {
    "trained": {"training.average": 0.0},
    "averaged": {"training.average": 0.2},
    "constant": {"training.average": 0.2, "training.schedule": "constant"},
}
REFERENCE = "uniform_hyperband_trained"


def definition(
    name: str, weights: str, *, seed: int, root: str, device: str, slots: int
) -> StudySpec:
    """The four studies of one seed that share the weights they evaluate."""
    epochs, retrain = DATA[name]
    changes = {
        "name": f"whole-{name}-{weights}",
        "seed": seed,
        "data.root": root,
        "budget.epochs": epochs,
        "budget.trials": 24,
        "training.precision": "bfloat16" if device.startswith("cuda") else "float32",
        "training.device": device,
        "training.slots": slots,
        **WEIGHTS[weights],
        "sampler": {"kind": "mab"},
        "search": {"sampler": "tpe", "initial": 6},
        "pruner": {"kind": "median"},
        "compare": {
            "seeds": 1,
            "retrain": retrain,
            "reference": "uniform_hyperband",
            "arms": {
                f"{sampler}_{pruner}": {"sampler": {"kind": sampler}, "pruner": {"kind": pruner}}
                for sampler in ("uniform", "mab")
                for pruner in ("hyperband", "advantage")
            },
        },
    }
    return load_spec(name, changes)


def run_seed(
    name: str, seed: int, *, storage: str, root: str, device: str, slots: int
) -> dict[str, ComparisonRuns]:
    """All studies of one seed, by the weights they evaluate."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    torch.set_num_threads(1)
    kept = Storage(storage)
    found = {}
    for weights in WEIGHTS:
        spec = definition(name, weights, seed=seed, root=root, device=device, slots=slots)
        found[weights] = run_comparison(spec, kept)
        if found[weights].interrupted:
            raise KeyboardInterrupt
        print(f"{name}, seed {seed}: {weights} weights done", flush=True)
    kept.close()
    return found


def named(found: Mapping[str, ComparisonRuns]) -> list[StudyRun]:
    """Studies, with the weights as a part of the arm's name."""
    return [
        dataclasses.replace(run, arm=f"{run.arm}_{weights}")
        for weights, part in found.items()
        for run in part.runs
    ]


def record(found: Iterable[Mapping[str, ComparisonRuns]]) -> dict[str, Any]:
    """Every trial's end and cost, the re-trained scores, and a summary of each arm."""
    runs: list[StudyRun] = []
    environment: dict[str, Any] = {}
    for seed in found:
        runs += named(seed)
        environment = next(iter(seed.values())).environment
    summary = summarise(runs, reference=REFERENCE)
    return {
        "environment": environment,
        "reference": REFERENCE,
        "trial_examples": summary.trial_examples,
        "arms": [dataclasses.asdict(arm) for arm in summary.arms],
        "contrasts": [
            {
                "arm": contrast.arm,
                "gain": dataclasses.asdict(contrast.gain["examples"]),
                "cost": [dataclasses.asdict(cost) for cost in contrast.cost],
                "retrained_gain": contrast.retrained_gain
                and dataclasses.asdict(contrast.retrained_gain),
            }
            for contrast in summary.contrasts
        ],
        "studies": [
            {
                "arm": run.arm,
                "seed": run.seed,
                "retrained": run.retrained,
                "trials": [[t.number, t.state, t.value, t.own_examples] for t in run.trials],
            }
            for run in runs
        ],
    }


def main() -> None:
    """Read the command line, run missing studies, write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", choices=DATA)
    parser.add_argument("--root", default="data")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--storage", default="sqlite:///whole-{seed}.db", help="one for each seed")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--slots", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1, help="seeds that run at the same time")
    options = parser.parse_args()
    device = str(select_device(options.device))
    # Spawned: a forked process cannot use the CUDA context of its parent.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(options.workers, mp_context=context) as pool:
        waiting = [
            pool.submit(
                run_seed,
                options.data,
                seed,
                storage=options.storage.format(seed=seed),
                root=options.root,
                device=device,
                slots=options.slots,
            )
            for seed in range(options.seeds)
        ]
        found = [each.result() for each in waiting]
    options.out.write_text(json.dumps(record(found), separators=(",", ":"), default=str))


if __name__ == "__main__":
    main()
