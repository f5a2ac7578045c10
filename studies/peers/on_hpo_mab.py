"""``hpo-mab run`` on the studies' definitions, one process per core, ended by Ctrl-C."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from contract import SPACE, TASKS, Event, Job, Outcome, knobs, main

if TYPE_CHECKING:
    from hpo_mab.storage._runs import TrialRun

_NAME = "peers"
#: More than any arm trains.
_TRIALS = 1_000_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class HpoMab:
    """The command, with options."""

    options: tuple[str, ...]
    packages: tuple[str, ...] = ("hpo_mab",)
    each_worker: bool = False

    def search(self, job: Job) -> None:
        """Replace this process by the command; SIGINT ends it like Ctrl-C."""
        task = TASKS[job.task]
        command = [sys.executable, "-m", "hpo_mab", "run", task.data, "--name", _NAME]
        command += ["--storage", str(Path(job.folder) / "studies.db"), "--seed", str(job.seed)]
        command += ["--data-root", job.root, "--model", task.model, "--device", job.device]
        command += ["--trials", str(_TRIALS), "--quiet", *self.options]
        os.execv(sys.executable, command)

    def outcome(self, job: Job) -> Outcome:
        """The study's best trial, and events from Optuna's times and the stored curves."""
        from hpo_mab import HpoMabError
        from hpo_mab.storage import Storage, open_study, read_run

        with Storage(str(Path(job.folder) / "studies.db")) as storage:
            try:
                run = read_run(storage, _NAME)
            except HpoMabError:  # It was ended before the study was made.
                return Outcome(config=None, accuracy=None, known=0, events=(), running=())
            frozen = {trial.number: trial for trial in open_study(storage, _NAME).get_trials()}
        events: list[Event] = []
        for trial in run.trials:
            one = frozen[trial.number]
            config = {"label_smoothing": 0.0, **trial.params}
            named = {name.rpartition(".")[2]: value for name, value in config.items()}
            # The last trials may have ended before they had a configuration.
            if one.datetime_start is None or not SPACE.keys() <= named.keys():
                continue
            start = one.datetime_start.timestamp()
            end = one.datetime_complete.timestamp() if one.datetime_complete else job.deadline
            events.append(Event(trial=str(trial.number), at=start, share=0, config=knobs(named)))
            events += _evaluations(trial, start=start, end=end)
        best = run.best
        ended = [trial for trial in run.trials if trial.state in ("complete", "pruned")]
        return Outcome(
            config=best and knobs({k.rpartition(".")[2]: v for k, v in best.params.items()}),
            accuracy=best and best.value,
            known=len(ended),
            events=tuple(sorted(events, key=lambda event: event.at)),
            running=tuple(str(trial.number) for trial in run.trials if trial.state == "running"),
        )


def _evaluations(trial: TrialRun, *, start: float, end: float) -> Iterator[Event]:
    """Evaluations of a trial, placed by their seconds: the database stores no times of them."""
    curve = trial.curve
    # Evaluations of an earlier attempt are events of that attempt.
    before = trial.inherited
    examples, seconds = (before.examples, before.seconds) if before else (0, 0.0)
    own = [point for point in curve if point.examples > examples]
    total = curve[-1].seconds - seconds if curve else 0.0
    began = seconds
    for point in own:
        yield Event(
            trial=str(trial.number),
            at=start + (end - start) * ((point.seconds - began) / total if total else 1.0),
            share=point.index,
            examples=point.examples - examples,
            accuracy=point.accuracy,
            training=point.seconds - seconds,
            evaluating=trial.evaluation_seconds / len(own),
        )
        examples, seconds = point.examples, point.seconds


ARMS = {
    "hpo_mab_uniform": HpoMab(options=("--sampler", "uniform")),
    "hpo_mab_mab": HpoMab(options=("--sampler", "mab")),
    "hpo_mab_auto": HpoMab(options=("--sampler", "auto")),
    # Only the keys that the task needs.
    "hpo_mab_plain": HpoMab(options=()),
}

if __name__ == "__main__":
    main(ARMS)
