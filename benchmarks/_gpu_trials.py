"""Several trials on one device at the same time: processes, threads with graphs, one stack."""

from __future__ import annotations

import functools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import _shared
import opponent
import torch
import versus
from _gpu_shared import Place, Row
from torch import nn

from hpo_mab import models, training
from hpo_mab.data import ImageSplits, Normalization
from hpo_mab.samplers import create
from hpo_mab.training import DeviceBatches, DeviceSweep, StackedTrainer

TARGET = 4.0
#: Seconds for contexts, data and first steps before a way is timed.
_PATIENCE = 60.0


def trials(place: Place) -> Iterator[Row]:
    """Trials an hour for K at a time, by each way, and the best of all over K = 1."""
    # The most informative numbers come first, in case the time is too short for all.
    counts = place.pick((1, 8, 4, 16, 2), (1, 2))
    seconds = place.pick(4.0, 0.2)
    rates: dict[tuple[str, int], float] = {}
    for k in counts:
        ways = {"threads": _threads, "stack": _stack, "processes": _processes}
        if k == counts[1]:
            ways["stack, hard_mining"] = functools.partial(_stack, sampler="hard_mining")
        for way, measure in ways.items():
            if place.left < 15 + 2 * seconds:
                yield Row(f"K = {k}, {way}", "no time left")
                continue
            try:
                rates[way, k] = measure(place, k, seconds)
            except Exception as error:
                yield Row(f"K = {k}, {way}", f"{type(error).__name__}: {error}"[:120], met=False)
                continue
            yield Row(f"K = {k}, {way}", f"{3600 * rates[way, k]:.0f} trials an hour")
    single = max((rate for (_, k), rate in rates.items() if k == 1), default=0.0)
    for way in ("threads", "stack", "processes"):
        found = {k: rate for (name, k), rate in rates.items() if name == way}
        if found and single:
            k = max(found, key=lambda k: found[k])
            gain = found[k] / single
            yield Row(
                f"best of {way}: K = {k}",
                f"{gain:.2f} times the best of K = 1",
                f"at least {TARGET:g}",
                met=gain >= TARGET,
            )


def task(place: Place) -> opponent.Task:
    """A short trial of the small network."""
    return opponent.Task(
        data="cifar10",
        steps=place.pick(390, 8),
        evaluations=4,
        batch_size=place.pick(128, 8),
    )


@functools.cache
def _data(place: Place) -> ImageSplits:
    return _shared.made_up("cifar10", train=place.pick(50_000, 200), rest=100).to(place.device)


def _loop(place: Place, data: ImageSplits, until: Callable[[], bool], seed: int = 0) -> float:
    """Train trial after trial until ``until()`` is true; returns trials done, with fractions."""
    done, evaluations = 0, task(place).evaluations
    while not until():
        for part in _curve(place, data, seed=seed + done):
            if until():
                return done + part.index / evaluations
        done += 1
    return float(done)


def _threads(place: Place, k: int, seconds: float) -> float:
    """K threads, each with its own stream; the next trial starts when one is finished."""
    data = _data(place)
    # Once alone: no thread may load kernels while another one captures a graph.
    _first_trial(place)
    gate, done, clock = threading.Barrier(k + 1), [0.0] * k, [0.0]
    errors: list[Exception] = []

    def work(number: int) -> None:
        try:
            with torch.cuda.stream(torch.cuda.Stream() if place.cuda else None):
                # The first steps of a thread create its handles and workspaces.
                next(_curve(place, data, seed=number))
                gate.wait()
                gate.wait()
                done[number] = _loop(
                    place, data, lambda: time.perf_counter() > clock[0], seed=1000 * number
                )
        except Exception as error:
            errors.append(error)
            gate.abort()

    crew = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(k)]
    for member in crew:
        member.start()
    try:
        gate.wait(timeout=_PATIENCE)
        place.wait()
        started = time.perf_counter()
        clock[0] = started + seconds
        gate.wait(timeout=_PATIENCE)
        for member in crew:
            member.join(timeout=_PATIENCE)
    except threading.BrokenBarrierError as broken:
        # The first error is the cause, if there is any.
        raise next(iter(errors), broken) from None
    if errors or any(member.is_alive() for member in crew):
        raise next(iter(errors), TimeoutError("a thread did not end"))
    return sum(done) / (time.perf_counter() - started)


@functools.cache
def _first_trial(place: Place) -> None:
    for _ in _curve(place, _data(place)):
        pass


def _curve(place: Place, data: ImageSplits, seed: int = 0) -> Iterator[training.Evaluation]:
    return versus.ours(
        task(place), data, sampler="mab", seed=seed, precision="bfloat16", graph=True
    )


def _processes(place: Place, k: int, seconds: float) -> float:
    """K processes that share the device."""
    command = [sys.executable, str(Path(__file__)), str(place.device), str(int(place.tiny))]
    patience = min(_PATIENCE, place.left - seconds)
    return _shared.rates(command, count=k, seconds=seconds, patience=patience)


def _stack(place: Place, k: int, seconds: float, *, sampler: str = "mab") -> float:
    """K networks as one, as a study in slots trains them; a slot is refilled."""
    data, what = _data(place), task(place)
    normalization = Normalization(data.mean, data.std)
    stack = StackedTrainer(
        _network(),
        slots=k,
        batches=DeviceBatches(
            data.train, normalization=normalization, augmentation=versus.augmentation(data)
        ),
        validation=DeviceSweep(data.validation, normalization=normalization),
        batch_size=what.batch_size,
        precision="bfloat16",
    )
    done, seed = 0.0, 0

    def work() -> float:
        nonlocal seed
        for slot in stack.free:
            seed += 1
            stack.start(
                slot,
                _network(),
                sampler=create(
                    sampler,
                    data.train.labels,
                    batch_size=what.batch_size,
                    seed=seed,
                    # The stack has bandits of its own.
                    device="cpu" if sampler == "mab" else place.device,
                ),
                steps=what.steps,
                evaluations=what.evaluations,
                optimizer={"lr": 0.01 * (1 + slot % 10)},
            )
        return len(stack.advance()) / what.evaluations

    # Until the first trials are done: steps are captured, kernels are loaded.
    for _ in range(what.evaluations):
        work()
    place.wait()
    started = time.perf_counter()
    while time.perf_counter() - started < seconds:
        done += work()
    return done / (time.perf_counter() - started)


def _network() -> nn.Module:
    return models.create("small_cnn", in_channels=3, num_classes=10, image_size=32)


def _after(seconds: float) -> Callable[[], bool]:
    end = time.perf_counter() + seconds
    return lambda: time.perf_counter() > end


def _worker() -> None:
    device, tiny, seconds = sys.argv[1:]
    torch.set_num_threads(1)
    place = Place(torch.device(device), bool(int(tiny)))
    data = _data(place)
    _first_trial(place)
    _shared.wait_for_go()
    started = time.perf_counter()
    done = _loop(place, data, _after(float(seconds)))
    print(done / (time.perf_counter() - started), flush=True)


if __name__ == "__main__":
    _worker()
