"""A study's data, and its progress: a live bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column

from hpo_mab.cli._console import console

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

_SECONDS_BETWEEN_LINES = 10.0


class StudyProgress:
    """Shows trials done, pruned and failed, the best value, the rate and the time left.

    An object of this class is a callback for `optuna.Study.optimize` and a context manager.

    Args:
        trials: Trials the study should have.
        label: What is shown before the bar.
        quiet: Show nothing.
    """

    def __init__(self, *, trials: int, label: str, quiet: bool = False) -> None:
        self._trials = trials
        self._label = label
        self._quiet = quiet
        self._console = console(stderr=True)
        self._live: Progress | None = None
        self._task: TaskID | None = None
        self._began = self._last_line = time.monotonic()
        self._done_before: int | None = None

    def __enter__(self) -> Self:
        if not self._quiet and self._console.is_terminal:
            # The name has a line of its own: at 80 columns it would push the bar off.
            self._console.print(self._label, style="bold", soft_wrap=True)
            self._live = Progress(
                BarColumn(bar_width=24, table_column=Column(min_width=8)),
                TextColumn("{task.description}"),
                console=self._console,
            )
            self._live.start()
            self._task = self._live.add_task("the first trial runs", total=self._trials)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Show where the study stands after a trial."""
        from hpo_mab.search._plan import Plan

        plan = Plan(study.get_trials(deepcopy=False))
        counts, done = plan.counts(), plan.finished
        if self._done_before is None:
            self._done_before = done - 1
        state = self._describe(study, counts, done)
        if self._live is not None and self._task is not None:
            self._live.update(self._task, completed=min(done, self._trials), description=state)
        elif not self._quiet and self._is_time_for_a_line(done):
            self._console.print(f"{self._label}: {state}", soft_wrap=True)

    def _describe(self, study: optuna.Study, counts: dict[str, int], done: int) -> str:
        # Optuna gives a pruned trial its last report as value: that is no result.
        complete = [
            value
            for trial in study.get_trials(deepcopy=False)
            if trial.state.name == "COMPLETE" and (value := trial.value) is not None
        ]
        parts = [f"{done}/{self._trials} trials", f"{counts['pruned']} pruned"]
        if counts["fail"]:
            parts.append(f"{counts['fail']} failed")
        if complete:
            parts.append(f"best {max(complete):.2%}")
        new = done - (self._done_before or 0)
        if new > 0 and done < self._trials:
            each = (time.monotonic() - self._began) / new
            parts += [f"{60 / max(each, 1e-9):.3g} a minute"]
            parts += [f"{duration(each * (self._trials - done))} left"]
        return ", ".join(parts)

    def _is_time_for_a_line(self, done: int) -> bool:
        now = time.monotonic()
        if done < self._trials and now - self._last_line < _SECONDS_BETWEEN_LINES:
            return False
        self._last_line = now
        return True


class _DataLines(logging.Handler):
    """Keeps what is logged of the data sets loaded, and shows each line once."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._console = console(stderr=True)
        self._waiting: list[str] = []
        self._shown: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        self._waiting.append(record.getMessage())

    def show(self) -> None:
        for line in self._waiting:
            if line not in self._shown:
                self._console.print(line, soft_wrap=True)
                self._shown.add(line)
        self._waiting.clear()


@contextlib.contextmanager
def shown_data(*, quiet: bool) -> Iterator[Callable[[], None]]:
    """Show what the data sets loaded in this context consist of, each line once.

    Gives a function that shows it; the end of the context does so too, but not an error: a mistake
    in a definition is one line.
    """
    log, lines = logging.getLogger("hpo_mab.data"), _DataLines()
    before = log.level
    if not quiet:
        log.setLevel(logging.INFO)
        log.addHandler(lines)
    try:
        yield lines.show
        lines.show()
    finally:
        log.removeHandler(lines)
        log.setLevel(before)


def duration(seconds: float) -> str:
    """Seconds as a short text: ``8.3 s``, ``4 min 10 s``, ``2 h 5 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
