"""Notes on pruned trials: why each ended."""

from __future__ import annotations

import bisect
import collections
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from hpo_mab._attributes import PRUNED_KEY, REASON_KEY

if TYPE_CHECKING:
    from hpo_mab.storage import StudyRun, TrialRun
    from hpo_mab.training import Evaluation


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
    reason = trial.attrs.get(REASON_KEY)
    if not trial.curve:
        return f"**Pruned before its first evaluation.**\n\n{reason or ''}".strip()
    last = trial.curve[-1]
    total = run.spec.get("budget", {}).get("evaluations", "?")
    share = last.examples / run.trial_examples
    lines = [
        f"**Pruned at evaluation {last.index} of {total}**, after {last.examples:,} of "
        f"{run.trial_examples:,} training examples ({share:.0%}).",
        f"Validation accuracy there{_weights(last)}: {last.accuracy:.2%}. "
        + _rank(last.accuracy, earlier[last.index]),
    ]
    lines.append(f"Why: {_why(run, trial)}")
    return "\n\n".join(lines)


def _weights(last: Evaluation) -> str:
    return " of averaged weights" if last.averaged else ""


def _why(run: StudyRun, trial: TrialRun) -> str:
    because = trial.attrs.get(PRUNED_KEY)
    if isinstance(because, Mapping) and {"rung", "step", "threshold"} <= because.keys():
        return _rung(because)
    kind = run.spec.get("pruner", {}).get("kind", "")
    return str(trial.attrs.get(REASON_KEY) or f"the pruner (`{kind}`) stopped it.")


def _rung(because: Mapping[str, Any]) -> str:
    """What `hpo_mab.AdvantagePruner` decided by."""
    if because.get("value", 0.0) is None:
        return (
            f"its value at evaluation {because['step']}, rung {because['rung']}, was not a number."
        )
    threshold = because["threshold"]
    needed = "" if threshold is None else f"; {float(threshold):.2%} was needed to go on"
    text = (
        f"rung {because['rung']} at evaluation {because['step']}, as one of "
        f"{because.get('competitors', '?')} trials judged there so far{needed}. "
        "The first configurations of a study are never pruned, and are not judged."
    )
    if because.get("evidence"):
        text += (
            f" Evidence `{because['evidence']}` moved this rung: without it, it would lie at "
            f"evaluation {because.get('uniform_step')}. Evaluation {because['step']} is worth "
            f"number {float(because.get('equivalent_step') or 0.0):.1f} of uniform training."
        )
    return text


def _rank(own: float, others: list[float]) -> str:
    """Where an accuracy stands among those of earlier trials at the same evaluation, sorted."""
    if not others:
        return "No earlier trial came as far."
    better = len(others) - bisect.bisect_right(others, own)
    return (
        f"Of the {len(others)} earlier trials that came as far, {better} were better there "
        f"(median {np.median(others):.2%}, best {others[-1]:.2%})."
    )
