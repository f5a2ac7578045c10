"""Steps, draws and the usual script on one device."""

from __future__ import annotations

import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import _shared
import opponent
import step_cost
import torch
import versus
from _gpu_shared import Place, Row

from hpo_mab.samplers import MABSampler
from hpo_mab.training import DeviceBatches
from hpo_mab.training._batches import TimedSampler

SHARE = 0.02
BATCH_SIZE = 128


def draw(place: Place) -> Iterator[Row]:
    """Cost of draw and update: launched one by one, and replayed from a graph."""
    for bandits, arms in place.pick(((128, 390), (128, 10_000), (1024, 50)), ((8, 20),)):
        labels = torch.arange(bandits * arms) % 10
        more = {} if place.cuda else {"discount": 0.99}
        sampler = MABSampler(labels, batch_size=bandits, device=place.device, **more)
        losses = torch.rand(len(labels), device=place.device)

        def step(sampler: MABSampler = sampler, losses: torch.Tensor = losses) -> None:
            sampler.update(losses[sampler.draw()])

        name = f"draw + update, {bandits} x {arms}"
        calls = place.pick(200, 2)
        eager = place.seconds(step, calls=calls)
        yield Row(f"{name}, eager", f"{1e3 * eager:.3f} ms")
        replay = place.capture(step, sampler.graph_generator)
        captured = place.seconds(replay, calls=calls)
        yield Row(f"{name}, graph", f"{1e3 * captured:.3f} ms")
        if place.cuda:
            yield Row(f"{name}, kernels", _kernels(place, step))


def _kernels(place: Place, step: Callable[[], None]) -> str:
    """Number of kernels that a step launches; some machines do not allow the profiler."""
    try:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as record:
            step()
            place.wait()
    except RuntimeError as error:
        return f"not known: {error}"[:120]
    # Copies and fills are events of the device as well.
    return str(
        sum(
            event.count
            for event in record.key_averages()
            if event.device_type == torch.autograd.DeviceType.CUDA
        )
    )


def steps(place: Place) -> Iterator[Row]:
    """A step of both networks: loop or graph, uniform or mab; and the share of the bandits."""
    data = _shared.made_up("cifar10", train=place.pick(50_000, 400), rest=200).to(place.device)
    cases = [
        (model, precision)
        for model in place.pick(("small_cnn", "resnet18"), ("small_cnn",))
        for precision in ("bfloat16", "float32")
    ]
    for model, precision in cases:
        times = _take_turns(place, data, model=model, precision=precision)
        name = f"{model}, {precision}"
        for way, values in times.items():
            yield Row(f"{name}, {way}", f"{1e3 * statistics.median(values):.3f} ms a step")
        if model == "small_cnn":
            gain = _shared.ratio(times, "loop, mab", "graph, mab")[0]
            yield Row(f"{name}: graph faster than loop with mab", f"{gain:.2f} times")
        for way in ("loop", "graph"):
            share = _shared.ratio(times, f"{way}, mab", f"{way}, uniform")[0] - 1
            wanted = way == "graph" and model == "resnet18"
            yield Row(
                f"{name}, {way}: what mab adds",
                f"{share:.1%}",
                f"at most {SHARE:.0%}" if wanted else "",
                met=share <= SHARE if wanted else None,
            )


def _take_turns(place: Place, data: Any, *, model: str, precision: str) -> dict[str, list[float]]:
    many, rounds, warm_up = place.pick((20, 9, 3), (2, 2, 1))
    turns = {}
    for graph, kind in itertools.product((False, True), ("uniform", "mab")):
        evaluations = step_cost.run(
            data,
            steps=many * (rounds + warm_up),
            evaluations=rounds + warm_up,
            model=model,
            batch_size=place.pick(BATCH_SIZE, 8),
            augment=True,
            precision=precision,
            graph=graph,
            clock=time.perf_counter,
            kind=kind,
        )
        turn, _ = step_cost.contestant(evaluations)
        turns[f"{'graph' if graph else 'loop'}, {kind}"] = turn
    times = _shared.in_turns(turns, rounds=rounds, warm_up=warm_up)
    return {name: [seconds / many for seconds in values] for name, values in times.items()}


def against(place: Place) -> Iterator[Row]:
    """Data loading and a whole trial, ours against the usual script."""
    task = opponent.Task(
        data="cifar10",
        steps=place.pick(300, 4),
        evaluations=place.pick(3, 2),
        batch_size=place.pick(BATCH_SIZE, 8),
    )
    splits = task.splits(examples=place.pick(50_000, 200))
    workers = place.pick(min(16, len(os.sched_getaffinity(0))), 0)
    script = opponent.Objective(
        task, splits, device=place.device, workers=workers, precision="bfloat16"
    )
    next(script.batches)

    batch = place.seconds(lambda: next(script.batches), calls=place.pick(100, 2))
    there = splits.to(place.device)
    sampler = MABSampler(there.train.labels, batch_size=task.batch_size, device=place.device)
    augmenting = DeviceBatches(
        there.train,
        normalization=versus.Normalization(there.mean, there.std, channels_last=True),
        augmentation=versus.augmentation(splits),
    )
    stream = augmenting.stream(TimedSampler(sampler, clock=lambda: 0.0))
    losses = torch.rand(task.batch_size, device=place.device)

    def ours() -> None:
        next(stream)
        sampler.update(losses)

    # A study draws, gathers, crops and flips within the graph of a step.
    calls = place.pick(100, 2)
    eager = batch / place.seconds(ours, calls=calls)
    replay = place.capture(ours, sampler.graph_generator, augmenting.generator)
    cheaper = batch / place.seconds(replay, calls=calls)
    name = f"a batch, DataLoader of {workers} workers over ours with mab"
    yield Row(f"{name}, launched one by one", f"{eager:.1f} times")
    yield Row(f"{name}, as a study does it", f"{cheaper:.1f} times", "at least 10", cheaper >= 10)
    # The first trial of each side loads libraries and kernels, and is not timed.
    trial = place.seconds(lambda: list(script.curve(0.1, 1e-4)), calls=1, warm_up=1)
    yield Row(f"trial of {task.steps} steps, usual script", f"{trial:.2f} s")
    for sampler_kind in ("uniform", "mab"):
        seconds = place.seconds(
            lambda kind=sampler_kind: list(
                versus.ours(task, there, sampler=kind, precision="bfloat16", graph=True)
            ),
            calls=place.pick(3, 1),
            warm_up=1,
        )
        yield Row(
            f"the same trial, ours, {sampler_kind}, one at a time",
            f"{seconds:.2f} s: {trial / seconds:.1f} times faster",
            "at least 5",
            met=trial / seconds >= 5,
        )
