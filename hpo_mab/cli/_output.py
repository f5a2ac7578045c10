"""What commands print and write: progress, summaries, comparisons, files."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column, Table
from rich.text import Text

from hpo_mab.compare._text import length_text, parameter

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

    from hpo_mab._plan import Plan
    from hpo_mab.compare import ComparisonSummary
    from hpo_mab.dashboard import Published
    from hpo_mab.search import RunOutcome, StudySpec
    from hpo_mab.storage import CurveStore


def console(*, stderr: bool = False) -> Console:
    """A console without markup, emoji and highlighting in texts.

    A styled text is a `rich.text.Text`, or is printed with a style.

    Args:
        stderr: Whether to print to standard error.
    """
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


_SECONDS_BETWEEN_LINES = 10.0
#: A trial that runs for longer than the first shows its progress, at the interval of the second.
_SECONDS_OF_A_LONG_TRIAL, _SECONDS_BETWEEN_UPDATES = 10.0, 1.0


class StudyProgress:
    """Shows trials done, pruned and failed, the best value, the rate and the time left.

    Between the ends of long trials it shows how far the running ones are. An object of this class
    is a callback for `optuna.Study.optimize` and a context manager.

    Args:
        trials: Trials the study should have.
        label: What is shown before the bar.
        quiet: Show nothing.
        curves: Where the study's curves are: its total budget counts for the time left.
    """

    def __init__(
        self, *, trials: int, label: str, quiet: bool = False, curves: CurveStore | None = None
    ) -> None:
        self._trials = trials
        self._label = label
        self._quiet = quiet
        # Without output the database need not be read.
        self._curves = None if quiet else curves
        self._console = console(stderr=True)
        self._live: Progress | None = None
        self._task: TaskID | None = None
        self._trial_task = TaskID(0)
        self._began = self._last_line = self._last_end = time.monotonic()
        self._last_update = -math.inf
        self._done_before: int | None = None
        #: When the first trial ended, and the share of the study's total budget spent by then.
        self._spent_first: tuple[float, float] | None = None
        self._state = f"0/{trials} trials"
        self._ended: set[int] = set()
        #: When each running trial was first seen, and the share of its budget spent by then.
        self._seen: dict[int, tuple[float, float]] = {}

    def __enter__(self) -> Self:
        if not self._quiet and self._console.is_terminal:
            # The name has its own line: at 80 columns there is no room for it before the bar.
            self._console.print(self._label, style="bold", soft_wrap=True)
            self._live = Progress(
                BarColumn(bar_width=24, table_column=Column(min_width=8)),
                TextColumn("{task.description}"),
                console=self._console,
            )
            self._live.start()
            self._task = self._live.add_task("first trial running", total=self._trials)
            self._trial_task = self._live.add_task("", total=1.0, visible=False)
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Show the study's state after a trial."""
        from hpo_mab._plan import Plan

        plan = Plan(trials := study.get_trials(deepcopy=False))
        done = plan.finished
        if self._done_before is None:
            # This trial is the first that ends in this process.
            self._done_before = done - 1
        self._state = self._describe(study, plan)
        self._last_end = time.monotonic()
        self._ended = {each.number for each in trials if each.state.is_finished()}
        self._seen.pop(trial.number, None)
        if self._live is not None and self._task is not None:
            completed = min(done, self._trials)
            self._live.update(self._task, completed=completed, description=self._state)
            self._live.update(self._trial_task, visible=False)
        elif not self._quiet and self._is_time_for_a_line(done):
            self._console.print(f"{self._label}: {self._state}", soft_wrap=True)

    def running(self, shares: Mapping[int, float]) -> None:
        """Show how far running trials are, where they take long.

        Args:
            shares: The share of its budget that each has spent, by number.
        """
        now = time.monotonic()
        for number, share in shares.items():
            self._seen.setdefault(number, (now, share))
        long_ago = now - self._last_end >= _SECONDS_OF_A_LONG_TRIAL
        if self._quiet or not shares or not long_ago:
            return
        if now - self._last_update < _SECONDS_BETWEEN_UPDATES:
            return
        self._last_update = now
        text = self._describe_running(shares, now)
        if self._live is not None:
            # Another bar, because the study's line has no room for it.
            furthest = max(shares.values())
            self._live.update(self._trial_task, visible=True, completed=furthest, description=text)
        elif self._is_time_for_a_line(0):
            self._console.print(f"{self._label}: {self._state}; {text}", soft_wrap=True)

    def _describe_running(self, shares: Mapping[int, float], now: float) -> str:
        number, share = max(shares.items(), key=lambda item: item[1])
        text = f"trial {number} at {share:.0%}"
        if number in self._ended:  # The best one.
            text = f"training trial {number} again for its test accuracy, {share:.0%}"
        if len(shares) > 1:
            text = f"{len(shares)} trials running, {text}"
        since, at_first = self._seen[number]
        if share > at_first:
            # Seconds of a whole trial at the pace since it was first seen.
            whole = (now - since) / (share - at_first)
            text += f", {duration(whole * (1 - share))} left of it"
            if self._done_before is None and len(shares) == 1:
                text += f", up to {duration(whole * self._trials)} for all"
        return text

    def _describe(self, study: optuna.Study, plan: Plan) -> str:
        counts, done = plan.counts(), plan.finished
        # The value of a pruned trial is its last report, which is not a final accuracy.
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
            # Wall time by trials of all workers, so it is the pace of them together.
            each = (time.monotonic() - self._began) / new
            left = min(each * (self._trials - done), self._budget_left(study))
            parts += [f"{60 / max(each, 1e-9):.3g} per minute", f"{duration(left)} left"]
        return ", ".join(parts)

    def _budget_left(self, study: optuna.Study) -> float:
        """Seconds until the study's total budget is spent, at the pace so far."""
        from hpo_mab.search._claim import Target

        if self._curves is None:
            return math.inf
        now, spent = time.monotonic(), Target.load(study).share_spent(study, self._curves)
        self._spent_first = self._spent_first or (now, spent)
        # Since the first trial ended here: what was spent before has another pace.
        since, before = self._spent_first
        return (
            max(1 - spent, 0.0) * (now - since) / (spent - before) if spent > before else math.inf
        )

    def _is_time_for_a_line(self, done: int) -> bool:
        now = time.monotonic()
        if done < self._trials and now - self._last_line < _SECONDS_BETWEEN_LINES:
            return False
        self._last_line = now
        return True


