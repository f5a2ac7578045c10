"""Compare signals at a rung: accuracy and loss of trained and averaged weights, annealed copies.

python studies/rungs/signals.py digits --seeds 3 --out studies/rungs/signals.json

An annealed copy starts from the trained weights at a rung. It is trained for a few more steps while
its learning rate falls from the present one to zero, and then evaluated. The training itself
continues without it. The file is saved after each training; a further call trains what it lacks.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from torch.optim import Optimizer

# First, because studies/replay has a run.py too.
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
from run import BATCH_SIZE, CONFIGURATIONS, EPOCHS, EVALUATIONS, Recorder
from shared import configurations, write
from tables import TRIALS, WINDOW, Floats, compact, halving, orders, plain

from hpo_mab import data, samplers
from hpo_mab._machine import environment
from hpo_mab.advantage import compare_fidelity, fidelity, mean_estimate
from hpo_mab.data import Normalization
from hpo_mab.training import DeviceBatches, DeviceSweep, Training, create_optimizer, evaluate

#: Evaluations, of eight, at which copies are annealed.
RUNGS = (1, 2, 4)
#: Steps of an annealed copy, as shares of the budget, by name.
COPIES = {"annealed 2%": 0.02, "annealed 5%": 0.05}
#: The signal that trials report today.
REFERENCE = "averaged, accuracy"


class Trainer:
    """Trains one configuration at a time and records every signal.

    Args:
        name: Of the data set.
        root: Its folder.
        epochs: Budget of a training.
    """

    def __init__(self, name: str, *, root: Path, epochs: float) -> None:
        splits = data.load_splits(name, root=root, download=False)
        self.recorder = Recorder(splits, name=name, epochs=epochs, model="small_cnn", slots=1)
        normalization = Normalization(splits.mean, splits.std)
        self.batches = DeviceBatches(splits.train, normalization=normalization)
        self.validation = DeviceSweep(splits.validation, normalization=normalization)

    def signals(self, point: Mapping[str, float], *, seed: int) -> dict[str, list[list[float]]]:
        """``[accuracy, loss]`` by kind of weights: at each evaluation, of copies at each rung.

        The last evaluation of the averaged weights is that of the trained ones, as in a trial.
        """
        knobs = dict(point)
        smoothing = knobs.pop("label_smoothing")
        network = self.recorder.network(seed)
        optimizer = create_optimizer("sgd", network.parameters(), **knobs)
        training = self._training(
            network,
            optimizer,
            seed=seed,
            steps=self.recorder.steps,
            evaluations=EVALUATIONS,
            warmup=0.15,
            average=WINDOW,
            label_smoothing=smoothing,
        )
        found: dict[str, list[list[float]]] = {"averaged": [], "trained": []}
        found |= {kind: [] for kind in COPIES}
        for at in training:
            own = (at.accuracy, at.loss)
            found["averaged"].append(_rounded(*own))
            if at.averaged:
                own = evaluate(network, self.validation)
            found["trained"].append(_rounded(*own))
            if at.index in RUNGS:
                for kind, share in COPIES.items():
                    steps = round(share * self.recorder.steps)
                    found[kind].append(
                        self.anneal(network, optimizer, seed=seed, steps=steps, smoothing=smoothing)
                    )
        return found

    def anneal(
        self, network: nn.Module, optimizer: Optimizer, *, seed: int, steps: int, smoothing: float
    ) -> list[float]:
        """``[accuracy, loss]`` of a copy whose learning rate falls to zero within some steps.

        Args:
            network: Its weights stay as they are.
            optimizer: Its present learning rate and momentum are those the copy starts with.
            seed: Of the training; the copy draws other batches.
            steps: Of the copy, at least 1.
            smoothing: Label smoothing.
        """
        # Together: the copied optimiser must refer to the copied weights.
        network, optimizer = copy.deepcopy((network, optimizer))
        (end,) = self._training(
            network,
            optimizer,
            seed=1000 + seed,
            steps=max(1, steps),
            evaluations=1,
            warmup=0.0,
            label_smoothing=smoothing,
        )
        return _rounded(end.accuracy, end.loss)

    def _training(
        self, network: nn.Module, optimizer: Optimizer, *, seed: int, **curve: Any
    ) -> Training:
        sampler = samplers.create(
            "uniform", self.recorder.labels, batch_size=self.recorder.batch_size, seed=seed
        )
        return Training(
            network,
            batches=self.batches,
            validation=self.validation,
            sampler=sampler,
            optimizer=optimizer,
            **curve,
        )


def _rounded(accuracy: float, loss: float) -> list[float]:
    return [round(accuracy, 5), round(loss, 5)]


def read_signals(rows: list[dict[str, Any]]) -> tuple[dict[str, Floats], Floats, Floats]:
    """Each signal at the rungs [S, K, R], higher is better; final accuracy and loss [S, K].

    Args:
        rows: Trainings; seeds that lack some configuration are left out.
    """
    by_seed: dict[int, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: (row["seed"], row["configuration"])):
        by_seed.setdefault(row["seed"], []).append(row)
    whole = [some for some in by_seed.values() if len(some) == CONFIGURATIONS]
    found = {}
    for kind in ("averaged", "trained", *COPIES):
        values = np.asarray([[row[kind] for row in some] for some in whole])
        if kind not in COPIES:
            values = values[:, :, np.asarray(RUNGS) - 1]
        found[f"{kind}, accuracy"] = values[..., 0]
        found[f"{kind}, loss"] = -values[..., 1]
    ends = np.asarray([[row["trained"][-1] for row in some] for some in whole])
    return found, ends[..., 0], ends[..., 1]


def ranking(signals: Mapping[str, Floats], final: Floats) -> Iterator[dict[str, Any]]:
    """How each signal ranks configurations at each rung; means over seeds are ranked.

    Args:
        signals: Values by signal [S, K, R].
        final: Final accuracies [S, K].

    Yields:
        ``kendall``: tau-b with the final accuracy; the same less the reference's, paired; and
        ``regret`` of the first choice in points. Each is ``[value, low, high]`` by rung.
    """
    end = final.mean(axis=0)
    reference = signals[REFERENCE].mean(axis=0).T
    for name, values in signals.items():
        early = values.mean(axis=0).T
        yield {
            "signal": name,
            "kendall": [plain(fidelity(x, end)) for x in early],
            "kendall less reference's": [
                plain(compare_fidelity(x, other, end).difference)
                for x, other in zip(early, reference, strict=True)
            ],
            "regret": [plain(fidelity(x, end, statistic="regret"), scale=100) for x in early],
        }


def replay(
    signals: Mapping[str, Floats], final: Floats, *, replays: int = 400
) -> Iterator[dict[str, Any]]:
    """Successive halving with a reduction of 2 by each signal, over random orders of the trainings.

    Args:
        signals: Values by signal [S, K, R].
        final: Final accuracies [S, K].
        replays: Random orders, the same for all signals.

    Yields:
        ``cost`` as a share of unpruned trials, the steps of copies included, and ``regret`` in
        points below the best of all trials.
    """
    where = orders(final.shape, replays, 0)
    ends = final[where][:, :TRIALS]
    for name, values in signals.items():
        curves = np.full((*ends.shape, EVALUATIONS), np.nan)
        curves[..., np.asarray(RUNGS) - 1] = values[where][:, :TRIALS]
        curves[..., -1] = ends
        share = COPIES.get(name.split(", ")[0], 0.0)
        for first in RUNGS[:2]:
            used = halving(curves, first=first, factor=2)
            copies = sum((used >= rung).astype(float) for rung in RUNGS if rung >= first)
            cost = (used / EVALUATIONS + share * copies).mean(axis=1)
            best = np.where(used == EVALUATIONS, ends, -np.inf).max(axis=1)
            yield {
                "signal": name,
                "first rung": f"{first}/{EVALUATIONS}",
                "cost": plain(mean_estimate(cost)),
                "regret": plain(mean_estimate(ends.max(axis=1) - best), scale=100),
            }


#: What tables call the data sets and the signals' weights.
TITLES = {"fashion_mnist": "Fashion-MNIST", "cifar10": "CIFAR-10", "digits": "digits"}
WEIGHTS = {
    "averaged": "averaged weights",
    "trained": "trained weights",
    **{kind: f"a copy {kind.replace(' ', ' for ')}" for kind in COPIES},
}
#: Signals in the tables of ``signals.md``.
SHOWN = [
    f"{kind}, {measure}"
    for kind in WEIGHTS
    for measure in (("accuracy",) if kind in COPIES else ("accuracy", "loss"))
]


def ranking_table(document: Mapping[str, Any]) -> str:
    """Tau, its difference and the regret of each signal at each rung, in Markdown."""
    rows = [_head("share, signal", "tau", "difference", "regret")]
    for place, rung in enumerate(RUNGS):
        for name in SHOWN:
            cells = [f"1/{EVALUATIONS // rung}, {_signal(name)}"]
            for one in TITLES:
                (row,) = (r for r in document["sets"][one]["ranking"] if r["signal"] == name)
                cells.append(f"{row['kendall'][place][0]:.2f}")
                less = _interval(row["kendall less reference's"][place])
                cells += ["-" if name == REFERENCE else less, _interval(row["regret"][place])]
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def replay_table(document: Mapping[str, Any]) -> str:
    """Cost and regret of successive halving by each signal, in Markdown."""
    rungs = [f"from 1/{EVALUATIONS // rung}" for rung in RUNGS[:2]]
    rows = [_head("signal", *rungs)]
    for name in SHOWN:
        cells = [_signal(name)]
        for one in TITLES:
            found = (row for row in document["sets"][one]["replay"] if row["signal"] == name)
            cells += [f"{row['cost'][0]:.2f}; {_interval(row['regret'])}" for row in found]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _head(first: str, one: str, *others: str) -> str:
    cells = [first]
    for title in TITLES.values():
        cells += [f"{title}: {one}", *others]
    return f"| {' | '.join(cells)} |\n|{'---|' * len(cells)}"


def _signal(name: str) -> str:
    kind, measure = name.split(", ")
    return f"{measure} of {WEIGHTS[kind]}"


def _interval(found: Sequence[float]) -> str:
    # A value of -0.003 is written as 0.00.
    value, low, high = (f"{round(one, 2) + 0.0:.2f}" for one in found)
    return value if low == high else f"{value} [{low}, {high}]"


def record(name: str, *, root: Path, out: Path, seeds: int, epochs: float | None) -> None:
    """Train what the file lacks, and write its tables."""
    document = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {"sets": {}}
    budget = epochs or EPOCHS.get(name, 2.0)
    trainer = Trainer(name, root=root, epochs=budget)
    one = document["sets"].setdefault(
        name,
        {
            "epochs": budget,
            "steps": trainer.recorder.steps,
            "batch_size": BATCH_SIZE.get(name, 128),
            "rows": [],
        },
    )
    done = {(row["seed"], row["configuration"]) for row in one["rows"]}
    points = configurations(CONFIGURATIONS, seed=0)
    for seed in range(seeds):
        for number, point in enumerate(points):
            if (seed, number) not in done:
                found = trainer.signals(point, seed=seed)
                one["rows"].append({"configuration": number, "seed": seed, **found})
                write(out, compact(document))
        print(name, f"seed {seed}", flush=True)
    signals, final, loss = read_signals(one["rows"])
    one |= {
        "seeds": len(final),
        "kendall of the final loss": plain(fidelity(-loss.mean(axis=0), final.mean(axis=0))),
        "ranking": list(ranking(signals, final)),
        "replay": list(replay(signals, final)),
    }
    document["environment"] = environment()
    write(out, compact(document))


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("name", choices=("digits", "fashion_mnist", "cifar10", "cifar100"))
    parser.add_argument("--root", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float)
    options = vars(parser.parse_args())
    record(options.pop("name"), **options)


if __name__ == "__main__":
    main()
