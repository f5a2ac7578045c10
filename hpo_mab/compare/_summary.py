"""The summary of a comparison's runs: incumbents, cost to target, pairs of arms at each budget."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from hpo_mab._attributes import REASON_KEY, STACK_KEY, unlike
from hpo_mab._errors import ArgumentError, UnknownNameError
from hpo_mab._plan import FINISHED, OPEN, Plan
from hpo_mab.advantage import (
    Estimate,
    PairedCurves,
    Statistic,
    acceleration,
    advantage,
    compare_fidelity,
    mean_estimate,
    pair_curves,
)
from hpo_mab.advantage._pairs import (
    Floats,
    compares_nothing,
    refuse_other_budgets,
    same_configuration,
    sampler_of,
)
from hpo_mab.compare._records import (
    CONFIDENCE,
    CURRENCIES,
    ArmSummary,
    ComparisonSummary,
    Contrast,
    CostToTarget,
    Currency,
    FidelityRow,
    Final,
    PairedRow,
    Target,
    geometric_mean,
    signed_rank_p,
)

if TYPE_CHECKING:
    from hpo_mab.storage import StudyRun, TrialRun


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class IncumbentCurve:
    """Best validation accuracy so far, a step at each complete trial.

    Attributes:
        spent: What the study had spent when each complete trial finished [n], increasing.
        accuracy: Accuracy of the incumbent from then on [n], increasing.
        total: What the study spent in all; NaN if that is not known.

    Examples:
        >>> from pathlib import Path
        >>> from hpo_mab.compare import incumbent_curve, read_record
        >>> record = read_record(Path("studies/fashion_mnist/pairs.json"))
        >>> curve = incumbent_curve(record.runs[0])
        >>> bool(curve.at(curve.total) == curve.accuracy[-1])
        True
    """

    spent: Floats
    accuracy: Floats
    total: float

    def at(self, spent: ArrayLike) -> Floats:
        """Accuracy of the incumbent at a spend; NaN before the first complete trial."""
        position = np.searchsorted(self.spent, np.asarray(spent, dtype=np.float64), side="right")
        # Position 0 is before the first complete trial.
        return np.concatenate([[np.nan], self.accuracy])[position]

    def first_reaching(self, accuracy: float) -> float:
        """Spend at which the incumbent first has an accuracy; infinite if it never does."""
        reached = self.accuracy >= accuracy
        return float(self.spent[np.argmax(reached)]) if reached.any() else math.inf


def incumbent_curve(run: StudyRun, currency: Currency = "examples") -> IncumbentCurve:
    """Best final accuracy so far against the cumulative spend of all trials.

    Only final accuracies of complete trials count: only these models had the whole schedule. Pruned
    and failed trials count as spend. Trials are taken in order of number, as one worker runs them.
    If curves are missing, the spend is not known, and there is no curve.

    Args:
        run: The study.
        currency: ``"examples"`` or ``"seconds"`` of training.

    Raises:
        UnknownNameError: An unknown currency.
    """
    if currency not in CURRENCIES:
        raise UnknownNameError("currency", currency, CURRENCIES)
    trials = [] if run.missing_curves else sorted(run.trials, key=lambda trial: trial.number)
    # Without what a resumed attempt took over from an earlier one, which counts there.
    own = [t.own_examples if currency == "examples" else t.own_seconds for t in trials]
    values = [math.nan if trial.value is None else trial.value for trial in trials]
    spent = np.cumsum(np.asarray(own, dtype=np.float64))
    finished = np.isfinite(np.asarray(values, dtype=np.float64))
    accuracy = np.maximum.accumulate(np.asarray(values, dtype=np.float64)[finished])
    return IncumbentCurve(
        spent=spent[finished],
        accuracy=accuracy,
        total=math.nan if run.missing_curves else float(spent[-1]) if len(spent) else 0.0,
    )


Runs = Mapping[int, "StudyRun"]
_Costs = tuple[float, float, bool]


def costs_to_target(arm: Runs, reference: Runs) -> tuple[CostToTarget, ...]:
    """Every cost to target that the runs define; see `CostToTarget`."""
    found = []
    for target in ("reference", "common", "retrained"):
        for currency in CURRENCIES:
            costs = {
                key: cost
                for key in sorted(arm.keys() & reference.keys())
                if (cost := _cost(target, arm[key], reference[key], currency))
            }
            if costs:
                found.append(_cost_row(target, currency, costs))
    return tuple(found)


def _cost_row(target: Target, currency: Currency, costs: Mapping[int, _Costs]) -> CostToTarget:
    ratios = tuple(own / other for own, other, _ in costs.values())
    reached = tuple(got for _, _, got in costs.values())
    return CostToTarget(
        target=target,
        currency=currency,
        ratio=geometric_mean(ratios, censored=not all(reached)),
        seeds=tuple(costs),
        ratios=ratios,
        reached=reached,
        p=signed_rank_p(np.log(ratios)) if all(reached) else None,
    )


def _cost(target: Target, arm: StudyRun, reference: StudyRun, currency: Currency) -> _Costs | None:
    """Own cost, the reference's cost, and whether the arm reached the target; None if undefined."""
    own, other = incumbent_curve(arm, currency), incumbent_curve(reference, currency)
    # An arm without a complete trial has not reached the reference's accuracy.
    if not len(other.accuracy) or (target != "reference" and not len(own.accuracy)):
        return None
    wanted = theirs = float(other.accuracy[-1])
    if target == "common":
        wanted = theirs = min(wanted, float(own.accuracy[-1]))
    elif target == "retrained":
        mine, needed = _score(arm), _score(reference)
        if math.isnan(mine - needed):
            return None
        # Only the final incumbent was re-trained: its cost is what was spent until it was found.
        wanted = float(own.accuracy[-1]) if mine >= needed else math.inf
    spent, cost = own.first_reaching(wanted), other.first_reaching(theirs)
    reached = math.isfinite(spent)
    # An arm that did not reach the target needs at least all that it has spent.
    spent = spent if reached else own.total
    return (spent, cost, reached) if spent > 0.0 and cost > 0.0 else None


