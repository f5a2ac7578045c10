"""A study whose best configurations are trained again with other seeds, validation and test.

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

from hpo_mab import models, samplers
from hpo_mab.data import ImageSplits, Normalization
from hpo_mab.search import StudyRunner, StudySpec, load_spec, load_splits, make_objective
from hpo_mab.storage import Storage, TrialRun
from hpo_mab.training import Budget, DeviceBatches, DeviceSweep, Training, create_optimizer

sys.path.append(str(Path(__file__).parents[1]))
from shared import write


class Again:
    """Trains configurations of a study under uniform sampling for a trial's budget.

    Args:
        spec: The study's definition.
        splits: Its data.
    """

    def __init__(self, spec: StudySpec, splits: ImageSplits) -> None:
        self.spec = spec
        self.splits = splits
        scale = Normalization(splits.mean, splits.std, channels_last=True)
        self.batches = DeviceBatches(splits.train, normalization=scale)
        self.validation = DeviceSweep(splits.validation, normalization=scale)
        self.test = DeviceSweep(splits.test, normalization=scale)
        self.steps = Budget(epochs=spec.budget.epochs).num_steps(
            num_examples=len(splits.train), batch_size=spec.training.batch_size
        )

    def train(self, trial: TrialRun, number: int) -> tuple[float, float]:
        """Validation and test accuracy of a trial's training with another seed."""
        knobs = {name.rpartition(".")[2]: value for name, value in trial.params.items()}
        smoothing = knobs.pop("label_smoothing", 0.0)
        train, batch_size = self.splits.train, self.spec.training.batch_size
        torch.manual_seed(10_000 * (trial.number + 1) + number)
        network = models.create(
            self.spec.model.name,
            in_channels=train.channels,
            num_classes=train.num_classes,
            image_size=train.image_size,
        )
        training = Training(
            network,
            batches=self.batches,
            validation=self.validation,
            sampler=samplers.create(
                "uniform", train.labels, batch_size=batch_size, seed=1000 * trial.number + number
            ),
            optimizer=create_optimizer("sgd", network.parameters(), **knobs),
            steps=self.steps,
            evaluations=1,
            label_smoothing=smoothing,
            warmup=self.spec.training.warmup,
            channels_last=True,
        )
        (end,) = training
        return end.accuracy, training.evaluate(self.test)[0]


def study(name: str, *, seed: int, root: str, trials: int, top: int, again: int) -> dict[str, Any]:
    """One study: values of its finished trials, and its best configurations trained again."""
    changes = {"seed": seed, "data.root": root, "sampler.kind": "uniform", "budget.trials": trials}
    spec = load_spec(name, changes)
    splits = load_splits(spec)
    with tempfile.TemporaryDirectory() as folder:
        storage = Storage(f"sqlite:///{Path(folder, 'study.db')}")
        runner = StudyRunner(spec, storage, objective=make_objective(spec, splits))
        run = runner.run("study", score=False).run
        storage.close()
    done = sorted(
        (trial for trial in run.trials if trial.value is not None), key=lambda one: -one.value
    )
    trainer = Again(spec, splits)
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
                "again": [trainer.train(trial, number) for number in range(again)],
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
    document: dict[str, Any] = {"data": options.name, "torch": torch.__version__, "studies": []}
    if options.out.exists():
        document = json.loads(options.out.read_text())
    for seed in options.seed:
        if seed not in [each["seed"] for each in document["studies"]]:
            found = study(
                options.name,
                seed=seed,
                root=options.root,
                trials=options.trials,
                top=options.top,
                again=options.again,
            )
            document["studies"].append(found)
            write(options.out, json.dumps(document, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