class _DataLines(logging.Handler):
    """Collects the log lines about loaded data sets, and shows each once."""

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
    """Show the composition of the data sets loaded in this context, each line once.

    Yields a function that shows it. The end of the context also shows it, except after an error,
    which must be the only line.
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


def print_summary(
    outcome: RunOutcome,
    spec: StudySpec,
    *,
    wall_seconds: float,
    dashboard: str,
    compare: str,
    confirm: str,
    go_on: str,
) -> None:
    """Print the best configuration, what was spent, what pruning saved, and what to do next.

    Args:
        outcome: Result of the run.
        spec: The definition.
        wall_seconds: Wall time of the command.
        dashboard: Command that opens the dashboard.
        compare: Command that compares the same study with uniform sampling.
        confirm: Command that trains its best configurations again.
        go_on: Command that continues the study.
    """
    out = console()
    facts = _run_facts(outcome, spec, wall_seconds=wall_seconds)
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for label, text in _summary_rows(facts):
        table.add_row(label, text)
    if outcome.interrupted:
        out.print("Interrupted. Finished trials are stored; the same command continues.\n")
    out.print(table)
    steps = [
        (compare, "the same study with uniform sampling" + _unpruned_text(spec)),
        (dashboard, "notes and figures in the browser"),
        (go_on, "continue the study"),
    ]
    if facts["best"] is not None and not outcome.interrupted:
        steps.insert(2, (confirm, "is the best trial the best again, with other seeds?"))
    print_next(steps)


def _unpruned_text(spec: StudySpec) -> str:
    return " and without pruning" if spec.compare.unpruned and not spec.compare.arms else ""


def print_next(steps: Sequence[tuple[str, str]]) -> None:
    """Print the commands suggested next, each with its purpose."""
    out = console()
    out.print("\nNext:")
    for step, purpose in steps:
        out.print(Text.assemble(f"  {step}   ", (f"# {purpose}", "dim")), soft_wrap=True)


def warn_unpublished(published: Published) -> None:
    """Print on standard error why the dashboard's pages could not be updated, if so."""
    if published.problem:
        print(
            "hpo-mab: the study is stored; its notes and figures for the dashboard could not be "
            f"written ({published.problem}). 'hpo-mab dashboard' tries again.",
            file=sys.stderr,
        )


def run_json(outcome: RunOutcome, spec: StudySpec, *, wall_seconds: float) -> str:
    """The same facts as one JSON object."""
    return json.dumps(_run_facts(outcome, spec, wall_seconds=wall_seconds), indent=1)


def _run_facts(outcome: RunOutcome, spec: StudySpec, *, wall_seconds: float) -> dict[str, Any]:
    from hpo_mab._plan import Plan

    run, best, weak = outcome.run, outcome.run.best, outcome.weak_rung
    plan = Plan(run.trials)
    return {
        "study": run.name,
        "sampler": spec.sampler.kind,
        "best": None
        if best is None
        else {
            "trial": best.number,
            "budgets": best.budgets,
            "validation_accuracy": best.value,
            "test_accuracy": outcome.test_accuracy,
            "params": dict(best.params),
        },
        "trials": plan.counts(twins=True),
        "twins": plan.twins,
        "examples": run.examples,
        "seconds": run.seconds,
        "evaluation_seconds": run.evaluation_seconds,
        "wall_seconds": wall_seconds,
        "examples_saved_by_pruning": run.saved_examples,
        "seconds_saved_by_pruning": run.saved_seconds,
        "weak_rung": weak and {**weak._asdict(), "tau": weak.tau.to_json()},
        "trial_examples": run.trial_examples,
        "auto": None if outcome.choice is None else outcome.choice.to_json(),
        "loop_reasons": list(outcome.loop_reasons),
        "interrupted": outcome.interrupted,
    }


