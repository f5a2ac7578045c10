"""Figures in words, the same on the terminal and in reports."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from hpo_mab.advantage import Estimate

if TYPE_CHECKING:
    from hpo_mab.storage import StudyRun


def percent(estimate: Estimate, *, digits: int = 1) -> str:
    """A share as ``value [low, high]`` in percent or points."""
    return _shown(estimate, 100.0, f".{digits}f")


def points(estimate: Estimate) -> str:
    """A difference of shares as signed points, to a tenth."""
    return _shown(estimate, 100.0, "+.1f")


def ratio(estimate: Estimate) -> str:
    """A ratio, marked where it is a lower bound."""
    return _shown(estimate, 1.0, ".2f")


def coefficient(estimate: Estimate) -> str:
    """A coefficient in [-1, 1]."""
    return _shown(estimate, 1.0, ".2f")


def parameter(value: Any) -> str:
    """A parameter's value, to four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def value_only(shown: str) -> str:
    """A figure without its interval."""
    return shown.split(" [")[0]


def unbounded(estimate: Estimate) -> bool:
    """Whether the interval says nothing: no upper end, and none below or that of all ratios."""
    return estimate.low in (-math.inf, 0.0) and math.isinf(estimate.high)


def p_value(value: float | None) -> str:
    """A p-value; a dash where there are too few observations for one."""
    if value is None:
        return "-"
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def weights_evaluated(runs: Iterable[StudyRun]) -> str:
    """Which weights the accuracies along the curves of studies are of."""
    points = [point for run in runs for trial in run.trials for point in trial.curve]
    averaged = [point.index for point in points if point.averaged]
    trained = [point.index for point in points if not point.averaged]
    if not points:
        return "no weights yet"
    if not averaged:
        return "trained weights"
    if not trained:
        return "averaged weights"
    if max(averaged) < min(trained):
        return f"averaged weights up to evaluation {max(averaged)}, trained weights after it"
    return (
        f"averaged weights at {len(averaged):,} of {len(points):,} evaluations, "
        "trained weights at the others"
    )


def _shown(estimate: Estimate, scale: float, form: str) -> str:
    if math.isnan(estimate.value):
        return "-"
    value = f"{'>= ' if estimate.censored else ''}{estimate.value * scale:{form}}"
    if unbounded(estimate):
        return value
    low, high = (
        f"{end * scale:{form}}" if math.isfinite(end) else ("-inf" if end < 0 else "inf")
        for end in (estimate.low, estimate.high)
    )
    return f"{value} [{low}, {high}]"
