"""The verdict of a comparison in plain words."""

from __future__ import annotations

import math
from typing import Literal

from hpo_mab.advantage import Estimate
from hpo_mab.compare._records import ComparisonSummary, Contrast

Outcome = Literal["helps", "hurts", "is not distinguishable"]


def verdict(summary: ComparisonSummary) -> str:
    """One plain sentence for each arm against the reference, a line each.

    What decides is the first of these that has an interval: the test accuracy of the re-trained
    incumbents, the incumbents' validation accuracy after equal training examples (both need
    several seeds), the advantage over pairs of one configuration at the end of a trial. An arm
    helps or hurts where the whole interval lies on one side of zero.
    """
    if not summary.contrasts:
        return f"Only the arm '{summary.reference}' has been run: there is nothing to compare."
    return "\n".join(_sentence(summary, contrast) for contrast in summary.contrasts)


def outcome(contrast: Contrast) -> Outcome:
    """What the deciding measure of `verdict` says of one arm."""
    measure = _deciding(contrast)
    if measure.above(0.0):
        return "helps"
    return "hurts" if measure.below(0.0) else "is not distinguishable"


def _deciding(contrast: Contrast) -> Estimate:
    """The measure that decides: a difference of accuracies."""
    measures = [contrast.retrained_gain, contrast.gain["examples"], _paired_advantage(contrast)]
    known = [measure for measure in measures if measure is not None]
    return next((measure for measure in known if measure.bounded), known[0])


def _paired_advantage(contrast: Contrast) -> Estimate | None:
    """``D`` at the end of a trial."""
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


def _sentence(summary: ComparisonSummary, contrast: Contrast) -> str:
    found = outcome(contrast)
    against = {"helps": "compared with", "hurts": "compared with"}.get(found, "from")
    where = f" on {summary.data}" if summary.data else ""
    seeds = len(contrast.seeds)
    gains = [
        f"best validation accuracy at equal examples {_told(contrast.gain['examples'])}",
        f"at equal seconds {_told(contrast.gain['seconds'])}",
    ]
    paired = _paired_advantage(contrast)
    if paired is not None:
        gains.append(f"same configurations at the end of a trial {_told(paired)}")
    if contrast.retrained_gain is not None:
        gains.insert(0, f"re-trained test accuracy {_told(contrast.retrained_gain)}")
    return (
        f"{contrast.arm} {found} {against} {contrast.reference}{where}, at "
        f"{seeds} seed{'' if seeds == 1 else 's'} and {summary.trial_examples:,} examples a trial: "
        f"{', '.join(gains)}."
    )
