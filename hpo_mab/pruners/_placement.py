"""Where evidence puts a rung."""

from __future__ import annotations

import dataclasses
import math

from hpo_mab.advantage import Evidence


@dataclasses.dataclass(frozen=True, slots=True)
class Placement:
    """Where a trial's rung lies.

    Attributes:
        step: Step at which it is decided.
        uniform: Step at which it lies under uniform training.
        equivalent: Uniform-equivalent budget of ``step``, in steps.
        evidence: Digest of the evidence that moved it; None if it is not moved.
    """

    step: int
    uniform: int
    equivalent: float
    evidence: str | None


def place(uniform: int, *, full: int | None, evidence: Evidence | None) -> Placement:
    """Where a rung is decided for a trial of the bandit.

    Args:
        uniform: Step of the rung under uniform training.
        full: Step that a full trial reports last; None if it is not known.
        evidence: What is known of the advantage.
    """
    unmoved = Placement(step=uniform, uniform=uniform, equivalent=uniform, evidence=None)
    if evidence is None or full is None or uniform > full:
        return unmoved
    known = evidence.rung(uniform / full)
    if known is None or not known.moved:
        return unmoved
    # A hair less, for shares are stored rounded.
    step = math.ceil(known.decided_at * full - 1e-3)
    if step >= uniform:
        return unmoved
    return Placement(
        step=step,
        uniform=uniform,
        equivalent=round(known.equivalent * full, 3),
        evidence=evidence.digest,
    )