def _score(run: StudyRun) -> float:
    """Mean test accuracy of a study's re-trainings, which share one configuration; or NaN."""
    return float(np.mean(run.retrained)) if run.retrained else math.nan


_STATISTICS: tuple[Statistic, ...] = ("kendall", "recall", "regret")
_RESAMPLES = 1000


def paired_rows(pairs: PairedCurves) -> tuple[PairedRow, ...]:
    """One row a budget, of pairs with their seconds."""
    # The same pairs, with the seconds of the reference as budget.
    clock = pairs.in_seconds()
    columns = zip(
        pairs.budgets,
        advantage(pairs),
        acceleration(pairs),
        advantage(clock),
        acceleration(clock),
        strict=True,
    )
    best = _best_quarter(pairs)
    return tuple(
        PairedRow(
            examples=float(budget),
            advantage=ahead,
            advantage_p=signed_rank_p(pairs.difference[:, column]),
            advantage_best=mean_estimate(pairs.difference[best, column]),
            acceleration=faster,
            advantage_seconds=ahead_seconds,
            acceleration_seconds=faster_seconds,
            fidelity=_fidelities(pairs, column),
        )
        for column, (budget, ahead, faster, ahead_seconds, faster_seconds) in enumerate(columns)
    )


def _best_quarter(pairs: PairedCurves) -> list[int]:
    """The quarter of the pairs that ends best, by the mean of both arms."""
    if not len(pairs.budgets):
        return []
    final = (pairs.bandit[:, -1] + pairs.uniform[:, -1]) / 2
    ended = np.flatnonzero(np.isfinite(final))
    order = ended[np.argsort(-final[ended], kind="stable")]
    return [int(row) for row in order[: math.ceil(len(order) / 4)]]


