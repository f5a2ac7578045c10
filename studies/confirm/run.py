"""Run studies, and train their best configurations again with other seeds.

    python studies/confirm/run.py digits --trials 150 --top 20 --again 8 --out digits.json
    python studies/confirm/run.py fashion_mnist --root data --trials 60 --top 12 --again 6 \
        --out fashion_mnist.json

Seeds that are in the record are not run again.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import optuna
import torch

from hpo_mab._plan import derive_seed
from hpo_mab.search import StudyRunner, TrainingObjective, load_spec
from hpo_mab.search._stored import train_stored_trial
from hpo_mab.storage import Storage, TrialRun

sys.path.append(str(Path(__file__).parents[1]))
from shared import resumed, write


def again(objective: TrainingObjective, trial: TrialRun, number: int) -> tuple[float, float]:
    """Validation and test accuracy of a trial's configuration, trained with another seed."""
    seed = derive_seed(objective.seed, "again", trial.number, number)
    with train_stored_trial(objective, trial, seed=seed, evaluations=1) as training:
        (end,) = training
        return end.accuracy, objective.workload.test_accuracy(training)


def study(
    name: str, *, seed: int, root: str, trials: int, top: int, trainings: int
) -> dict[str, Any]:
    """One study: values of its finished trials, and its best configurations trained again."""
    changes = {"seed": seed, "data.root": root, "sampler.kind": "uniform", "budget.trials": trials}
    spec = load_spec(name, changes)
    with tempfile.TemporaryDirectory() as folder:
        storage = Storage(f"sqlite:///{Path(folder, 'study.db')}")
        runner = StudyRunner(spec, storage)
        run = runner.run("study", score=False).run
        storage.close()
    done = sorted(
        (trial for trial in run.trials if trial.value is not None), key=lambda one: -one.value
    )
    return {
        "seed": seed,
        "finished": len(done),
        "trials": len(run.trials),
        "values": [trial.value for trial in done],
        "top": [
            {
                "number": trial.number,
                "value": trial.value,
                "params": dict(trial.params),
                "again": [again(runner.objective, trial, number) for number in range(trainings)],
            }
            for trial in done[:top]
        ],
    }


def main() -> None:
    """Read the command line, and run the seeds that are not in the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=("digits", "fashion_mnist", "cifar10"))
    parser.add_argument("--root", default="data")
    parser.add_argument("--seed", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--trials", type=int, required=True)
    parser.add_argument("--top", type=int, required=True, help="configurations trained again")
    parser.add_argument("--again", type=int, required=True, help="trainings of each of them")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    torch.set_num_threads(1)
    document = resumed(options.out, data=options.name)
    document.setdefault("torch", torch.__version__)
    document.setdefault("studies", [])
    for seed in options.seed:
        if seed not in [each["seed"] for each in document["studies"]]:
            found = study(
                options.name,
                seed=seed,
                root=options.root,
                trials=options.trials,
                top=options.top,
                trainings=options.again,
            )
            document["studies"].append(found)
            write(options.out, json.dumps(document, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
