"""The verdict of a comparison in plain words."""

from __future__ import annotations

import math
from typing import Literal

from hpo_mab.advantage import Estimate
from hpo_mab.compare._records import ComparisonSummary, Contrast

Outcome = Literal["helps", "hurts", "is not distinguishable"]
#: Does the same budget give a better model; does a study find better hyperparameters.
Question = Literal["model", "hyperparameters"]


def verdict(summary: ComparisonSummary) -> str:
    """What was found of each arm against the reference, in plain words, a line an arm.

    Each question has one measure, whatever else is known. Whether the same budget gives a better
    model: the difference of validation accuracies over pairs of one configuration, at the end of a
    trial. Whether a study finds better hyperparameters: the difference of the test accuracies of
    the re-trained incumbents, over seeds. An arm helps or hurts where the whole interval lies on
    one side of zero.
    """
    if not summary.contrasts:
        return f"Only the arm '{summary.reference}' has been run: there is nothing to compare."
    return "\n".join(_line(summary, contrast) for contrast in summary.contrasts)


def outcome(contrast: Contrast, question: Question = "model") -> Outcome:
    """What the measure of a question says of one arm; see `verdict`."""
    measure = _measure(contrast, question)
    if measure is None or not measure.bounded:
        return "is not distinguishable"
    if measure.above(0.0):
        return "helps"
    return "hurts" if measure.below(0.0) else "is not distinguishable"


def _measure(contrast: Contrast, question: Question) -> Estimate | None:
    """The difference of accuracies that answers a question; None if it was not measured."""
    if question == "hyperparameters":
        return contrast.retrained_gain
    return contrast.paired[-1].advantage if contrast.paired else None


def _told(estimate: Estimate) -> str:
    """A difference of accuracies in points with its interval, in words."""
    if math.isnan(estimate.value):
        return "unknown"
    value = f"{100 * estimate.value:+.2f} points"
    if not estimate.bounded:
        return f"{value} (no interval, n = {estimate.n})"
    return (
        f"{value} ({estimate.confidence:.0%} interval {100 * estimate.low:+.2f} to "
        f"{100 * estimate.high:+.2f}, n = {estimate.n})"
    )


_FOUND = {
    "helps": "It finds better hyperparameters",
    "hurts": "It finds worse hyperparameters",
    "is not distinguishable": "The hyperparameters found are not distinguishable",
}


def _line(summary: ComparisonSummary, contrast: Contrast) -> str:
    found = outcome(contrast)
    against = {"helps": "compared with", "hurts": "compared with"}.get(found, "from")
    where = f" on {summary.data}" if summary.data else ""
    seeds = len(contrast.seeds)
    model, search = _measure(contrast, "model"), _measure(contrast, "hyperparameters")
    return (
        f"{contrast.arm} {found} {against} {contrast.reference}{where}, at "
        f"{seeds} seed{'' if seeds == 1 else 's'} and {summary.trial_examples:,} examples a trial: "
        + (
            "no configuration was trained in both arms. "
            if model is None
            else f"same configurations at the end of a trial {_told(model)}. "
        )
        + (
            ""
            if search is None
            else f"{_FOUND[outcome(contrast, 'hyperparameters')]}: "
            f"re-trained test accuracy {_told(search)}. "
        )
        + f"Best validation accuracy at equal examples {_told(contrast.gain['examples'])}, "
        f"at equal seconds {_told(contrast.gain['seconds'])}."
    )
