"""Figures in words, the same on the terminal and in reports."""

from __future__ import annotations

import math
from typing import Any

from hpo_mab.advantage import Estimate


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
