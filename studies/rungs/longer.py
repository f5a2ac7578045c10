"""Studies at one total budget whose trials end with their own budget, or continue beyond it.

    python studies/rungs/longer.py digits --workers 2 --out studies/rungs/longer-digits.json
    python studies/rungs/longer.py fashion_mnist --root data --seeds 3 --workers 2 \
        --out studies/rungs/longer-fashion_mnist.json

If it is interrupted, the same command continues: studies in the record are not run again.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import multiprocessing
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch

from hpo_mab.advantage import mean_estimate
from hpo_mab.search import StudyRunner, load_spec
from hpo_mab.storage import Storage

#: The arm that others are compared with.
REFERENCE = "decay"
#: Budget of a full trial in epochs; a study has twenty times as much.
EPOCHS: Mapping[str, int] = {"digits": 8, "fashion_mnist": 1}
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


def study(name: str, arm: str, seed: int, root: str) -> dict[str, Any]:
    """One study: its best trial, that network's test accuracy, and the incumbents by cost."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    torch.set_num_threads(1)
    epochs = EPOCHS[name]
    changes = {
        "seed": seed,
        "data.root": root,
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
        "| arm | configurations | epochs of the best | best validation accuracy, % "
        f"| test accuracy, % | validation, minus {REFERENCE} | test, minus {REFERENCE} |",
        "|---|---|---|---|---|---|---|",
    ]
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for one in document["studies"]:
        found.setdefault(one["arm"], {})[one["seed"]] = one
    for arm, by_seed in found.items():
        studies = list(by_seed.values())
        cells = [arm, f"{np.mean([one['configurations'] for one in studies]):.0f}"]
        cells.append(f"{np.median([one['best_epochs'] for one in studies]):g}")
        cells += [f"{100 * np.mean([one[key] for one in studies]):.2f}" for key in ("best", "test")]
        for key in ("best", "test"):
            gains = [100 * (one[key] - found[REFERENCE][one["seed"]][key]) for one in studies]
            mean = mean_estimate(np.asarray(gains))
            shown = f"{mean.value:+.2f} [{mean.low:.2f}, {mean.high:.2f}]"
            cells.append("" if arm == REFERENCE else shown)
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def main() -> None:
    """Read the command line, and run the studies that are not in the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=EPOCHS)
    parser.add_argument("--root", default="data")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--workers", type=int, default=1, help="studies at the same time")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    document: dict[str, Any] = {"data": options.name, "torch": torch.__version__, "studies": []}
    if options.out.exists():
        document = json.loads(options.out.read_text())
    known = {(each["arm"], each["seed"]) for each in document["studies"]}
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(options.workers, mp_context=context) as pool:
        waiting = [
            pool.submit(study, options.name, arm, seed, options.root)
            for seed in range(options.seeds)
            for arm in ARMS
            if (arm, seed) not in known
        ]
        for each in concurrent.futures.as_completed(waiting):
            document["studies"].append(each.result())
            document["studies"].sort(key=lambda one: (one["seed"], list(ARMS).index(one["arm"])))
            options.out.write_text(json.dumps(document, indent=1) + "\n")
    print(table(document))


if __name__ == "__main__":
    main()
