"""From the runs of a comparison to its summary."""

from __future__ import annotations

import collections
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hpo_mab._errors import ArgumentError, UnknownNameError
from hpo_mab.advantage import Estimate, mean_estimate, pair_curves
from hpo_mab.compare._cost import Retrained, Runs, costs_to_target
from hpo_mab.compare._incumbent import incumbent_curve
from hpo_mab.compare._paired import paired_rows
from hpo_mab.compare._records import (
    CURRENCIES,
    ArmSummary,
    ComparisonSummary,
    Contrast,
    Currency,
)
from hpo_mab.compare._statistics import geometric_mean, signed_rank_p

if TYPE_CHECKING:
    from hpo_mab.storage import StudyRun


def summarise(
    runs: Sequence[StudyRun],
    *,
    reference: str = "uniform",
    retrained: Retrained | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> ComparisonSummary:
    """Summarise a comparison: every arm, and every arm against the reference, paired by seed.

    Args:
        runs: The studies, any number of arms by any number of seeds, not every one with each.
        reference: Arm that the others are compared with.
        retrained: Test accuracies of each study's incumbent trained again under uniform sampling
            on fresh seeds, by ``(arm, seed)``; missing ones are left out.
        confidence: Coverage of all intervals, in (0, 1).
        seed: Seed of all resampling.

    Raises:
        ArgumentError: No runs, two of one arm and seed, trials of different budgets, or
            ``confidence`` outside its bound.
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
    scores = retrained or {}
    names = [reference, *sorted(by_arm.keys() - {reference})]
    first = by_arm[reference][min(by_arm[reference])]
    _refuse_other_budgets(first, runs)
    return ComparisonSummary(
        reference=reference,
        confidence=confidence,
        data=_name(first, "data"),
        model=_name(first, "model"),
        trial_examples=first.trial_examples,
        arms=tuple(
            _arm(name, by_arm[name], scores, confidence=confidence, seed=seed) for name in names
        ),
        contrasts=tuple(
            _contrast(by_arm[name], by_arm[reference], scores, confidence=confidence, seed=seed)
            for name in names[1:]
        ),
    )


def _refuse_other_budgets(first: StudyRun, runs: Sequence[StudyRun]) -> None:
    for run in runs:
        if run.trial_examples != first.trial_examples:
            raise ArgumentError(
                "Studies of one comparison must have the same budget a trial: it is "
                f"{first.trial_examples:,} examples in '{first.name}' and {run.trial_examples:,} "
                f"in '{run.name}'. Name studies that agree in it."
            )


def _name(run: StudyRun, section: str) -> str:
    named = run.spec.get(section, {})
    return str(named.get("name", "")) if isinstance(named, Mapping) else str(named)


def _arm(name: str, runs: Runs, scores: Retrained, *, confidence: float, seed: int) -> ArmSummary:
    seeds = tuple(sorted(runs))
    incumbents = [runs[key].best for key in seeds]
    best = tuple(None if trial is None else trial.value for trial in incumbents)
    known = [value for value in best if value is not None]
    trials = [trial for key in seeds for trial in runs[key].trials]
    saved = _total([run.saved_examples for run in runs.values()])
    examples = _total([run.examples for run in runs.values()])
    again = [float(np.mean(scores[name, key])) for key in seeds if len(scores.get((name, key), ()))]
    return ArmSummary(
        arm=name,
        seeds=seeds,
        best_by_seed=best,
        best=mean_estimate(np.asarray(known, float), confidence=confidence, seed=seed),
        best_median=float(np.median(known)) if known else None,
        trials=dict(sorted(collections.Counter(trial.state for trial in trials).items())),
        examples=examples,
        seconds=_total([run.seconds for run in runs.values()]),
        saved_examples=saved,
        saved_share=saved / (saved + (examples or 0)) if saved else 0.0,
        sampler_share=mean_estimate(
            np.asarray([_sampler_share(runs[key]) for key in seeds]),
            confidence=confidence,
            seed=seed,
        ),
        retrained=(
            mean_estimate(np.asarray(again), confidence=confidence, seed=seed) if again else None
        ),
    )


def _total(parts: list[Any]) -> Any:
    """Their sum; None if one is not known."""
    return None if None in parts else sum(parts)


def _sampler_share(run: StudyRun) -> float:
    inside = sum(trial.curve[-1].sampler_seconds for trial in run.trials if trial.curve)
    inside -= sum(t.inherited.sampler_seconds for t in run.trials if t.inherited)
    return inside / run.seconds if run.seconds else math.nan


def _contrast(
    arm: Runs, reference: Runs, scores: Retrained, *, confidence: float, seed: int
) -> Contrast:
    seeds = tuple(sorted(arm.keys() & reference.keys()))
    gains = {
        currency: np.asarray([_gain(arm[key], reference[key], currency) for key in seeds])
        for currency in CURRENCIES
    }
    pairs = pair_curves([arm[key] for key in seeds], [reference[key] for key in seeds])
    names = [next(iter(runs.values())).arm for runs in (arm, reference)]
    again = np.asarray([_retrained_gain(names, key, scores) for key in seeds])
    known = bool(np.isfinite(again).any())
    return Contrast(
        arm=names[0],
        reference=names[1],
        seeds=seeds,
        gain={
            currency: mean_estimate(gain, confidence=confidence, seed=seed)
            for currency, gain in gains.items()
        },
        gain_p={currency: signed_rank_p(gain) for currency, gain in gains.items()},
        seconds_per_example=_pace(arm, reference, confidence=confidence, seed=seed),
        cost=costs_to_target(arm, reference, scores, confidence=confidence, seed=seed),
        pairs=len(pairs),
        paired=paired_rows(pairs, confidence=confidence, seed=seed),
        retrained_gain=(mean_estimate(again, confidence=confidence, seed=seed) if known else None),
        retrained_p=signed_rank_p(again) if known else None,
    )


def _gain(arm: StudyRun, reference: StudyRun, currency: Currency) -> float:
    """Difference of the incumbents after what the cheaper study spent in all."""
    own, other = incumbent_curve(arm, currency), incumbent_curve(reference, currency)
    spent = min(own.total, other.total)
    return float(own.at(spent) - other.at(spent))


def _retrained_gain(names: Sequence[str], seed: int, scores: Retrained) -> float:
    own, other = (scores.get((name, seed), ()) for name in names)
    return float(np.mean(own) - np.mean(other)) if len(own) and len(other) else math.nan


def _pace(arm: Runs, reference: Runs, *, confidence: float, seed: int) -> Estimate:
    """Ratio of training seconds an example."""
    paces = [
        (_seconds_per_example(arm[key]), _seconds_per_example(reference[key]))
        for key in sorted(arm.keys() & reference.keys())
    ]
    ratios = [own / other for own, other in paces if own and other]
    return geometric_mean(ratios, confidence=confidence, seed=seed)


def _seconds_per_example(run: StudyRun) -> float | None:
    return run.seconds / run.examples if run.seconds and run.examples else None
