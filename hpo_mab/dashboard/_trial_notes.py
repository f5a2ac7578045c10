"""Notes on pruned trials: why each ended."""

from __future__ import annotations

import bisect
import collections
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from hpo_mab.storage import StudyRun, TrialRun


def pruning_notes(run: StudyRun) -> dict[int, str]:
    """Why each pruned trial of a study ended, in Markdown, by trial number.

    Args:
        run: The study.
    """
    earlier: dict[int, list[float]] = collections.defaultdict(list)
    notes = {}
    for trial in run.trials:
        if trial.state == "pruned":
            notes[trial.number] = _note(run, trial, earlier)
        for evaluation in trial.curve:
            bisect.insort(earlier[evaluation.index], evaluation.accuracy)
    return notes


def _note(run: StudyRun, trial: TrialRun, earlier: dict[int, list[float]]) -> str:
    reason = trial.attrs.get("reason")
    if not trial.curve:
        return f"**Pruned before its first evaluation.**\n\n{reason or ''}".strip()
    last = trial.curve[-1]
    total = run.spec.get("budget", {}).get("evaluations", "?")
    share = last.examples / run.trial_examples
    lines = [
        f"**Pruned at evaluation {last.index} of {total}**, after {last.examples:,} of "
        f"{run.trial_examples:,} training examples ({share:.0%}).",
        f"Validation accuracy there: {last.accuracy:.2%}. {_rank(last.accuracy, earlier[last.index])}",
    ]
    pruner = run.spec.get("pruner", {}).get("kind", "")
    lines.append(f"Why: {reason}" if reason else f"Why: the pruner (`{pruner}`) stopped it.")
    return "\n\n".join(lines)


def _rank(own: float, others: list[float]) -> str:
    """Where an accuracy stands among those of earlier trials at the same evaluation, sorted."""
    if not others:
        return "No earlier trial came as far."
    better = len(others) - bisect.bisect_right(others, own)
    return (
        f"Of the {len(others)} earlier trials that came as far, {better} were better there "
        f"(median {np.median(others):.2%}, best {others[-1]:.2%})."
    )
