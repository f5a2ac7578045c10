"""What a comparison found, as plain records for JSON, and their means over seeds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from hpo_mab._errors import UnknownNameError, json_values
from hpo_mab.advantage import Estimate, mean_estimate

Currency = Literal["examples", "seconds"]
Target = Literal["reference", "common", "retrained"]
Final = Literal["reference", "own"]

CURRENCIES: tuple[Currency, ...] = ("examples", "seconds")
#: Coverage of all intervals of a comparison, that of `hpo_mab.advantage.mean_estimate`.
CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ArmSummary:
    """One arm over its seeds.

    Attributes:
        arm: Name of the arm.
        seeds: Seeds of its studies, increasing.
        best_by_seed: Validation accuracy of each study's incumbent; None without a complete trial.
        best: Mean of those, with its interval over seeds.
        best_median: Median of those; None if there are none.
        trials: Number of trials by state, all seeds together, without twins, interrupted attempts,
            lost ones that were repeated and trials that another one continues.
        examples: Training examples spent, all seeds together; None if a curve is missing.
        seconds: Training seconds spent, likewise.
        saved_examples: Training examples that pruned trials did not spend, likewise.
        saved_share: Those as a share of what the same trials would have spent unpruned.
        sampler_share: Share of the training seconds spent in the batch sampler, over seeds.
        retrained: Test accuracy of the incumbents trained again, over seeds (each seed's mean).
        retrained_diverged: How many of these trainings diverged; each counts as an accuracy of 0.
        finished_by_seed: Complete and pruned trials of each study.
    """

    arm: str
    seeds: tuple[int, ...]
    best_by_seed: tuple[float | None, ...]
    best: Estimate
    best_median: float | None
    trials: dict[str, int]
    examples: int | None
    seconds: float | None
    saved_examples: int | None
    saved_share: float
    sampler_share: Estimate
    retrained: Estimate | None = None
    retrained_diverged: int = 0
    finished_by_seed: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CostToTarget:
    """What an arm spends to reach an accuracy, over what the reference spends.

    Attributes:
        target: ``"reference"``: the reference's final incumbent accuracy, which includes its luck:
            an equal arm reaches it in half of the seeds only.
            ``"common"``: the lower of both final incumbent accuracies, which both reach. For equal
            arms, ratios above and below 1 are then equally likely. ``"retrained"``: the reference's
            re-trained test accuracy. Only final incumbents are re-trained, so the cost is what was
            spent until the final incumbent was found.
        currency: ``"examples"`` or ``"seconds"``.
        ratio: Geometric mean over seeds; a lower bound if some seed did not reach the target.
        seeds: The seeds compared.
        ratios: Ratio of each seed; for those that did not reach the target, all they spent over
            the reference's cost.
        reached: Whether the arm reached the target, by seed.
        p: Wilcoxon signed-rank p-value of the ratios' logarithms; None below 5 seeds, or if some
            seed did not reach the target, as its ratio is not known.
    """

    target: Target
    currency: Currency
    ratio: Estimate
    seeds: tuple[int, ...]
    ratios: tuple[float, ...]
    reached: tuple[bool, ...]
    p: float | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FidelityRow:
    """Agreement with a final ranking at one budget.

    The reference's early and final accuracies share noise: they are of the same trainings, while
    the arm was trained separately. So ``"reference"`` favours the reference, most at late budgets.
    ``"own"`` favours neither: each arm predicts the end of its own trainings, as pruning in a study
    does.

    Attributes:
        statistic: ``"kendall"``, ``"recall"`` or ``"regret"``.
        final: Whose final ranking: ``"reference"`` or each arm's ``"own"``.
        arm: The arm's statistic.
        reference: The reference's statistic.
        difference: The arm's minus the reference's, over the same configurations.
    """

    statistic: str
    final: Final
    arm: Estimate
    reference: Estimate
    difference: Estimate


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PairedRow:
    """Measurements on the pairs at one budget; see `hpo_mab.advantage`.

    Attributes:
        examples: Budget t, in training examples of one trial.
        advantage: ``D(t)`` at equal examples.
        advantage_p: Wilcoxon signed-rank p-value of the same differences; None below 5 pairs.
        acceleration: ``k(t)`` in examples.
        advantage_seconds: ``D`` at equal seconds, see `PairedCurves.in_seconds`.
        acceleration_seconds: ``k`` in seconds.
        fidelity: Agreement with the final ranking, by statistic.
    """

    examples: float
    advantage: Estimate
    advantage_p: float | None
    acceleration: Estimate
    advantage_seconds: Estimate
    acceleration_seconds: Estimate
    fidelity: tuple[FidelityRow, ...]

    def agreement(self, statistic: str, *, final: Final = "reference") -> FidelityRow:
        """The fidelity by one statistic.

        Raises:
            UnknownNameError: There is none of that statistic.
        """
        for row in self.fidelity:
            if (row.statistic, row.final) == (statistic, final):
                return row
        valid = (row.statistic for row in self.fidelity if row.final == final)
        raise UnknownNameError("statistic", statistic, valid)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """One arm against the reference, paired by seed.

    Attributes:
        arm: Name of the arm.
        reference: Name of the reference.
        seeds: Seeds both have.
        gain: Incumbent validation accuracy minus the reference's at equal spend, by currency.
            Equal spend is what the cheaper of the two studies spent in all.
        gain_p: Wilcoxon signed-rank p-values of the same; None below 5 seeds.
        seconds_per_example: Training seconds per example over the reference's, of all trials of the
            studies. Their configurations differ.
        examples: Training examples of its studies over those of the reference's; NaN if not known.
        cost: Costs to target.
        pairs: Number of pairs, see `hpo_mab.advantage.pair_curves`.
        pair_cost: Training seconds of the pairs over the reference's; NaN if not known.
        paired: Measurements on the pairs, by budget.
        retrained_gain: Re-trained test accuracy minus the reference's, over seeds.
        retrained_p: Wilcoxon signed-rank p-value of the same; None below 5 seeds.
        same_slots: Whether trials of both arms were trained in equally many slots, and by equally
            many processes. Where not, the arms' seconds measure these and not the samplers.
        same_hardware: Whether the studies of each seed began on equal processors with equally many
            threads; true where that is not known.
        diverged: Configurations that diverged or failed in this arm only, and in the reference
            only. They are not among the pairs that reached the end of a trial. Trials that
            `pair_curves` leaves out do not count.
        stopped: Configurations that a pruner stopped in one arm or both. The pairs left are a
            biased selection.
        differs: Keys of the definitions, other than the batch sampler's, that decide the curve of a
            trial and whose values differ.
    """

    arm: str
    reference: str
    seeds: tuple[int, ...]
    gain: dict[Currency, Estimate]
    gain_p: dict[Currency, float | None]
    seconds_per_example: Estimate
    cost: tuple[CostToTarget, ...]
    pairs: int
    paired: tuple[PairedRow, ...]
    retrained_gain: Estimate | None = None
    retrained_p: float | None = None
    same_slots: bool = True
    same_hardware: bool = True
    diverged: tuple[int, int] = (0, 0)
    stopped: int = 0
    examples: float = math.nan
    pair_cost: float = math.nan
    differs: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonSummary:
    """All arms, and each against the reference.

    Attributes:
        reference: Name of the reference arm.
        confidence: Coverage of all intervals.
        data: Name of the data set; empty if the definitions lack it.
        model: Name of the network, likewise.
        trial_examples: Budget of the longest unpruned trial, in examples.
        arms: One record an arm, the reference first, then by name.
        contrasts: One record an arm other than the reference, by name.
    """

    reference: str
    confidence: float
    data: str
    model: str
    trial_examples: int
    arms: tuple[ArmSummary, ...]
    contrasts: tuple[Contrast, ...]

    def to_json(self) -> dict[str, Any]:
        """The summary as JSON values; unbounded ends and missing numbers are None."""
        plain: dict[str, Any] = json_values(dataclasses.asdict(self))
        return plain


def geometric_mean(ratios: Sequence[float], *, censored: bool = False) -> Estimate:
    """Geometric mean of positive ratios, with the interval of `mean_estimate` on their logarithms.

    Args:
        ratios: One a seed.
        censored: Whether some ratios are lower bounds. The mean is then a lower bound, too, and
            its interval has no upper end.
    """
    # Of logarithms: a ratio of 2 and one of 1/2 then cancel each other.
    logs = mean_estimate(np.log(np.asarray(ratios, float)))
    # The end of a wide interval is too large for a float.
    with np.errstate(over="ignore"):
        value, low, high = (float(np.exp(end)) for end in (logs.value, logs.low, logs.high))
    return Estimate(
        value=value,
        low=low,
        high=math.inf if censored else high,
        n=logs.n,
        confidence=logs.confidence,
        censored=censored,
    )
