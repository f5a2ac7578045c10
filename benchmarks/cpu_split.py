"""How to use CPU cores: one trial with a thread per core, or one trial per core.

    python benchmarks/cpu_split.py

Each way trains the small network for some seconds, in turns; trials an hour, and the ratio to one
process with torch's default number of threads, as a script without settings has it.
``--workers auto`` is the way of the last line.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

import _shared
import step_cost
import torch

from hpo_mab.workers import room

STEPS = 422
DEFAULT = "one trial, torch's default threads"


def way(processes: int, threads: int | None, *, seconds: float, data: str) -> float:
    """Seconds of wall-clock time a step, all processes together."""
    command = [sys.executable, __file__, "--worker", str(threads or 0), "--data", data, "--seconds"]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    return 1 / _shared.rates(
        command, count=processes, seconds=seconds, patience=300, env=environment
    )


def worker(threads: int, *, seconds: float, data: str) -> None:
    """Train for some seconds; prints the steps a second."""
    if threads:
        torch.set_num_threads(threads)
    evaluations = step_cost.run(
        _shared.made_up(data, train=10_000, rest=500),
        steps=100_000,
        evaluations=20_000,
        kind="mab",
        clock=time.perf_counter,
    )
    next(evaluations)
    _shared.wait_for_go()
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        next(evaluations)
        done += 5
    print(done / (time.perf_counter() - started), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data", choices=sorted(_shared.SHAPES), default="fashion_mnist")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        worker(options.worker, seconds=options.seconds, data=options.data)
        return 0
    auto = room(device="cpu")
    ways = {
        DEFAULT: (1, None),
        "one trial, one thread": (1, 1),
        f"{auto} trials of one thread (auto)": (auto, 1),
    }
    times = _shared.in_turns(
        {
            name: lambda split=split: way(*split, seconds=options.seconds, data=options.data)
            for name, split in ways.items()
        },
        rounds=options.rounds,
        warm_up=0,
    )
    rows = [
        (
            name,
            f"{3600 / statistics.median(values) / STEPS:.0f}",
            f"{_shared.ratio(times, DEFAULT, name)[0]:.2f}",
        )
        for name, values in times.items()
    ]
    print(_shared.table((f"way, {auto} cores", f"trials of {STEPS} steps an hour", "ratio"), rows))
    _shared.write_json(options.json, {"cpu_split": times})
    return 0


if __name__ == "__main__":
    sys.exit(main())