def _fidelities(pairs: PairedCurves, column: int) -> tuple[FidelityRow, ...]:
    """Fidelity to the reference's final ranking by each statistic, and to each arm's own by tau."""
    finals = {"reference": pairs.uniform[:, -1], "own": pairs.bandit[:, -1]}

    def row(statistic: Statistic, final: Final) -> FidelityRow:
        found = compare_fidelity(
            pairs.bandit[:, column],
            pairs.uniform[:, column],
            finals[final],
            other_final=finals["reference"],
            statistic=statistic,
            # Kendall's tau of a thousand pairs takes milliseconds a resample.
            resamples=max(200, min(_RESAMPLES, 200 * _RESAMPLES // max(len(pairs), 1))),
        )
        return FidelityRow(
            statistic=statistic,
            final=final,
            arm=found.own,
            reference=found.other,
            difference=found.difference,
        )

    return (*(row(statistic, "reference") for statistic in _STATISTICS), row("kendall", "own"))


def summarise(runs: Sequence[StudyRun], *, reference: str = "uniform") -> ComparisonSummary:
    """Summarise a comparison: every arm, and every arm against the reference, paired by seed.

    Args:
        runs: The studies of any arms and seeds; an arm may lack some seeds.
        reference: Arm that the others are compared with.

    Raises:
        ArgumentError: No runs, two of one arm and seed, or trials of different budgets.
        UnknownNameError: No run is of the reference arm.
    """
    if not runs:
        raise ArgumentError("runs must hold at least one study, got none.")
    by_arm: dict[str, dict[int, StudyRun]] = collections.defaultdict(dict)
    for run in runs:
        if run.seed in by_arm[run.arm]:
            raise ArgumentError(f"runs holds arm '{run.arm}', seed {run.seed} twice.")
        by_arm[run.arm][run.seed] = run
    if reference not in by_arm:
        raise UnknownNameError("arm", reference, by_arm)
    names = [reference, *sorted(by_arm.keys() - {reference})]
    first = by_arm[reference][min(by_arm[reference])]
    refuse_other_budgets((first, *runs))
    return ComparisonSummary(
        reference=reference,
        confidence=CONFIDENCE,
        data=first.settings.data.kind,
        model=first.settings.model.kind,
        trial_examples=first.trial_examples,
        arms=tuple(_arm(name, by_arm[name]) for name in names),
        contrasts=tuple(_contrast(by_arm[name], by_arm[reference]) for name in names[1:]),
    )


def _arm(name: str, runs: Runs) -> ArmSummary:
    seeds = tuple(sorted(runs))
    incumbents = [runs[key].best for key in seeds]
    best = tuple(None if trial is None else trial.value for trial in incumbents)
    known = [value for value in best if value is not None]
    plans = [Plan(runs[key].trials) for key in seeds]
    saved = _total([run.saved_examples for run in runs.values()])
    examples = _total([run.examples for run in runs.values()])
    again = mean_estimate(np.asarray([_score(runs[key]) for key in seeds]))
    return ArmSummary(
        arm=name,
        seeds=seeds,
        best_by_seed=best,
        best=mean_estimate(np.asarray(known, float)),
        best_median=float(np.median(known)) if known else None,
        trials=dict(sum((plan.states() for plan in plans), collections.Counter())),
        examples=examples,
        seconds=_total([run.seconds for run in runs.values()]),
        saved_examples=saved,
        saved_share=saved / (saved + (examples or 0)) if saved else 0.0,
        sampler_share=mean_estimate(
            np.asarray([_sampler_share(runs[key]) for key in seeds]),
        ),
        retrained=again if again.n else None,
        # A network that diverged classifies nothing; see `StudyRunner.train_again`.
        retrained_diverged=sum(score == 0.0 for run in runs.values() for score in run.retrained),
        finished_by_seed=tuple(plan.finished for plan in plans),
    )


def _total(parts: list[Any]) -> Any:
    """The sum of figures; None if one of them is not known."""
    return None if None in parts else sum(parts)


def _sampler_share(run: StudyRun) -> float:
    # Captured steps, stacks and users' loops store 0: they do not measure it.
    measured = [trial for trial in run.trials if trial.curve and trial.curve[-1].sampler_seconds]
    inside = sum(trial.curve[-1].sampler_seconds for trial in measured)
    # The curve of a resumed attempt begins with that of the attempt before it.
    inside -= sum(trial.inherited.sampler_seconds for trial in measured if trial.inherited)
    # Without what a trial that diverged spent after its last evaluation.
    spent = sum(trial.seconds for trial in measured)
    spent -= sum(trial.inherited.seconds for trial in measured if trial.inherited)
    return inside / spent if spent else math.nan


def _contrast(arm: Runs, reference: Runs) -> Contrast:
    seeds = tuple(sorted(arm.keys() & reference.keys()))
    gains = {
        currency: np.asarray([_gain(arm[key], reference[key], currency) for key in seeds])
        for currency in CURRENCIES
    }
    pairs = pair_curves([arm[key] for key in seeds], [reference[key] for key in seeds])
    names = [next(iter(runs.values())).arm for runs in (arm, reference)]
    again = np.asarray([_score(arm[key]) - _score(reference[key]) for key in seeds])
    known = bool(np.isfinite(again).any())
    slots = [found for runs in (arm, reference) if (found := _slots([runs[key] for key in seeds]))]
    return Contrast(
        arm=names[0],
        reference=names[1],
        seeds=seeds,
        gain={currency: mean_estimate(gain) for currency, gain in gains.items()},
        gain_p={currency: signed_rank_p(gain) for currency, gain in gains.items()},
        seconds_per_example=_pace(arm, reference),
        cost=costs_to_target(arm, reference),
        pairs=len(pairs),
        paired=paired_rows(pairs),
        retrained_gain=(mean_estimate(again) if known else None),
        retrained_p=signed_rank_p(again) if known else None,
        same_slots=len(slots) < 2 or slots[0] == slots[1],
        same_hardware=all(
            _agree([_hardware(runs[seed]) for runs in (arm, reference)]) for seed in seeds
        ),
        **_early_ends(arm, reference, seeds),
        examples=_spend(arm, seeds) / _spend(reference, seeds) if seeds else math.nan,
        pair_cost=pairs.cost,
        differs=_differing_keys(arm[seeds[0]].spec, reference[seeds[0]].spec) if seeds else (),
    )


def _spend(runs: Runs, seeds: Sequence[int]) -> float:
    """Training examples of an arm's studies; NaN if they are not known, or none."""
    return _total([runs[seed].examples for seed in seeds]) or math.nan


def _differing_keys(spec: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[str, ...]:
    """See `Contrast.differs`; none where a study has no definition."""
    if not (spec and other):
        return ()
    return tuple(key for key in unlike(spec, other) if key != "sampler.kind")


def _early_ends(arm: Runs, reference: Runs, seeds: Sequence[int]) -> dict[str, Any]:
    """``diverged`` and ``stopped`` of a `Contrast`."""
    own, other = (_last_attempts([runs[seed] for seed in seeds]) for runs in (arm, reference))
    kinds = {seed: (sampler_of(arm[seed]), sampler_of(reference[seed])) for seed in seeds}
    ends = [
        (_end(own[key]), _end(other[key]))
        for key in own.keys() & other.keys()
        if same_configuration(own[key].params, other[key].params)
        and not compares_nothing(own[key], other[key], *kinds[key[0]])
    ]
    diverged = [tuple(end == "diverged" for end in pair) for pair in ends]
    return {
        "diverged": (diverged.count((True, False)), diverged.count((False, True))),
        "stopped": sum("pruned" in pair for pair in ends),
    }


def stopped_pairs(arm: Sequence[StudyRun], reference: Sequence[StudyRun]) -> int:
    """See `Contrast.stopped`."""
    own, other = ({run.seed: run for run in runs} for runs in (arm, reference))
    return int(_early_ends(own, other, sorted(own.keys() & other.keys()))["stopped"])


def _last_attempts(runs: Sequence[StudyRun]) -> dict[tuple[int, int], TrialRun]:
    """By seed and slot, the complete or pruned trial of one budget; without one, a failed trial."""
    found: dict[tuple[int, int], TrialRun] = {}
    for run in runs:
        # A slot that is being tried again has no outcome yet: its failed attempts do not count.
        again = {trial.slot for trial in run.trials if trial.state in OPEN}
        for trial in run.trials:
            if not trial.paired or trial.twin:
                continue
            key = (run.seed, trial.slot)
            if trial.state in FINISHED and trial.budgets == 1:
                found[key] = trial
            elif trial.state == "fail" and REASON_KEY in trial.attrs and trial.slot not in again:
                found.setdefault(key, trial)
    return found


def _end(trial: TrialRun) -> str:
    """``"complete"``, ``"pruned"`` or ``"diverged"``."""
    return "diverged" if REASON_KEY in trial.attrs else trial.state


def _slots(runs: Sequence[StudyRun]) -> set[tuple[int, int]]:
    """Slots of the stacks that trials were trained in, 1 is alone, and processes of their study."""
    return {
        (int(trial.attrs.get(STACK_KEY, 1)), run.processes)
        for run in runs
        for trial in run.trials
        if trial.curve
    }


def _hardware(run: StudyRun) -> list[Any] | None:
    """What a study's seconds depend on; None if that is not known."""
    known = run.environment
    if not known:
        return None
    cards = sorted(set(known.get("gpus", ())))
    device = run.settings.training.get("device", "auto")
    if device == "auto":
        device = "cuda" if cards else "mps" if known.get("mps") else "cpu"
    kind = device.partition(":")[0]
    used = cards if kind == "cuda" else []
    # GPUs of one model are equally fast, so the device's index matters only if models differ.
    where = device if len(used) > 1 else kind
    return [*map(known.get, ("cpu", "cpu_cores", "cpu_threads")), used, where]


def _agree(hardware: Sequence[list[Any] | None]) -> bool:
    """Whether studies began on the same hardware, as far as that is known."""
    return None in hardware or hardware[0] == hardware[1]


def _gain(arm: StudyRun, reference: StudyRun, currency: Currency) -> float:
    """Difference of the incumbents after what the cheaper study spent in all."""
    own, other = incumbent_curve(arm, currency), incumbent_curve(reference, currency)
    spent = min(own.total, other.total)
    return float(own.at(spent) - other.at(spent))


def _pace(arm: Runs, reference: Runs) -> Estimate:
    """Ratio of training seconds per example."""
    paces = [
        (_seconds_per_example(arm[key]), _seconds_per_example(reference[key]))
        for key in sorted(arm.keys() & reference.keys())
    ]
    ratios = [own / other for own, other in paces if own and other]
    return geometric_mean(ratios)


def _seconds_per_example(run: StudyRun) -> float | None:
    return run.seconds / run.examples if run.seconds and run.examples else None
