"""What commands print when they are done: summaries, comparisons, the next commands."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hpo_mab._attributes import AUTO, SAMPLER_KEY
from hpo_mab._errors import printable
from hpo_mab.compare._text import details_text, parameters, twins_text

if TYPE_CHECKING:
    from hpo_mab.compare import ComparisonSummary
    from hpo_mab.search import RunOutcome, StudySpec


class _Plain(Console):
    def render_str(self, text: str, **options: Any) -> Text:
        """A text as rich shows it; names of files and studies may hold control characters."""
        return super().render_str(printable(text), **options)


def console(*, stderr: bool = False) -> Console:
    """A console without markup, emoji, highlighting and control characters in texts.

    A styled text is printed with a style, or is a `rich.text.Text`, which needs `printable`.
    """
    return _Plain(stderr=stderr, markup=False, emoji=False, highlight=False)


def duration(seconds: float) -> str:
    """Seconds as a short text: ``8.3 s``, ``4 min 10 s``, ``2 h 5 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def print_summary(facts: dict[str, Any], steps: Sequence[tuple[str, str]]) -> None:
    """Print the best configuration, what was spent, what pruning saved, and what to do next.

    Args:
        facts: Of the run, see `run_facts`.
        steps: Commands that are suggested next, each with its purpose; none for a study that ends
            with this process.
    """
    out = console()
    if facts["interrupted"]:
        stored = " Finished trials are stored; the last command below continues." if steps else ""
        out.print(f"Interrupted.{stored}\n")
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for label, text in _summary_rows(facts):
        table.add_row(label, text)
    out.print(table)
    if steps:
        print_next(steps)


def compared_text(spec: StudySpec) -> str:
    """What ``hpo-mab compare`` compares a study with."""
    if spec.compare.arms:
        return "the arms of the definition"
    other = "the bandit" if spec.sampler.kind == "uniform" else "uniform sampling"
    unpruned = spec.compare.unpruned and spec.pruner.kind != "none"
    return f"the same study with {other}" + (" and without pruning" if unpruned else "")


def print_next(steps: Sequence[tuple[str, str]]) -> None:
    """Print the commands suggested next, each with its purpose."""
    out = console()
    out.print("\nNext:")
    for step, purpose in steps:
        line = Text.assemble(f"  {printable(step)}   ", (f"# {printable(purpose)}", "dim"))
        out.print(line, soft_wrap=True)


def warn_unpublished(problem: str) -> None:
    """Print on standard error why the dashboard's pages could not be updated; "" prints nothing."""
    if problem:
        print(
            "hpo-mab: notes and figures for the dashboard could not be written "
            f"({printable(problem)}). The studies are stored; the next 'hpo-mab "
            "dashboard' tries again.",
            file=sys.stderr,
        )


def run_facts(outcome: RunOutcome, spec: StudySpec, *, wall_seconds: float) -> dict[str, Any]:
    """What ``hpo-mab run`` prints, and what its ``--json`` writes."""
    from hpo_mab._results import Results

    run, best, weak = outcome.run, outcome.run.best, outcome.weak_rung
    results = Results(run.trials)
    return {
        "study": run.name,
        "sampler": spec.sampler.kind,
        "best": None
        if best is None
        else {
            "trial": best.number,
            "budgets": best.budgets,
            "sampler": best.attrs.get(SAMPLER_KEY),
            "validation_accuracy": best.value,
            "test_accuracy": outcome.test_accuracy,
            "params": dict(best.params),
        },
        "trials": results.counts(twins=True),
        "diverged": len(results.numbers_diverged),
        "twins": sum(results.counts(twins=True).values()) - sum(results.counts().values()),
        "examples": run.examples,
        "seconds": run.seconds,
        "evaluation_seconds": run.evaluation_seconds,
        "wall_seconds": wall_seconds,
        "examples_saved_by_pruning": run.saved_examples,
        "seconds_saved_by_pruning": run.saved_seconds,
        "weak_rung": weak and {**weak._asdict(), "tau": weak.tau.to_json()},
        "trial_examples": run.trial_examples,
        "auto": None if outcome.choice is None else outcome.choice.to_json(),
        "loop_reasons": list(outcome.notes),
        "interrupted": outcome.interrupted,
    }


def _summary_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    best, trials = facts["best"], facts["trials"]
    rows = [("Study", facts["study"])]
    if best is None:
        all_diverged = facts["diverged"] > 0 and facts["diverged"] == sum(trials.values())
        hint = "all diverged. Lower the learning rate, or look for NaN in the data"
        rows.append(("Best", f"no complete trial{f': {hint}' if all_diverged else ' yet'}"))
    else:
        accuracy = f"{best['validation_accuracy']:.2%} validation accuracy, trial {best['trial']}"
        accuracy += details_text(best["budgets"], best["sampler"])
        if best["test_accuracy"] is not None:
            accuracy += f"; {best['test_accuracy']:.2%} on the test set"
        rows.append(("Best", accuracy))
        rows.append(("", parameters(best["params"])))
    diverged = f" ({facts['diverged']} diverged)" if facts["diverged"] else ""
    counted = (
        f"{trials['complete']} complete, {trials['pruned']} pruned{diverged}, "
        f"{trials['fail']} failed{twins_text(facts['twins'])}"
    )
    rows += [("Trials", counted), *_spent_rows(facts)]
    if facts["auto"] is not None:
        auto = facts["auto"]
        verb = "took" if auto["source"] else "chose"
        rows.append(("Sampler", f"auto {verb} {auto['sampler']}: {auto['why']}"))
        if auto["twins"]:
            here, there = "on top of the study's trials", "in that study; this one held no race"
            text = (
                f"that took {auto['twins']} trainings, {auto['examples']:,} examples, "
                f"{duration(auto['seconds'])}, {there if auto['source'] else here}"
            )
            rows.append(("", text))
    elif facts["sampler"] == AUTO:
        rows.append(("Sampler", "auto has not chosen yet: the race is not over"))
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
        rows.append(("", "Evaluation took longer than training: set a lower budget.evaluations."))
    return rows


def _saved_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """What pruning saved; a pruned trial's seconds are estimated from its own pace."""
    saved, seconds = facts["examples_saved_by_pruning"], facts["seconds_saved_by_pruning"]
    if saved is None:
        return []
    if not saved:
        return [("Pruning", "saved nothing")]
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
        f"The first rung is evaluation {weak['step']} of {weak['full']}. It is not shown that "
        f"accuracies there rank the first {weak['trials']} trials as their final accuracies do "
        f"({tau}). --pruner hyperband also has later rungs."
    )
    return [("", text)]


_COLOURS = {"yes": "green", "no": "red", "cannot tell": "yellow"}


def print_result(summary: ComparisonSummary, *, verbose: bool = False) -> None:
    """Print tables, the essential ones or all, and below them the answers."""
    from hpo_mab.compare import answers, caveats, verdict
    from hpo_mab.compare._tables import answer_grid, essential_grids, grids, terminal_table

    out = console()
    for grid in grids(summary) if verbose else essential_grids(summary):
        out.print(terminal_table(grid))
        out.print()
    if not verbose and summary.contrasts:
        more = "differences, cost and, of pairs, advantage and fidelity"
        out.print(f"--verbose shows {more}.\n", style="dim")
    out.print("Verdict", style="bold")
    if not summary.contrasts:
        out.print(verdict(summary))
    for contrast in summary.contrasts:
        styles = [_COLOURS[one.reply] for one in answers(contrast)]
        out.print(terminal_table(answer_grid(summary, contrast), styles=styles))
        out.print()
    for line in caveats(summary):
        out.print(line)
