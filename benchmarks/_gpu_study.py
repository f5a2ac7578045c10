"""Whole studies with the code of `hpo-mab run`, SQL and Optuna, against the usual script."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import _shared
import opponent
import torch
from _gpu_shared import Place, Row

from hpo_mab.data import ImageSplits
from hpo_mab.search import StudyRunner, make_spec
from hpo_mab.search._prepare import make_objective
from hpo_mab.search._slots import FEWEST_ROUNDS
from hpo_mab.storage import Storage
from hpo_mab.training import StackedTrainer, Training

#: Times the usual script's trials an hour, by network.
TARGETS = {"small_cnn": 10.0, "resnet18": 3.5}
#: Largest share of the wall time outside training and evaluation, at so many trials a second.
STORAGE_SHARE = 0.2
STORAGE_RATE = 5.0


def studies(place: Place) -> Iterator[Row]:
    """Trials an hour of a study with TPE, start-up excluded; and of the usual script."""
    splits = _shared.made_up("cifar10", train=place.pick(50_000, 400), rest=place.pick(1_000, 100))
    for model, trials in place.pick((("small_cnn", 192), ("resnet18", 12)), (("small_cnn", 6),)):
        task = opponent.Task(
            data="cifar10",
            model=model,
            steps=place.pick(390, 8),
            evaluations=4,
            batch_size=place.pick(128, 8),
        )
        workers = place.pick(min(16, len(os.sched_getaffinity(0))), 0)
        script = opponent.Objective(
            task, splits, device=place.device, workers=workers, precision="bfloat16"
        )
        usual = place.seconds(lambda: list(script.curve(0.1, 1e-4)), calls=1, warm_up=1)  # noqa: B023
        yield Row(f"{model}, usual script", f"{3600 / usual:.0f} trials an hour")
        for kind in ("uniform", "mab"):
            rate, outside = _study(place, splits, task, kind=kind, trials=trials)
            gain = rate * usual
            yield Row(
                f"{model}, hpo-mab run, {kind}",
                f"{3600 * rate:.0f} trials an hour: {gain:.1f} times",
                f"at least {TARGETS[model]:g}",
                met=gain >= TARGETS[model],
            )
            share = outside * STORAGE_RATE
            wanted = model == "small_cnn"
            yield Row(
                f"{model}, {kind}: outside training and evaluation",
                f"{1e3 * outside:.1f} ms a trial: {share:.0%} at {STORAGE_RATE:g} trials a second, "
                f"{outside * rate:.0%} at its {rate:.1f}",
                f"at most {STORAGE_SHARE:.0%} at {STORAGE_RATE:g}" if wanted else "",
                met=share <= STORAGE_SHARE if wanted else None,
            )


def _study(
    place: Place, splits: ImageSplits, task: opponent.Task, *, kind: str, trials: int
) -> tuple[float, float]:
    """Trials a second, and seconds a trial outside training and evaluation."""
    inside = _Inside()
    with tempfile.TemporaryDirectory() as folder, inside:
        storage = Storage(f"sqlite:///{Path(folder, 'study.db')}")
        for count in (2 * FEWEST_ROUNDS, trials):
            # The first study loads libraries and kernels, those of a stack included.
            spec = _spec(place, task, kind=kind, trials=count)
            runner = StudyRunner(spec, storage, objective=make_objective(spec, splits))
            inside.seconds = 0.0
            started = time.perf_counter()
            outcome = runner.run(f"study{count}", score=False)
            seconds = time.perf_counter() - started
        for reason in outcome.notes:
            print(f"{task.model}, {kind}: {reason}", flush=True)
        storage.close()
    return trials / seconds, (seconds - inside.seconds) / trials


class _Inside:
    """Adds up the seconds of training and evaluation, also those of measuring the slots."""

    #: The trainers: of many trials at a time, and of one.
    PLACES = ((StackedTrainer, "advance"), (Training, "__next__"))

    def __init__(self) -> None:
        self.seconds = 0.0
        self._before = [getattr(owner, name) for owner, name in self.PLACES]

    def __enter__(self) -> _Inside:
        for (owner, name), before in zip(self.PLACES, self._before, strict=True):
            setattr(owner, name, self._timed(before))
        return self

    def _timed(self, before: Any) -> Any:
        def timed(trained: Any) -> Any:
            started = time.perf_counter()
            try:
                return before(trained)
            finally:
                self.seconds += time.perf_counter() - started

        return timed

    def __exit__(self, *_: object) -> None:
        for (owner, name), before in zip(self.PLACES, self._before, strict=True):
            setattr(owner, name, before)


def _spec(place: Place, task: opponent.Task, *, kind: str, trials: int) -> Any:
    return make_spec(
        {
            "name": "benchmark",
            "model": {"name": task.model},
            "budget": {"steps": task.steps, "evaluations": task.evaluations, "trials": trials},
            "optimizer": {
                "name": "sgd",
                "lr": {"low": 0.01, "high": 0.3, "log": True},
                "momentum": {"low": 0.5, "high": 0.95},
                "weight_decay": {"low": 1e-6, "high": 1e-3, "log": True},
            },
            "training": {
                "batch_size": task.batch_size,
                "precision": "bfloat16",
                "device": str(torch.device(place.device)),
                "slots": "auto" if place.cuda else 2,
            },
            "data": {"name": "cifar10", "augment": True},
            "sampler": {"kind": kind},
            "search": {"sampler": "tpe", "initial": 0},
            "pruner": {"kind": "none"},
        }
    )
