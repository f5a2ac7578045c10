"""How well a study's record of examples finds wrong labels, compared with cleanlab's scores.

Labels are flipped, or are those that people gave. Some trials of `small_cnn` with random learning
rates are trained on them, as in a study. All scores come from the forward passes of these
trainings. ``cleanlab`` gets the mean predicted probabilities of each example over all draws. It is
left out if it is not installed.

    python studies/examples/labels.py digits --epochs 8 --out studies/examples/digits.json
    python studies/examples/labels.py cifar10 --root data --human cifar10_human_labels.npz \
        --out studies/examples/cifar10.json

``--human`` is an npz file with the arrays ``aggregate`` and ``worst``, a label for each training
image of CIFAR-10, from the CIFAR-10N of Wei et al. (2022).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor

from hpo_mab import data, training
from hpo_mab._examples import ExampleCounts, ExampleRecord, labels_digest
from hpo_mab._machine import environment
from hpo_mab.data import ImageData, ImageSplits, Normalization
from hpo_mab.samplers import UniformSampler
from hpo_mab.samplers._base import Draw
from hpo_mab.training import DeviceBatches, DeviceSweep, Training
from hpo_mab.training._tally import ExampleTally

sys.path.append(str(Path(__file__).parents[1]))
from shared import flip, network

Floats = NDArray[np.float64]
BATCH_SIZE = 128
SHARES = (0.05, 0.1, 0.2)


class WatchedSampler(UniformSampler):
    """Uniform batches; sums the probabilities that the network predicts for each example."""

    needs_logits = True
    probabilities: Tensor

    def _learn(
        self, draw: Draw, losses: Tensor, logits: Tensor | None, targets: Tensor | None
    ) -> None:
        if logits is not None:
            self.probabilities.index_add_(0, draw.indices, logits.softmax(dim=1).double())


def train(
    splits: ImageSplits, labels: Tensor, *, epochs: float, lr: float, seed: int
) -> tuple[ExampleCounts, Tensor, float]:
    """Train once; returns counts, summed probabilities [N, C] and validation accuracy."""
    train_data = ImageData(images=splits.train.images, labels=labels, classes=splits.train.classes)
    normalization = Normalization(splits.mean, splits.std, channels_last=True)
    model = network(train_data, seed)
    sampler = WatchedSampler(labels, batch_size=BATCH_SIZE, seed=seed)
    sampler.probabilities = torch.zeros(len(labels), splits.train.num_classes).double()
    run = Training(
        model,
        batches=DeviceBatches(train_data, normalization=normalization, seed=seed),
        validation=DeviceSweep(splits.validation, normalization=normalization),
        sampler=sampler,
        optimizer=training.create_optimizer("sgd", model.parameters(), lr=lr, momentum=0.9),
        steps=round(epochs * len(labels) / BATCH_SIZE),
        evaluations=1,
        warmup=0.15,
        channels_last=True,
        tally=ExampleTally(labels, device=torch.device("cpu")),
    )
    (last,) = run
    assert run.tally is not None
    return run.tally.take().on_host(), sampler.probabilities, last.accuracy


def noisy_labels(
    splits: ImageSplits, human: Path | None, *, epochs: float, seed: int
) -> Iterator[tuple[str, Tensor]]:
    """Label sets by name: flipped to any other class, to the most confused one, and people's."""
    right, classes = splits.train.labels, splits.train.num_classes
    if human is not None:
        for name, given in np.load(human).items():
            assert splits.positions is not None
            yield f"people, {name}", torch.from_numpy(given.astype(np.int64))[splits.positions]
    _, probabilities, _ = train(splits, right, epochs=epochs, lr=0.1, seed=seed + 99)
    confusion = torch.zeros(classes, classes).double().index_add_(0, right, probabilities)
    confused = confusion.fill_diagonal_(-1).argmax(dim=1)
    for kind in ("uniform", "confused"):
        for share in SHARES:
            labels = flip(right, share=share, classes=classes, seed=seed)
            if kind == "confused":
                labels = torch.where(labels != right, confused[right], right)
            yield f"{kind} {share:.0%}", labels


