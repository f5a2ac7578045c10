"""The input and the output of every arm: one task, one space, one budget, one record.

An arm is a `Peer`. ``search`` runs until the deadline, and continues a search in the job's folder.
``outcome`` reads from there which configuration the library calls the best. Each file of peers ends
with ``main``, so that an arm has its own processes: ``python FILE search|outcome JOB``.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, Self

sys.path.append(str(Path(__file__).parents[1]))
from shared import SPACE

#: Evaluations of a full trial, at equal shares of its budget.
EVALUATIONS = 8
#: Share of a trial in which the learning rate rises; then it falls to zero.
WARMUP = 0.15


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """Data, network and the budget of a trial; a study's definition has the same."""

    data: str
    model: str
    epochs: int
    batch_size: int


TASKS: Mapping[str, Task] = {
    "digits": Task(data="digits", model="small_cnn", epochs=8, batch_size=64),
    "fashion_mnist": Task(data="fashion_mnist", model="small_cnn", epochs=1, batch_size=128),
    "cifar10": Task(data="cifar10", model="small_cnn", epochs=2, batch_size=128),
    "cifar10_resnet18": Task(data="cifar10", model="resnet18", epochs=2, batch_size=128),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One arm's work.

    Attributes:
        arm: Name of the arm.
        task: A name of `TASKS`.
        seed: Seed of all random choices, as far as the arm's library allows.
        deadline: When the search ends, in seconds since the epoch.
        device: ``"cpu"`` or ``"cuda"``.
        workers: Number of trainings at a time.
        folder: Folder of the arm's state, from which a search continues.
        data: File of prepared tensors, see `usual.prepare`.
        root: Folder of torchvision's data sets, for arms that load data themselves.
        worker: Number of the process, from 0, for arms that are started once per worker.
    """

    arm: str
    task: str
    seed: int
    deadline: float
    device: str
    workers: int
    folder: str
    data: str
    root: str
    worker: int = 0

    @property
    def seconds_left(self) -> float:
        """Until the deadline, at least 0."""
        return max(self.deadline - time.time(), 0.0)

    def save(self) -> Path:
        """Write the job into its folder; returns the file."""
        path = Path(self.folder) / f"job-{self.worker}.json"
        path.write_text(json.dumps(dataclasses.asdict(self)), encoding="utf-8")
        return path

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a job."""
        return cls(**json.loads(Path(path).read_text(encoding="utf-8")))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened to a trial.

    Attributes:
        trial: The arm's name of the trial. A continued trial keeps its name.
        at: Seconds since the epoch.
        share: Evaluations done, 0 at the start, `EVALUATIONS` at the end of the budget.
        examples: Training examples since the event before.
        accuracy: Validation accuracy of the evaluation; None at the start.
        training: Seconds of training since the event before, shared by trials trained together.
        evaluating: Seconds of evaluation likewise.
        config: The hyperparameters, at the start.
        process: Number of the process that wrote it.
    """

    trial: str
    at: float
    share: int
    examples: int = 0
    accuracy: float | None = None
    training: float = 0.0
    evaluating: float = 0.0
    config: Mapping[str, float] | None = None
    process: int = dataclasses.field(default_factory=os.getpid)


class EventLog:
    """Appends events to a file of this process, a line each."""

    def __init__(self, folder: str | Path) -> None:
        self._path = Path(folder) / f"events-{os.getpid()}.jsonl"

    def add(self, event: Event) -> None:
        """Write an event at once, so that a later kill does not lose it."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dataclasses.asdict(event)) + "\n")


def read_events(folder: str | Path) -> list[Event]:
    """Events of all processes in order of time, without lines that a kill left incomplete."""
    found = []
    for path in Path(folder).glob("events-*.jsonl"):
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.endswith("\n"):
                found.append(Event(**json.loads(line)))
    return sorted(found, key=lambda event: event.at)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result by the library's own records.

    Attributes:
        config: Hyperparameters of the best trial by the library; None if it has none.
        accuracy: Its validation accuracy.
        known: Trials with a result in the library's own records.
        events: What happened.
        running: Trials that run by the library's own records; None if each process runs one.
    """

    config: Mapping[str, float] | None
    accuracy: float | None
    known: int
    events: tuple[Event, ...]
    running: tuple[str, ...] | None = None


class Peer(Protocol):
    """A way to search.

    Attributes:
        packages: Distributions whose versions go into the record.
        each_worker: Whether the arm is started once per worker; otherwise it is started once.
    """

    packages: tuple[str, ...]
    each_worker: bool

    def search(self, job: Job) -> None:
        """Search until the deadline or SIGINT; continue a search in the job's folder."""

    def outcome(self, job: Job) -> Outcome:
        """Read the job's folder."""


def knobs(found: Mapping[str, Any]) -> dict[str, float]:
    """The hyperparameters of `SPACE` among a library's names and values."""
    return {name: float(found[name]) for name in SPACE}


def main(arms: Mapping[str, Peer]) -> None:
    """Run one command of one arm: ``python FILE search|outcome JOB``."""
    verb, path = sys.argv[1:]
    job = Job.load(path)
    if verb == "search":
        arms[job.arm].search(job)
    else:
        print(json.dumps(dataclasses.asdict(arms[job.arm].outcome(job))))


def read_outcome(text: str) -> Outcome:
    """Read the outcome from the last line that `main` printed."""
    found = json.loads(text.strip().splitlines()[-1])
    return Outcome(**{**found, "events": tuple(Event(**event) for event in found["events"])})


def by_trial(events: tuple[Event, ...]) -> Iterator[tuple[str, list[Event]]]:
    """Trials in order of their first event, each with its events."""
    found: dict[str, list[Event]] = {}
    for event in events:
        found.setdefault(event.trial, []).append(event)
    yield from found.items()
