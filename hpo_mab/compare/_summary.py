"""The summary of a comparison's runs: its arms, and pairs of arms at each budget."""

from __future__ import annotations

import collections
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hpo_mab._attributes import REASON_KEY, STACK_SLOTS_KEY
from hpo_mab._errors import ArgumentError, UnknownNameError
from hpo_mab._plan import FINISHED_STATES, OPEN_STATES
from hpo_mab._results import Results
from hpo_mab._stored_settings import differing_keys
from hpo_mab.advantage import (
    Estimate,
    PairedCurves,
    acceleration,
    advantage,
    compare_fidelity,
    mean_estimate,
    pair_curves,
)
from hpo_mab.advantage._fidelity import Statistic
from hpo_mab.advantage._pairs import paired_slots, refuse_other_budgets
from hpo_mab.advantage._signed_rank import signed_rank_p
from hpo_mab.compare._incumbents import (
    RunsBySeed,
    costs_to_target,
    gain_of_incumbent,
    mean_retrained,
)
from hpo_mab.compare._records import (
    CONFIDENCE,
    CURRENCIES,
    ArmSummary,
    ComparisonSummary,
    Contrast,
    FidelityRow,
    Final,
    PairedRow,
    geometric_mean,
)

if TYPE_CHECKING:
    from hpo_mab.storage import StudyRun, TrialRun

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
    return tuple(
        PairedRow(
            examples=float(budget),
            advantage=ahead,
            advantage_p=signed_rank_p(pairs.difference[:, column]),
            acceleration=faster,
            advantage_seconds=ahead_seconds,
            acceleration_seconds=faster_seconds,
            fidelity=_fidelities(pairs, column),
        )
        for column, (budget, ahead, faster, ahead_seconds, faster_seconds) in enumerate(columns)
    )


