"""Fidelity f(t): the agreement of the ranking at a short budget with the final ranking."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from hpo_mab._errors import ArgumentError, require
from hpo_mab.advantage._advantage import Estimate, check_resampling
from hpo_mab.advantage._pairs import Floats

#: Configurations above which a ranking by sorting is faster than one by comparing all pairs.
_MANY = 300


def kendall_tau(early: Floats, final: Floats) -> Floats:
    """Kendall's tau-b of each row (Kendall 1945), corrected for ties in either ranking.

    Args:
        early: First scores [R, K].
        final: Second scores [R, K].

    Returns:
        Coefficients in [-1, 1], [R]; NaN where one side is all ties.
    """
    if early.shape[1] > _MANY:
        from scipy import stats

        both = zip(early, final, strict=True)
        return np.asarray([stats.kendalltau(one, other).statistic for one, other in both])
    agree = np.zeros(len(early))
    untied_early = np.zeros(len(early))
    untied_final = np.zeros(len(early))
    # All pairs of configurations, one distance at a time: a table of all would need [R, K, K].
    for lag in range(1, early.shape[1]):
        one = np.sign(early[:, lag:] - early[:, :-lag])
        other = np.sign(final[:, lag:] - final[:, :-lag])
        agree += (one * other).sum(axis=1)
        untied_early += np.abs(one).sum(axis=1)
        untied_final += np.abs(other).sum(axis=1)
    return _ratio(agree, np.sqrt(untied_early * untied_final))


def top_recall(early: Floats, final: Floats, *, k: int) -> Floats:
    """Share of each row's ``k`` best early configurations that are among the ``k`` best at the end.

    Args:
        early: First scores [R, K].
        final: Second scores [R, K].
        k: How many, at least 1 and below K.

    Returns:
        Shares in [0, 1], [R]. A final score equal to the k-th best is among them; of early scores
        equal to the k-th best, the mean over all choices.
    """
    last_early, last_final = (-np.sort(-one, axis=1)[:, k - 1 : k] for one in (early, final))
    above, equal = early > last_early, early == last_early
    # Scores above the k-th best are chosen for certain; those equal to it share the places left.
    left = k - above.sum(axis=1, keepdims=True)
    chosen = above + equal * (left / equal.sum(axis=1, keepdims=True))
    return np.asarray((chosen * (final >= last_final)).sum(axis=1) / k, dtype=np.float64)


def choice_regret(early: Floats, final: Floats) -> Floats:
    """Final accuracy that each row loses by choosing the configuration that is best early.

    Args:
        early: First scores [R, K].
        final: Second scores [R, K].

    Returns:
        Regrets in the units of ``final``, at least 0, [R]; mean over ties for the early best.
    """
    favourite = early == early.max(axis=1, keepdims=True)
    chosen = (final * favourite).sum(axis=1) / favourite.sum(axis=1)
    return np.asarray(final.max(axis=1) - chosen, dtype=np.float64)


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    """Quotients; NaN where the denominator is 0."""
    ratio = np.full(len(numerator), np.nan)
    np.divide(numerator, denominator, out=ratio, where=denominator > 0)
    return ratio


Statistic = Literal["kendall", "recall", "regret"]
_Function = Callable[[Floats, Floats], Floats]

#: With fewer configurations the interval is the whole range of the statistic.
_FEWEST = 4
#: Statistics of resamples that differ by less are equal.
_ROUNDING = 1e-9


class FidelityComparison(NamedTuple):
    """Fidelities of two arms over the same configurations.

    Attributes:
        own: Fidelity of the first arm.
        other: Fidelity of the second arm.
        difference: ``own - other``, with a paired interval.
    """

    own: Estimate
    other: Estimate
    difference: Estimate


def fidelity(
    early: ArrayLike,
    final: ArrayLike,
    *,
    statistic: Statistic = "kendall",
    k: int = 3,
    confidence: float = 0.95,
    resamples: int = 2000,
) -> Estimate:
    """Agreement of accuracy at a short budget with final accuracy, over configurations.

    If ``final`` comes from the same trainings as ``early``, both share their noise. That favours
    such an arm over one that was trained separately.

    Args:
        early: Accuracy at the short budget [K]; NaN entries are left out.
        final: Accuracy under uniform sampling at full budget [K], likewise.
        statistic: ``"kendall"`` (tau-b), ``"recall"`` or ``"regret"``. Recall is the share of the
            early top k that is among the final top k. Regret is the final accuracy lost by choosing
            the early best.
        k: Size of the top for ``"recall"``, at least 1.
        confidence: Coverage of the interval, in (0, 1).
        resamples: Bootstrap resamples of configurations, at least 100.

    Returns:
        The statistic with a percentile bootstrap interval; for fewer than 4 configurations the
        whole range of the statistic. Rankings without discordant pairs do not vary over
        resamples: the interval then allows the share of discordant pairs that ``K // 2``
        independent pairs cannot rule out. Final accuracy against itself is 1 (regret 0) by
        definition, and the interval is that point.

        The percentile interval was chosen by simulation (600 repetitions a cell, nominal 95%,
        true tau 0.60 and 0.86, 10 to 40 configurations). It covers tau in 95 to 98% of samples and
        the top 3's recall in 96 to 100%; BCa covers the recall in 80 to 92%. Regret is hard to
        bound: 58 to 91%, rising with K; read its interval as a rough guide.

    Raises:
        ArgumentError: Lengths differ, or an unknown statistic, or an option outside its bound.
    """
    scores = _complete_rows(early, final)
    return _estimates(
        [(scores[:, 0], scores[:, 1])],
        statistic=statistic,
        k=k,
        confidence=confidence,
        resamples=resamples,
    )[0]


def compare_fidelity(
    early: ArrayLike,
    other: ArrayLike,
    final: ArrayLike,
    *,
    other_final: ArrayLike | None = None,
    statistic: Statistic = "kendall",
    k: int = 3,
    resamples: int = 2000,
) -> FidelityComparison:
    """Fidelity of ``early``, of ``other``, and the difference, over the same configurations.

    If ``final`` comes from the same trainings as ``other``, their shared noise favours ``other``.
    With ``other_final`` both arms share noise with their final accuracies.

    Args:
        early: Accuracy of one arm at a short budget [K]; NaN entries are left out.
        other: Accuracy of the other arm [K], at its own short budget, likewise.
        final: Accuracy under uniform sampling at full budget [K], likewise.
        other_final: Final accuracy that ``other`` is compared with [K]; default ``final``.
        statistic: As for `fidelity`.
        k: As for `fidelity`.
        resamples: Bootstrap resamples of configurations, the same for both arms; at least 100.

    Returns:
        All three. The difference has a paired bootstrap interval; for fewer than 4 configurations
        it is the whole range of differences. Where nothing varies, it is widened as in `fidelity`.
        If both sides are the same trainings, or both early accuracies the final ones, the
        difference is 0 by definition. Its interval is then that point.

    Raises:
        ArgumentError: Lengths differ, or an unknown statistic, or an option outside its bound.
    """
    scores = _complete_rows(early, other, final, final if other_final is None else other_final)
    own, others, difference = _estimates(
        [(scores[:, 0], scores[:, 2]), (scores[:, 1], scores[:, 3])],
        statistic=statistic,
        k=k,
        confidence=0.95,
        resamples=resamples,
    )
    return FidelityComparison(own=own, other=others, difference=difference)


def _complete_rows(*columns: ArrayLike) -> Floats:
    """Columns side by side, without the rows in which one is not finite, [K, columns]."""
    arrays = [np.asarray(column, dtype=np.float64) for column in columns]
    if any(array.ndim != 1 or array.shape != arrays[-1].shape for array in arrays):
        raise ArgumentError(
            "early and final must be one-dimensional and of one length, "
            f"got shapes {[list(array.shape) for array in arrays]}."
        )
    scores = np.stack(arrays, axis=1)
    return scores[np.isfinite(scores).all(axis=1)]


def _estimates(
    sides: Sequence[tuple[Floats, Floats]],
    *,
    statistic: Statistic,
    k: int,
    confidence: float,
    resamples: int,
) -> list[Estimate]:
    """Estimate of each side (early [K], final [K]) and, of two sides, of their difference."""
    check_resampling(confidence=confidence, resamples=resamples)
    size = len(sides[0][0])
    function = _statistic_function(statistic, k=k, size=size)
    rows = np.random.default_rng(0).integers(0, max(size, 1), (resamples, size))
    enough = size >= _FEWEST
    values = [float(function(e[None], f[None])[0]) if size >= 2 else math.nan for e, f in sides]
    draws = [function(e[rows], f[rows]) if enough else np.empty(0) for e, f in sides]
    supports = [_value_range(statistic, final) for _, final in sides]
    # If early and final accuracies are equal, the statistic is exact.
    exact = [enough and np.array_equal(early, final) for early, final in sides]
    if len(sides) == 2:
        (first, second), (arm, reference) = supports, sides
        values.append(values[0] - values[1])
        draws.append(draws[0] - draws[1])
        supports.append((first[0] - second[1], first[1] - second[0]))
        # The difference of two arms with the same trainings is exactly 0.
        same = enough and all(map(np.array_equal, arm, reference))
        exact.append(math.isfinite(values[2]) and (all(exact) or same))
    estimates = []
    for value, drawn, support, is_exact in zip(values, draws, supports, exact, strict=True):
        low, high = (value, value) if is_exact else _interval(drawn, size, support, confidence)
        estimates.append(Estimate(value=value, low=low, high=high, n=size, confidence=confidence))
    return estimates


def _statistic_function(statistic: Statistic, *, k: int, size: int) -> _Function:
    require(k >= 1, "k", "at least 1", k)
    functions: dict[str, _Function] = {
        "kendall": kendall_tau,
        "recall": functools.partial(top_recall, k=max(1, min(k, size - 1))),
        "regret": choice_regret,
    }
    if statistic not in functions:
        raise ArgumentError(f"statistic must be one of {sorted(functions)}, got '{statistic}'.")
    return functions[statistic]


def _value_range(statistic: Statistic, final: Floats) -> tuple[float, float]:
    """Range of a statistic's values."""
    if statistic == "regret":
        return 0.0, float(np.ptp(final)) if len(final) else math.inf
    return (0.0, 1.0) if statistic == "recall" else (-1.0, 1.0)


def _interval(
    drawn: Floats, size: int, support: tuple[float, float], confidence: float
) -> tuple[float, float]:
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return support
    tails = [(1.0 - confidence) / 2.0, (1.0 + confidence) / 2.0]
    low, high = (float(end) for end in np.quantile(drawn, tails))
    if high - low > _ROUNDING:
        return low, high
    # All resamples agree. If pairs are discordant with probability p, none of size // 2 independent
    # ones is with probability (1 - p)^(size // 2). The interval is widened by the p at which this
    # is the tail: larger ones are ruled out by the data (exact binomial bound).
    unseen = (support[1] - support[0]) * (1.0 - tails[0] ** (1.0 / (size // 2)))
    return max(support[0], low - unseen), min(support[1], high + unseen)
