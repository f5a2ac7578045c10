"""Early-accuracy advantage D(t)."""

from __future__ import annotations

from hpo_mab.advantage._curves import PairedCurves
from hpo_mab.advantage._estimate import Estimate
from hpo_mab.advantage._interval import mean_estimate


def advantage(
    pairs: PairedCurves, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> list[Estimate]:
    """Advantage ``D(t)``: mean over pairs of ``bandit(t) - uniform(t)``.

    The interval is a bootstrap over pairs, chosen for its coverage with few pairs; see
    `mean_limits` for the measured figures. Where trials were stopped, ``n`` falls with ``t`` and
    the mean is over the pairs that both samplers took that far.

    Args:
        pairs: P pairs at T budgets.
        confidence: Coverage of the intervals, in (0, 1).
        resamples: Bootstrap resamples, at least 100.
        seed: Seed of the resampling.

    Returns:
        T estimates, differences of accuracies in [-1, 1].

    Raises:
        ArgumentError: ``confidence`` or ``resamples`` outside its bound.
    """
    return [
        mean_estimate(column, confidence=confidence, resamples=resamples, seed=seed)
        for column in pairs.difference.T
    ]
