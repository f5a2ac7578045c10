"""False prunings: pruned trials that would have ended at the top."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from hpo_mab._attributes import REASON_KEY
from hpo_mab._errors import ArgumentError
from hpo_mab.advantage import Estimate
from hpo_mab.search._recorded import train_recorded

if TYPE_CHECKING:
    from hpo_mab.search import StudyRunner
    from hpo_mab.storage import StudyRun, TrialRun


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FalsePrunings:
    """What a sample of pruned trials would have come to.

    Attributes:
        share: Share of pruned trials that would have ended in the top, with Wilson's interval.
        top: How many count as the top.
        threshold: Final accuracy that a trial needed for the top.
        finished: Final validation accuracy of the trials finished, by trial number.
        pruned: Trials that the pruner had stopped, from which the sample was drawn.
    """

    share: Estimate
    top: int
    threshold: float
    finished: dict[int, float]
    pruned: int

    def to_json(self) -> dict[str, Any]:
        """The figures as JSON values."""
        return {**dataclasses.asdict(self), "share": self.share.to_json()}


def false_prunings(
    runner: StudyRunner,
    run: StudyRun,
    *,
    sample: int = 10,
    top: int = 3,
    confidence: float = 0.95,
    seed: int = 0,
) -> FalsePrunings:
    """Train a sample of pruned trials to their end, as they would have gone on.

    A trial's training follows from its slot, so the finished one is the pruned one continued. It
    counts as falsely pruned if its final accuracy exceeds the ``top``-th best of the study.
    Diverged trials were not the pruner's doing and are left out.

    Args:
        runner: The study's runner.
        run: The study.
        sample: Trials to finish at most, at least 1; all if there are no more.
        top: How many trials count as the top, at least 1.
        confidence: Coverage of the interval, in (0, 1).
        seed: Seed of the sample.

    Raises:
        ArgumentError: An argument outside its bound, fewer complete trials than ``top``, or no
            pruned ones.
    """
    for name, value in (("sample", sample), ("top", top)):
        if value < 1:
            raise ArgumentError(f"{name} must be at least 1, got {value}.")
    complete = sorted((t.value for t in run.trials if t.value is not None), reverse=True)
    pruned = [t for t in run.trials if t.state == "pruned" and REASON_KEY not in t.attrs]
    if len(complete) < top or not pruned:
        raise ArgumentError(
            f"false prunings need at least {top} complete trials and a pruned one, "
            f"got {len(complete)} and {len(pruned)}."
        )
    order = np.random.default_rng(seed).permutation(len(pruned))[:sample]
    finished = {pruned[i].number: _finish(runner, pruned[i]) for i in sorted(order)}
    threshold = complete[top - 1]
    wrong = sum(value > threshold for value in finished.values())
    return FalsePrunings(
        share=_share(wrong, len(finished), confidence),
        top=top,
        threshold=threshold,
        finished=finished,
        pruned=len(pruned),
    )


def _finish(runner: StudyRunner, trial: TrialRun) -> float:
    """Final validation accuracy of a pruned trial."""
    with train_recorded(runner.objective, trial) as training:
        *_, last = training.evaluations
    return float(last.accuracy)


def _share(count: int, of: int, confidence: float) -> Estimate:
    from scipy import stats

    interval = stats.binomtest(count, of).proportion_ci(confidence, method="wilson")
    return Estimate(
        value=count / of,
        low=float(interval.low),
        high=float(interval.high),
        n=of,
        confidence=confidence,
    )
