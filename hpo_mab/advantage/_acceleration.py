"""Acceleration k(t) and the uniform-equivalent budget e(t)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hpo_mab._errors import ArgumentError
from hpo_mab.advantage._curves import PairedCurves, interpolate
from hpo_mab.advantage._estimate import Estimate
from hpo_mab.advantage._interval import check_resampling, mean_limits

Floats = NDArray[np.float64]

#: Budgets tried between two evaluations; crossings between them are interpolated.
_REFINEMENT = 16


def acceleration(
    pairs: PairedCurves,
    *,
    chance: float = 0.0,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> list[Estimate]:
    """Acceleration ``k(t)``: the budget at which uniform reaches what the bandit has at t, over t.

    The estimate inverts uniform's mean curve, made monotone by isotonic regression and read
    straight in ``log t`` between evaluations and a little below the first one (`interpolate`).
    The interval inverts a test: it holds every budget ``b / t`` at which the mean over pairs of
    ``bandit(t) - uniform(b)`` is not distinguishable from zero (bootstrap over pairs,
    `mean_limits`). It thus covers as `advantage` does, however few the pairs, and needs no
    special case where uniform gets nowhere near. With budgets that double and curves that
    flatten, straight lines between evaluations overstate a ``k`` of 1.5 by 2 to 3% (simulated);
    at ``k`` of 1 and 2, where the crossing falls on an evaluation, there is no such bias.

    Where uniform never gets there, ``censored`` is set, ``value`` is what was observed ("at
    least") and ``high`` is infinite. At the last budget no ``k`` above 1 can be seen.

    Only pairs whose reference curve runs to the last budget count, so that all budgets speak of
    the same configurations.

    Args:
        pairs: P pairs at T budgets.
        chance: Accuracy before training; matters only for ``k`` far below 1 at the first budget.
        confidence: Coverage of the intervals, in (0, 1).
        resamples: Bootstrap resamples, at least 100.
        seed: Seed of the resampling.

    Returns:
        T estimates, ratios of budgets.

    Raises:
        ArgumentError: ``confidence`` or ``resamples`` outside its bound.
    """
    check_resampling(confidence=confidence, resamples=resamples)
    estimates = []
    for column, budget in enumerate(pairs.budgets):
        rows = pairs.complete & np.isfinite(pairs.bandit[:, column])
        reached, uniform = pairs.bandit[rows, column], pairs.uniform[rows]
        if not rows.any():
            estimates.append(_unknown(confidence))
            continue
        grid = _fine_grid(pairs.budgets)
        curves = interpolate(pairs.budgets, uniform, grid, chance=chance)
        low, high = mean_limits(
            reached[:, None] - curves, confidence=confidence, resamples=resamples, seed=seed
        )
        point, censored = _first_reached(
            pairs.budgets, uniform.mean(axis=0), float(reached.mean()), grid, chance=chance
        )
        first = min(_first_crossing(grid, low), point)
        last = math.inf if censored else max(_last_crossing(grid, high), point)
        estimates.append(
            Estimate(
                value=float(point / budget),
                low=float(first / budget),
                high=float(last / budget),
                n=int(rows.sum()),
                confidence=confidence,
                censored=censored,
            )
        )
    return estimates


def equivalent_budget(budgets: ArrayLike, accelerations: Sequence[Estimate]) -> Floats:
    """Uniform-equivalent budget ``e(t)``: ``t k(t)`` where the interval of k is above 1, else t.

    A censored ``k`` counts at the bound that was observed.

    Args:
        budgets: Budgets t [T], in any currency.
        accelerations: ``k(t)``, T of them.

    Returns:
        ``e(t)`` [T], at least ``t``, in the same currency.

    Raises:
        ArgumentError: The two differ in length.
    """
    spent = np.asarray(budgets, dtype=np.float64)
    if spent.shape != (len(accelerations),):
        raise ArgumentError(
            f"accelerations must be as many as budgets, {spent.size}, got {len(accelerations)}."
        )
    factors = [k.value if k.above(1.0) else 1.0 for k in accelerations]
    return np.asarray(spent * factors, dtype=np.float64)


def _unknown(confidence: float) -> Estimate:
    return Estimate(value=math.nan, low=0.0, high=math.inf, n=0, confidence=confidence)


def _fine_grid(budgets: Floats) -> Floats:
    """Budgets from 0 to the last, `_REFINEMENT` to each interval between evaluations."""
    head = np.linspace(0.0, budgets[0], _REFINEMENT, endpoint=False)
    steps = np.linspace(0.0, 1.0, _REFINEMENT, endpoint=False)
    logs = np.log(budgets)
    between = np.exp(logs[:-1, None] + np.diff(logs)[:, None] * steps)
    # The budgets themselves exactly, so that equal curves differ by nothing there.
    between[:, 0] = budgets[:-1]
    return np.concatenate([head, between.ravel(), budgets[-1:]])


def _first_reached(
    budgets: Floats, mean: Floats, target: float, grid: Floats, *, chance: float
) -> tuple[float, bool]:
    """Budget at which the monotone mean curve first reaches a target; whether it never does."""
    from sklearn.isotonic import isotonic_regression

    monotone = np.asarray(isotonic_regression(mean, y_min=chance), dtype=np.float64)
    # Averaging two curves that agree may differ in the last digit.
    target -= 1e-12
    if target > monotone[-1]:
        return float(budgets[-1]), True
    curve = interpolate(budgets, monotone, grid, chance=chance)
    right = int(np.argmax(curve >= target))
    if right == 0:
        return 0.0, False
    return _crossing(grid, curve - target, right), False


def _first_crossing(grid: Floats, low: Floats) -> float:
    """Smallest budget at which uniform is not surely behind; the last one if it always is."""
    behind = low <= 0.0
    if not behind.any():
        return float(grid[-1])
    right = int(np.argmax(behind))
    return float(grid[0]) if right == 0 else _crossing(grid, low, right)


def _last_crossing(grid: Floats, high: Floats) -> float:
    """Largest budget at which uniform is not surely ahead; infinite if that is the last one."""
    open_ = np.flatnonzero(high >= 0.0)
    if len(open_) and open_[-1] == len(grid) - 1:
        return math.inf
    return _crossing(grid, high, int(open_[-1]) + 1) if len(open_) else 0.0


def _crossing(grid: Floats, values: Floats, right: int) -> float:
    """Where values change sign between ``right - 1`` and ``right``; the wider end if unknown."""
    before, after = float(values[right - 1]), float(values[right])
    if math.isinf(after):
        return float(grid[right - 1])
    if math.isinf(before):
        return float(grid[right])
    share = before / (before - after)
    return float(grid[right - 1] + (grid[right] - grid[right - 1]) * share)
