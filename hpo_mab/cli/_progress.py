"""What commands show while they run: the progress of a study, and the data that were loaded."""

from __future__ import annotations

import contextlib
import datetime
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Self

from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column

from hpo_mab.cli._output import console, duration
from hpo_mab.search._observer import Observer

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

    from hpo_mab._results import Results
    from hpo_mab.storage._curves import CurveStore

_SECONDS_BETWEEN_LINES = 10.0
#: Reading all trials takes a few ms, and many short trials may end in a second.
_SECONDS_BETWEEN_STATES = 0.2
#: A trial that runs longer shows its own progress.
_SECONDS_OF_A_LONG_TRIAL = 10.0
#: Seconds between two updates of a long trial's progress.
_SECONDS_BETWEEN_UPDATES = 1.0


class StudyProgress(Observer):
    """Shows trials done, pruned and failed, the best value, the rate and the time left.

    Between the ends of long trials it shows how far the running ones are. An object of this class
    is an observer of a run and a context manager.

    Args:
        trials: Trials the study should have.
        label: What is shown before the bar.
        quiet: Show nothing.
        curves: The storage's learning curves, from which the share of the total budget spent is
            computed; None ignores that budget in the time left.
    """

    def __init__(
        self,
        *,
        trials: int,
        label: str,
        quiet: bool = False,
        curves: CurveStore | None = None,
    ) -> None:
        self._trials = trials
        self._label = label
        self._quiet = quiet
        self._curves = curves
        self._console = console(stderr=True)
        self._live: Progress | None = None
        self._task = self._trial_task = TaskID(0)
        self._began = self._last_line = self._last_end = time.monotonic()
        self._last_update = self._last_state = -math.inf
        #: The study, if a trial has ended since its state was shown.
        self._changed: optuna.Study | None = None
        self._began_at = datetime.datetime.now()
        self._done_before: int | None = None
        #: The most trials that were done at the time of a line.
        self._done = 0
        #: When the first trial ended, and the share of the study's total budget spent by then.
        self._spent_first: tuple[float, float] | None = None
        self._state = "no new trial has ended yet"
        #: When each running trial was first seen, and the share of its budget spent by then.
        self._seen: dict[int, tuple[float, float]] = {}

    def __enter__(self) -> Self:
        if not self._quiet and self._console.is_interactive:
            # The name has its own line: at 80 columns there is no room for it before the bar.
            self._console.print(self._label, style="bold", soft_wrap=True)
            self._live = Progress(
                BarColumn(bar_width=24, table_column=Column(min_width=8)),
                TextColumn("{task.description}"),
                console=self._console,
            )
            self._live.start()
            self._task = self._live.add_task(self._state, total=self._trials)
            self._trial_task = self._live.add_task("", total=1.0, visible=False)
        return self

    def __exit__(self, *error: object) -> None:
        try:
            # After an error the database might fail again.
            if not any(error):
                self._show_changed()
        finally:
            if self._live is not None:
                self._live.stop()

    def ended(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Show the study's state after a trial, now or a little later."""
        if self._quiet:
            return
        self._changed = study
        self._last_end = time.monotonic()
        self._seen.pop(trial.number, None)
        if self._last_end - self._last_state >= _SECONDS_BETWEEN_STATES:
            self._show_changed()

    def over(self, study: optuna.Study) -> None:
        """Show the study's state at the end, also if no trial has ended in this process."""
        self._changed = None if self._quiet else study

    def _show_changed(self) -> None:
        """Show the study's state if a trial has ended since it was shown."""
        from hpo_mab._results import Results
        from hpo_mab.search._target import StudyTarget

        study, self._changed = self._changed, None
        if study is None:
            return
        results = Results(trials := study.get_trials(deepcopy=False))
        if self._curves is not None:
            # Another command may have raised it.
            self._trials = max(self._trials, StudyTarget.load(study).trials)
        done = results.finished
        if self._done_before is None:
            # Several trials may have ended together by now, here or in other processes.
            began = self._began_at
            earlier = [t for t in trials if t.datetime_complete and t.datetime_complete < began]
            self._done_before = Results(earlier).finished
        self._state = self._describe(study, trials, results)
        self._last_state = time.monotonic()
        if self._live is not None:
            completed = min(done, self._trials)
            self._live.update(
                self._task, total=self._trials, completed=completed, description=self._state
            )
            self._live.update(self._trial_task, visible=False)
        elif self._is_time_for_a_line(done):
            self._console.print(f"{self._label}: {self._state}", soft_wrap=True)

    def running(self, shares: Mapping[int, float], *, again: bool = False) -> None:
        """Show how far running trials are, where they take long.

        Args:
            shares: The share of its budget that each has spent, by number.
            again: Whether it is the best trial, trained again for its test accuracy.
        """
        if self._quiet:
            return
        now = time.monotonic()
        for number, share in shares.items():
            self._seen.setdefault(number, (now, share))
        if now - self._last_state >= _SECONDS_BETWEEN_STATES:
            self._show_changed()
        if not shares or now - self._last_end < _SECONDS_OF_A_LONG_TRIAL:
            return
        if now - self._last_update < _SECONDS_BETWEEN_UPDATES:
            return
        self._last_update = now
        text = self._describe_running(shares, now, again=again)
        if self._live is not None:
            # Another bar, because the study's line has no room for it.
            furthest = max(shares.values())
            self._live.update(self._trial_task, visible=True, completed=furthest, description=text)
        elif self._is_time_for_a_line(0):
            self._console.print(f"{self._label}: {self._state}; {text}", soft_wrap=True)

    def testing(self, shares: Mapping[int, float]) -> None:
        """Show how far the best trial is, which is trained again for its test accuracy."""
        self.running(shares, again=True)

    def _describe_running(self, shares: Mapping[int, float], now: float, *, again: bool) -> str:
        number, share = max(shares.items(), key=lambda item: item[1])
        text = f"trial {number} at {share:.0%}"
        if again:
            text = f"training trial {number} again for its test accuracy, {share:.0%}"
        if len(shares) > 1:
            text = f"{len(shares)} trials running, {text}"
        since, at_first = self._seen[number]
        if share > at_first:
            # Seconds of a whole trial at the pace since it was first seen.
            whole = (now - since) / (share - at_first)
            text += f", {duration(whole * (1 - share))} left of it"
        return text

    def _describe(
        self, study: optuna.Study, trials: Sequence[FrozenTrial], results: Results
    ) -> str:
        counts, done = results.counts(), results.finished
        # The value of a pruned trial is its last report, which is not a final accuracy.
        complete = [trial.value or 0.0 for trial in trials if trial.state.name == "COMPLETE"]
        parts = [f"{done}/{self._trials} trials", f"{counts['pruned']} pruned"]
        if counts["fail"]:
            parts.append(f"{counts['fail']} failed")
        if complete:
            parts.append(f"best {max(complete):.2%}")
        new, left = done - (self._done_before or 0), max(self._trials - done, 0)
        by_trials = 0.0 if left == 0 else math.inf
        if new > 0 and left > 0:
            # Wall time by trials of all workers, so it is the pace of them together.
            seconds_each = (time.monotonic() - self._began) / new
            parts.append(f"{60 / max(seconds_each, 1e-9):.3g} per minute")
            by_trials = seconds_each * left
        seconds = self._seconds_left(study, by_trials)
        if 0 < seconds < math.inf:
            parts.append(f"{duration(seconds)} left")
        return ", ".join(parts)

    def _seconds_left(self, study: optuna.Study, by_trials: float) -> float:
        """Seconds until the study is done at the pace so far; infinite if that is not known.

        Args:
            study: The study.
            by_trials: Seconds until all its trials are done.
        """
        from hpo_mab.search._target import StudyTarget

        if self._curves is None:
            return by_trials
        target = StudyTarget.load(study)
        now, spent = time.monotonic(), target.share_spent(study, self._curves)
        self._spent_first = self._spent_first or (now, spent)
        # Since the first trial ended here: what was spent before has another pace.
        since, before = self._spent_first
        budget = math.inf
        if spent > before:
            budget = max(1 - spent, 0.0) * (now - since) / (spent - before)
        # Of trials that were paused, how many will continue is not known.
        only_paused = target.continues(study) and by_trials == 0
        return budget if only_paused or target.spends_all(study) else min(budget, by_trials)

    def _is_time_for_a_line(self, done: int) -> bool:
        now = time.monotonic()
        # Once: paused and complete trials may continue after that.
        reached = self._done < self._trials <= done
        self._done = max(done, self._done)
        if not reached and now - self._last_line < _SECONDS_BETWEEN_LINES:
            return False
        self._last_line = now
        return True


class _DataLines(logging.Handler):
    """Collects the log lines about loaded data sets, and shows each once; warnings at once."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._console = console(stderr=True)
        self._waiting: list[str] = []
        self._shown: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            # The progress of a data set that is slow to read.
            self._console.print(record.getMessage(), soft_wrap=True)
        else:
            self._waiting.append(record.getMessage())

    def show(self) -> None:
        for line in self._waiting:
            if line not in self._shown:
                self._console.print(line, soft_wrap=True)
                self._shown.add(line)
        self._waiting.clear()


@contextlib.contextmanager
def data_lines(*, quiet: bool) -> Iterator[_DataLines]:
    """Show the composition of the data sets loaded in this context, each line once.

    They are shown by ``show`` and at the end of the context, except after an error, which must be
    the only line.
    """
    log, lines = logging.getLogger("hpo_mab.data"), _DataLines()
    before = log.level
    # Without a handler, Python prints warnings.
    log.setLevel(logging.ERROR if quiet else logging.INFO)
    if not quiet:
        log.addHandler(lines)
    try:
        yield lines
        lines.show()
    finally:
        log.removeHandler(lines)
        log.setLevel(before)