def record_scores(record: ExampleRecord) -> dict[str, Floats]:
    """Scores that need only the record."""
    counts = record.counts
    confidence, spread = counts.mean("confidence"), record.ambiguity()
    return {
        "area under the margin": record.suspicion(),
        "relative loss": record.hardness(),
        "rate of high loss": counts.mean("high"),
        "cartography, confidence": -confidence,
        "cartography, variability": spread,
        "cartography, confidence + variability": -(confidence + spread),
    }


def cleanlab_scores(labels: NDArray[np.int64], probabilities: Floats) -> dict[str, Floats]:
    """Scores of cleanlab; none if it is not installed."""
    try:
        from cleanlab.filter import find_label_issues
        from cleanlab.rank import get_label_quality_scores
    except ImportError:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = {
            f"cleanlab, {method.replace('_', ' ')}": -get_label_quality_scores(
                labels, probabilities, method=method
            )
            for method in ("self_confidence", "normalized_margin")
        }
        issues = find_label_issues(labels, probabilities, filter_by="prune_by_noise_rate")
    # The issues of confident learning first, then the others, both in order of self-confidence.
    found["cleanlab, confident learning"] = found["cleanlab, self confidence"] + 10.0 * issues
    return found


def measure(scores: dict[str, Floats], wrong: NDArray[np.bool_]) -> dict[str, dict[str, float]]:
    """Area under the ROC curve, and precision among the top N (N wrong labels) and the top 100."""
    results = {}
    for name, score in scores.items():
        order = np.argsort(-score, kind="stable")
        results[name] = {
            "auroc": round(float(roc_auc_score(wrong, score)), 4),
            "precision": round(float(wrong[order[: wrong.sum()]].mean()), 4),
            "precision_100": round(float(wrong[order[:100]].mean()), 4),
        }
    return results


def main() -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("data", choices=("digits", "fashion_mnist", "cifar10"))
    parser.add_argument("--root", default="data")
    parser.add_argument("--human", type=Path)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--trials", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        splits = data.load_splits(
            options.data, validation=0.2, seed=seed, root=options.root, download=False
        )
        right = splits.train.labels.numpy()
        for name, labels in noisy_labels(splits, options.human, epochs=options.epochs, seed=seed):
            began = time.process_time()
            rates = np.exp(
                np.random.default_rng(seed).uniform(*np.log((0.01, 0.5)), options.trials)
            )
            parts = [
                train(splits, labels, epochs=options.epochs, lr=float(lr), seed=100 * seed + trial)
                for trial, lr in enumerate(rates)
            ]
            counts = parts[0][0]
            for part in parts[1:]:
                counts = counts + part[0]
            given = labels.numpy()
            record = ExampleRecord(total=len(given), labels=labels_digest(given), counts=counts)
            summed = torch.stack([part[1] for part in parts]).sum(dim=0)
            probabilities = (summed / summed.sum(dim=1, keepdim=True)).nan_to_num(0.1).numpy()
            wrong = given != right
            preferred = record.preferred()
            assert preferred is not None
            results.append(
                {
                    "labels": name,
                    "seed": seed,
                    "examples": len(given),
                    "wrong": int(wrong.sum()),
                    "accuracies": [round(part[2], 4) for part in parts],
                    "cpu_seconds": round(time.process_time() - began, 1),
                    "preferred_is_right": round(float((preferred == right)[wrong].mean()), 4),
                    "scores": measure(
                        record_scores(record) | cleanlab_scores(given, probabilities), wrong
                    ),
                }
            )
            best = results[-1]["scores"]["area under the margin"]
            print(options.data, name, seed, best, flush=True)
            facts = {
                "data": options.data,
                "epochs": options.epochs,
                "trials": options.trials,
                "environment": environment(),
                "results": results,
            }
            options.out.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