def _summary_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    best, trials = facts["best"], facts["trials"]
    rows = [("Study", facts["study"])]
    if best is None:
        rows.append(("Best", "no complete trial yet"))
    else:
        accuracy = f"{best['validation_accuracy']:.2%} validation accuracy, trial {best['trial']}"
        accuracy += length_text(best["budgets"])
        if best["test_accuracy"] is not None:
            accuracy += f"; {best['test_accuracy']:.2%} on the test set"
        rows.append(("Best", accuracy))
        rows.append(("", ", ".join(f"{k} = {parameter(v)}" for k, v in best["params"].items())))
    counted = f"{trials['complete']} complete, {trials['pruned']} pruned, {trials['fail']} failed"
    if facts["twins"]:
        counted += f"; {facts['twins']} of them repeat a configuration under another sampler"
    rows += [("Trials", counted), *_spent_rows(facts)]
    if facts["auto"] is not None:
        auto = facts["auto"]
        verb = "took" if auto["source"] else "chose"
        rows.append(("Sampler", f"auto {verb} {auto['sampler']}: {auto['why']}"))
        if auto["twins"]:
            here, there = "on top of the study's trials", "there; this study held no race"
            text = (
                f"that took {auto['twins']} trainings, {auto['examples']:,} examples, "
                f"{duration(auto['seconds'])}, {there if auto['source'] else here}"
            )
            rows.append(("", text))
    rows += [("Training", reason) for reason in facts["loop_reasons"]]
    return [*rows, *_saved_rows(facts)]


def _spent_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    if facts["examples"] is None:
        return [("Spent", "unknown: learning curves are missing")]
    seconds, evaluation = facts["seconds"], facts["evaluation_seconds"]
    rows = [
        ("Spent", f"{facts['examples']:,} training examples"),
        (
            "Time",
            f"{duration(seconds)} of training and {duration(evaluation)} of evaluation, all "
            f"trials together; this command took {duration(facts['wall_seconds'])}",
        ),
    ]
    if evaluation > seconds:
        rows.append(("", "Evaluation took longer than training: lower budget.evaluations."))
    return rows


def _saved_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """What pruning saved; a pruned trial's seconds are estimated from its own pace."""
    saved, seconds = facts["examples_saved_by_pruning"], facts["seconds_saved_by_pruning"]
    if saved is None:
        return []
    if not saved:
        return [("Pruning", "saved nothing: no trial was pruned")]
    examples_share = saved / (saved + facts["examples"])
    # Trials that all diverged before their first evaluation have no pace.
    seconds_share = seconds / ((seconds + facts["seconds"]) or 1.0)
    text = (
        f"saved {saved:,} training examples ({examples_share:.0%}) and {duration(seconds)} of "
        f"training ({seconds_share:.0%}), against the same trials unpruned"
    )
    return [("Pruning", text), *_weak_rows(facts["weak_rung"])]


def _weak_rows(weak: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    if weak is None:
        return []
    tau = "Kendall's tau {value:.2f}, 80% interval {low:.2f} to {high:.2f}".format(**weak["tau"])
    text = (
        f"It began at evaluation {weak['step']} of {weak['full']}, which is not shown to rank the "
        f"first {weak['trials']} trials ({tau}). --pruner hyperband stops some trials later."
    )
    return [("", text)]


_COLOURS = {"yes": "green", "no": "red", "cannot tell": "yellow"}


def print_result(summary: ComparisonSummary, *, verbose: bool = False) -> None:
    """Print tables, the essential ones or all, and below them the answers."""
    from hpo_mab.compare import answers, caveats, comparison_tables, verdict
    from hpo_mab.compare._tables import answer_grid, terminal_table

    out = console()
    for table in comparison_tables(summary, essential=not verbose):
        out.print(table)
        out.print()
    if not verbose and any(contrast.pairs for contrast in summary.contrasts):
        out.print("--verbose shows cost, advantage and fidelity by budget.\n", style="dim")
    out.print("Verdict", style="bold")
    if not summary.contrasts:
        out.print(verdict(summary))
    for contrast in summary.contrasts:
        styles = [_COLOURS[one.reply] for one in answers(contrast)]
        out.print(terminal_table(answer_grid(summary, contrast), styles=styles))
        out.print()
    for line in caveats(summary):
        out.print(line)
