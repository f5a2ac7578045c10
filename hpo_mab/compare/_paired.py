"""What the pairs of two arms say, budget by budget."""

from __future__ import annotations

import math

import numpy as np

from hpo_mab.advantage import (
    PairedCurves,
    Statistic,
    acceleration,
    advantage,
    compare_fidelity,
    mean_estimate,
)
from hpo_mab.compare._records import FidelityRow, Final, PairedRow
from hpo_mab.compare._statistics import signed_rank_p

_STATISTICS: tuple[Statistic, ...] = ("kendall", "spearman", "recall", "regret")
_RESAMPLES = 1000


def paired_rows(pairs: PairedCurves, *, confidence: float, seed: int) -> tuple[PairedRow, ...]:
    """One row a budget.

    Args:
        pairs: The pairs, with their seconds.
        confidence: Coverage of the intervals.
        seed: Seed of the resampling.
    """
    clock = pairs.in_seconds()
    columns = zip(
        pairs.budgets,
        advantage(pairs, confidence=confidence, seed=seed),
        acceleration(pairs, confidence=confidence, seed=seed),
        advantage(clock, confidence=confidence, seed=seed),
        acceleration(clock, confidence=confidence, seed=seed),
        strict=True,
    )
    best = _best_quarter(pairs)
    return tuple(
        PairedRow(
            examples=float(budget),
            advantage=ahead,
            advantage_p=signed_rank_p(pairs.difference[:, column]),
            advantage_best=mean_estimate(
                pairs.difference[best, column], confidence=confidence, seed=seed
            ),
            acceleration=faster,
            advantage_seconds=ahead_seconds,
            acceleration_seconds=faster_seconds,
            fidelity=_fidelities(pairs, column, confidence=confidence, seed=seed),
            advantage_seconds_p=signed_rank_p(clock.difference[:, column]),
        )
        for column, (budget, ahead, faster, ahead_seconds, faster_seconds) in enumerate(columns)
    )


def _best_quarter(pairs: PairedCurves) -> list[int]:
    """The quarter of the pairs that ends best, by the mean of both arms: neither's luck decides."""
    if not len(pairs.budgets):
        return []
    final = (pairs.bandit[:, -1] + pairs.uniform[:, -1]) / 2
    ended = np.flatnonzero(np.isfinite(final))
    order = ended[np.argsort(-final[ended], kind="stable")]
    return [int(row) for row in order[: math.ceil(len(order) / 4)]]


def _fidelities(
    pairs: PairedCurves, column: int, *, confidence: float, seed: int
) -> tuple[FidelityRow, ...]:
    """Fidelity by every statistic to the reference's final, and by tau to each arm's own."""
    finals = {"reference": pairs.uniform[:, -1], "own": pairs.bandit[:, -1]}
    # Both arms on the configurations that both took to this budget, or they rank different sets.
    seen = np.isfinite(pairs.difference[:, column])
    own = np.where(seen, pairs.bandit[:, column], np.nan)
    other = np.where(seen, pairs.uniform[:, column], np.nan)

    def row(statistic: Statistic, final: Final) -> FidelityRow:
        found = compare_fidelity(
            own,
            other,
            finals[final],
            other_final=finals["reference"],
            statistic=statistic,
            confidence=confidence,
            resamples=_RESAMPLES,
            seed=seed,
        )
        return FidelityRow(
            statistic=statistic,
            final=final,
            arm=found.own,
            reference=found.other,
            difference=found.difference,
        )

    return (*(row(statistic, "reference") for statistic in _STATISTICS), row("kendall", "own"))