def _fidelities(pairs: PairedCurves, column: int) -> tuple[FidelityRow, ...]:
    """Fidelity to the reference's final ranking by each statistic, and to each arm's own by tau."""
    finals = {"reference": pairs.reference[:, -1], "own": pairs.arm[:, -1]}

    def row(statistic: Statistic, final: Final) -> FidelityRow:
        comparison = compare_fidelity(
            pairs.arm[:, column],
            pairs.reference[:, column],
            finals[final],
            other_final=finals["reference"],
            statistic=statistic,
            # Kendall's tau of a thousand pairs takes milliseconds a resample.
            resamples=max(200, min(_RESAMPLES, 200 * _RESAMPLES // max(len(pairs), 1))),
        )
        return FidelityRow(
            statistic=statistic,
            final=final,
            arm=comparison.own,
            reference=comparison.other,
            difference=comparison.difference,
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
        raise UnknownNameError("reference", reference, by_arm)
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


def _arm(name: str, runs: RunsBySeed) -> ArmSummary:
    seeds = tuple(sorted(runs))
    incumbents = [runs[seed].best for seed in seeds]
    best = tuple(None if trial is None else trial.value for trial in incumbents)
    accuracies = [value for value in best if value is not None]
    results = [Results(runs[seed].trials) for seed in seeds]
    saved = _total([run.saved_examples for run in runs.values()])
    examples = _total([run.examples for run in runs.values()])
    retrained = mean_estimate(np.asarray([mean_retrained(runs[seed]) for seed in seeds]))
    return ArmSummary(
        arm=name,
        seeds=seeds,
        best_by_seed=best,
        best=mean_estimate(np.asarray(accuracies, float)),
        best_median=float(np.median(accuracies)) if accuracies else None,
        trials=dict(sum((one.states() for one in results), collections.Counter())),
        examples=examples,
        seconds=_total([run.seconds for run in runs.values()]),
        saved_examples=saved,
        saved_share=saved / (saved + (examples or 0)) if saved else 0.0,
        sampler_share=mean_estimate(
            np.asarray([_sampler_share(runs[seed]) for seed in seeds]),
        ),
        retrained=retrained if retrained.n else None,
        # A network that diverged classifies nothing; see `StudyRunner.train_again`.
        retrained_diverged=sum(score == 0.0 for run in runs.values() for score in run.retrained),
        finished_by_seed=tuple(one.finished for one in results),
    )


def _total(parts: list[Any]) -> Any:
    """The sum of parts; None if one of them is not known."""
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


def _contrast(arm: RunsBySeed, reference: RunsBySeed) -> Contrast:
    seeds = tuple(sorted(arm.keys() & reference.keys()))
    matched = [(arm[seed], reference[seed]) for seed in seeds]
    arm_runs, reference_runs = [run for run, _ in matched], [run for _, run in matched]
    gains = {
        currency: np.asarray([gain_of_incumbent(*runs, currency) for runs in matched])
        for currency in CURRENCIES
    }
    pairs = pair_curves(arm_runs, reference_runs)
    diverged, stopped = _early_ends(arm_runs, reference_runs)
    retrained_gains = np.asarray([mean_retrained(a) - mean_retrained(b) for a, b in matched])
    any_retrained = bool(np.isfinite(retrained_gains).any())
    arm_slots, reference_slots = _slots(arm_runs), _slots(reference_runs)
    return Contrast(
        arm=next(iter(arm.values())).arm,
        reference=next(iter(reference.values())).arm,
        seeds=seeds,
        gain={currency: mean_estimate(gain) for currency, gain in gains.items()},
        gain_p={currency: signed_rank_p(gain) for currency, gain in gains.items()},
        seconds_per_example=_seconds_per_example_ratio(matched),
        cost=costs_to_target(arm, reference),
        pairs=len(pairs),
        paired=paired_rows(pairs),
        retrained_gain=mean_estimate(retrained_gains) if any_retrained else None,
        retrained_p=signed_rank_p(retrained_gains) if any_retrained else None,
        same_slots=not (arm_slots and reference_slots) or arm_slots == reference_slots,
        same_hardware=all(_same_hardware(*runs) for runs in matched),
        diverged=diverged,
        stopped=stopped,
        examples=_examples_of(arm_runs) / _examples_of(reference_runs),
        pair_cost=pairs.cost,
        differs=_differences(arm_runs[0].spec, reference_runs[0].spec) if seeds else (),
    )


def _examples_of(runs: Sequence[StudyRun]) -> float:
    """Training examples of an arm's studies; NaN if they are not known, or none."""
    return _total([run.examples for run in runs]) or math.nan


def _differences(spec: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[str, ...]:
    """See `Contrast.differs`; none where a study has no definition."""
    if not (spec and other):
        return ()
    return tuple(key for key in differing_keys(spec, other) if key != "sampler.kind")


def _early_ends(
    arm: Sequence[StudyRun], reference: Sequence[StudyRun]
) -> tuple[tuple[int, int], int]:
    """``diverged`` and ``stopped`` of a `Contrast`."""
    arm_trials, reference_trials = _last_attempts(arm), _last_attempts(reference)
    slots = paired_slots(arm_trials, reference_trials, arm, reference)
    ends = [(_end(arm_trials[slot]), _end(reference_trials[slot])) for slot in slots]
    diverged = [tuple(end == "diverged" for end in pair) for pair in ends]
    stopped = sum("pruned" in pair for pair in ends)
    return (diverged.count((True, False)), diverged.count((False, True))), stopped


def stopped_pairs(arm: Sequence[StudyRun], reference: Sequence[StudyRun]) -> int:
    """See `Contrast.stopped`."""
    _, stopped = _early_ends(arm, reference)
    return stopped


def _last_attempts(runs: Sequence[StudyRun]) -> dict[tuple[int, int], TrialRun]:
    """By seed and slot, the complete or pruned trial of one budget; without one, a failed trial."""
    attempts: dict[tuple[int, int], TrialRun] = {}
    for run in runs:
        # A slot that is being tried again has no outcome yet: its failed attempts do not count.
        retried = {trial.slot for trial in run.trials if trial.state in OPEN_STATES}
        for trial in run.trials:
            if not trial.paired or trial.twin:
                continue
            key = (run.seed, trial.slot)
            if trial.state in FINISHED_STATES and trial.budgets == 1:
                attempts[key] = trial
            elif trial.state == "fail" and REASON_KEY in trial.attrs and trial.slot not in retried:
                attempts.setdefault(key, trial)
    return attempts


def _end(trial: TrialRun) -> str:
    """``"complete"``, ``"pruned"`` or ``"diverged"``."""
    return "diverged" if REASON_KEY in trial.attrs else trial.state


def _slots(runs: Sequence[StudyRun]) -> set[tuple[int, int]]:
    """Pairs: slots of a trial's stack (1 if trained alone), and processes of its study."""
    return {
        (int(trial.attrs.get(STACK_SLOTS_KEY, 1)), run.processes)
        for run in runs
        for trial in run.trials
        if trial.curve
    }


def _hardware(run: StudyRun) -> list[Any] | None:
    """What a study's seconds depend on; None if that is not known."""
    environment = run.environment
    if not environment:
        return None
    cards = sorted(set(environment.get("gpus", ())))
    device = run.settings.training.get("device", "auto")
    if device == "auto":
        device = "cuda" if cards else "mps" if environment.get("mps") else "cpu"
    kind = device.partition(":")[0]
    used = cards if kind == "cuda" else []
    # GPUs of one model are equally fast, so the device's index matters only if models differ.
    where = device if len(used) > 1 else kind
    return [*map(environment.get, ("cpu", "cpu_cores", "cpu_threads")), used, where]


def _same_hardware(run: StudyRun, other: StudyRun) -> bool:
    """Whether two studies began on the same hardware, as far as that is known."""
    hardware = _hardware(run), _hardware(other)
    return None in hardware or hardware[0] == hardware[1]


def _seconds_per_example_ratio(matched: Sequence[tuple[StudyRun, StudyRun]]) -> Estimate:
    """An arm's training seconds per example over the reference's, of the studies of each seed."""
    paces = [(_seconds_per_example(run), _seconds_per_example(other)) for run, other in matched]
    return geometric_mean([pace / other for pace, other in paces if pace and other])


def _seconds_per_example(run: StudyRun) -> float | None:
    return run.seconds / run.examples if run.seconds and run.examples else None
