"""What ``hpo-mab run`` says at the end."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from hpo_mab.cli._console import console
from hpo_mab.cli._progress import duration
from hpo_mab.compare._words import parameter

if TYPE_CHECKING:
    from hpo_mab.dashboard import Published
    from hpo_mab.search import RunOutcome, StudySpec


def print_summary(
    outcome: RunOutcome, spec: StudySpec, *, dashboard: str, compare: str, go_on: str
) -> None:
    """Print the best configuration, what was spent, what pruning saved, and what to do next.

    Args:
        outcome: What came of the run.
        spec: The definition.
        dashboard: Command that opens the dashboard.
        compare: Command that compares the same study with uniform sampling.
        go_on: Command that continues the study.
    """
    out = console()
    facts = _facts(outcome, spec)
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for label, text in _rows(facts):
        table.add_row(label, text)
    if outcome.interrupted:
        out.print("Interrupted; finished trials are kept. The same command continues.\n")
    out.print(table)
    print_next(
        [
            (compare, "the same study against uniform sampling"),
            (dashboard, "explore it in the browser"),
            (go_on, "go on"),
        ]
    )


def print_next(steps: Sequence[tuple[str, str]]) -> None:
    """Print commands to give next, each with its purpose."""
    out = console()
    out.print("\nNext:")
    for step, purpose in steps:
        out.print(Text.assemble(f"  {step}   ", (f"# {purpose}", "dim")), soft_wrap=True)


def warn_unpublished(published: Published) -> None:
    """Say on standard error that the dashboard's pages are not up to date, if they are not."""
    if published.problem:
        print(
            "hpo-mab: the study is stored, but its notes and figures for the dashboard were not "
            f"written ({published.problem}). 'hpo-mab dashboard' tries again.",
            file=sys.stderr,
        )


def run_json(outcome: RunOutcome, spec: StudySpec) -> str:
    """The same facts as one JSON object."""
    return json.dumps(_facts(outcome, spec), indent=1)


def _facts(outcome: RunOutcome, spec: StudySpec) -> dict[str, Any]:
    from hpo_mab.search._plan import Plan

    run, best = outcome.run, outcome.run.best
    plan = Plan(run.trials)
    return {
        "study": run.name,
        "sampler": spec.sampler.kind,
        "best": None
        if best is None
        else {
            "trial": best.number,
            "validation_accuracy": best.value,
            "test_accuracy": outcome.test_accuracy,
            "params": dict(best.params),
        },
        "trials": plan.counts(twins=True),
        "twins": plan.twins,
        "examples": run.examples,
        "seconds": run.seconds,
        "examples_saved_by_pruning": run.saved_examples,
        "trial_examples": run.trial_examples,
        "auto": None if outcome.choice is None else outcome.choice.to_json(),
        "loop_reasons": list(outcome.loop_reasons),
        "interrupted": outcome.interrupted,
    }


def _rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    best, trials = facts["best"], facts["trials"]
    rows = [("Study", facts["study"])]
    if best is None:
        rows.append(("Best", "no trial is complete yet"))
    else:
        accuracy = f"{best['validation_accuracy']:.2%} validation accuracy, trial {best['trial']}"
        if best["test_accuracy"] is not None:
            accuracy += f"; {best['test_accuracy']:.2%} on the test set"
        rows.append(("Best", accuracy))
        rows.append(("", ", ".join(f"{k} = {parameter(v)}" for k, v in best["params"].items())))
    counted = f"{trials['complete']} complete, {trials['pruned']} pruned, {trials['fail']} failed"
    if facts["twins"]:
        counted += f"; {facts['twins']} are the pilot's, under uniform sampling"
    rows.append(("Trials", counted))
    if facts["examples"] is None:
        rows.append(("Spent", "not known: learning curves are missing"))
    else:
        spent = f"{facts['examples']:,} examples, {duration(facts['seconds'])} of training"
        rows.append(("Spent", spent))
    if facts["auto"] is not None:
        rows.append(("Sampler", f"auto chose {facts['auto']['sampler']}: {facts['auto']['why']}"))
    rows += [("Without CUDA graph", reason) for reason in facts["loop_reasons"]]
    saved = facts["examples_saved_by_pruning"]
    if saved is not None:
        share = saved / max(saved + facts["examples"], 1)
        rows.append(("Pruning", f"saved {saved:,} examples, {share:.0%} of an unpruned study"))
    return rows
