"""Studies at one total budget whose trials end with their own budget, or continue beyond it.

    python studies/rungs/longer.py digits --workers 2 --out studies/rungs/longer-digits.json
    python studies/rungs/longer.py cifar10 --epochs 8 --root data --device cuda --slots 8 \
        --workers 4 --out studies/rungs/longer-cifar10_8epochs.json

If it is interrupted, the same command continues: studies in the record are not run again.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import multiprocessing
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch

from hpo_mab.advantage import mean_estimate
from hpo_mab.search import StudyRunner, load_spec
from hpo_mab.storage import Storage
from hpo_mab.training import select_device

sys.path.append(str(Path(__file__).parents[1]))
from shared import resumed, write

#: The arm that others are compared with.
REFERENCE = "decay"
#: Budget of a full trial in epochs; a study has twenty times as much.
EPOCHS: Mapping[str, int] = {"digits": 8, "fashion_mnist": 1, "cifar10": 2}
CONSTANT = {"training.schedule": "constant"}
#: What differs from pausing trials at a decaying rate.
ARMS: Mapping[str, Mapping[str, Any]] = {
    "decay, unpruned": {"pruner.kind": "none"},
    "decay": {},
    "constant, unpruned": {**CONSTANT, "pruner.kind": "none"},
    "constant": {**CONSTANT, "pruner.unlimited": False},
    "constant, longer": CONSTANT,
    "constant, longer from a quarter": CONSTANT,
}
#: Arms whose trials begin with a part of a full trial's budget.
SHARES: Mapping[str, float] = {"constant, longer from a quarter": 1 / 4}


def study(
    name: str, arm: str, seed: int, *, epochs: int, root: str, device: str, slots: int
) -> dict[str, Any]:
    """One study: its best trial, that network's test accuracy, and the incumbents by cost."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    torch.set_num_threads(1)
    changes = {
        "seed": seed,
        "data.root": root,
        "training.device": device,
        "training.slots": slots,
        "training.precision": "bfloat16" if device.startswith("cuda") else "float32",
        "sampler.kind": "uniform",
        "search.initial": 0,
        "pruner.kind": "promotion",
        "budget.trials": 400,
        "budget.epochs": epochs * SHARES.get(arm, 1),
        "budget.total": f"{20 * epochs}epochs",
        # The same number in all arms; "auto" depends on the length of a trial.
        "budget.early_validation": "all",
        **ARMS[arm],
    }
    spec = load_spec(name, changes)
    with tempfile.TemporaryDirectory() as folder:
        storage = Storage(f"sqlite:///{Path(folder, 'study.db')}")
        outcome = StudyRunner(spec, storage).run("study")
        storage.close()
    run = outcome.run
    if outcome.interrupted:
        raise KeyboardInterrupt
    if run.best is None or run.training_examples is None:
        raise RuntimeError(f"{arm}, seed {seed}: no trial is complete")
    spent, incumbents = 0, []
    for trial in run.trials:
        spent += trial.own_examples
        if trial.value is not None and trial.value > max((v for _, v in incumbents), default=0):
            incumbents.append([round(spent / run.training_examples, 3), trial.value])
    return {
        "arm": arm,
        "seed": seed,
        "configurations": len({trial.slot for trial in run.trials}),
        "epochs": round(spent / run.training_examples, 3),
        "best": run.best.value,
        "best_epochs": round(run.best.examples / run.training_examples, 3),
        "longest": round(max(t.examples for t in run.trials) / run.training_examples, 3),
        "test": outcome.test_accuracy,
        "incumbents": incumbents,
    }


def table(document: Mapping[str, Any]) -> str:
    """One row an arm, in Markdown: means over seeds (of the epochs the median), and differences.

    Differences from `REFERENCE` are paired by seed.
    """
    rows = [
        "| arm | seeds | configurations | epochs of the best | best validation accuracy, % "
        f"| test accuracy, % | validation, minus {REFERENCE} | test, minus {REFERENCE} |",
        "|---|---|---|---|---|---|---|---|",
    ]
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for one in document["studies"]:
        found.setdefault(one["arm"], {})[one["seed"]] = one
    reference = found.get(REFERENCE, {})
    for arm, by_seed in found.items():
        studies = list(by_seed.values())
        cells = [arm, str(len(studies)), f"{_mean(studies, 'configurations'):.0f}"]
        cells.append(f"{np.median([one['best_epochs'] for one in studies]):.3g}")
        cells += [f"{100 * _mean(studies, key):.2f}" for key in ("best", "test")]
        for key in ("best", "test"):
            seeds = by_seed.keys() & reference.keys()
            gains = [100 * (by_seed[seed][key] - reference[seed][key]) for seed in sorted(seeds)]
            cells.append("" if arm == REFERENCE else _difference(gains))
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _difference(gains: Sequence[float]) -> str:
    if len(gains) < 2:
        return "".join(f"{gain:+.2f}" for gain in gains)
    mean = mean_estimate(np.asarray(gains))
    return f"{mean.value:+.2f} [{mean.low:.2f}, {mean.high:.2f}]"


def _mean(studies: Sequence[Mapping[str, Any]], key: str) -> float:
    return float(np.mean([one[key] for one in studies]))


def main() -> None:
    """Read the command line, and run the studies that are not in the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=EPOCHS)
    parser.add_argument("--root", default="data")
    parser.add_argument("--epochs", type=int, help="of a full trial; default 8, 1 and 2")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--slots", type=int, default=1, help="trials of a study at the same time")
    parser.add_argument("--workers", type=int, default=1, help="studies at the same time")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    epochs = EPOCHS[options.name] if options.epochs is None else options.epochs
    document = resumed(options.out, data=options.name, epochs=epochs, slots=options.slots)
    document.setdefault("torch", torch.__version__)
    document.setdefault("studies", [])
    known = {(each["arm"], each["seed"]) for each in document["studies"]}
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(options.workers, mp_context=context) as pool:
        waiting = [
            pool.submit(
                study,
                options.name,
                arm,
                seed,
                epochs=epochs,
                root=options.root,
                device=str(select_device(options.device)),
                slots=options.slots,
            )
            for seed in range(options.seeds)
            for arm in options.arms
            if (arm, seed) not in known
        ]
        for each in concurrent.futures.as_completed(waiting):
            document["studies"].append(each.result())
            document["studies"].sort(key=lambda one: (one["seed"], list(ARMS).index(one["arm"])))
            write(options.out, json.dumps(document, indent=1) + "\n")
    print(table(document))


if __name__ == "__main__":
    main()
