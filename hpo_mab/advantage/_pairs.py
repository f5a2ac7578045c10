"""Pairs of trials of two arms, and their learning curves on common budgets."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from hpo_mab._attributes import AUTO, BUDGET_KEY, SAMPLER_KEY, UNIFORM
from hpo_mab._errors import ArgumentError

if TYPE_CHECKING:
    from hpo_mab.storage import StudyRun, TrialRun

Floats = NDArray[np.float64]
_Read = Callable[["TrialRun", Floats], tuple[Floats, Floats]]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PairedCurves:
    """Accuracy of P pairs at T budgets; a pair is one configuration trained in both arms.

    Attributes:
        budgets: Training examples, positive and increasing [T].
        arm: Validation accuracy [P, T], in [0, 1]; NaN from where a trial was stopped.
        reference: The reference's validation accuracy [P, T], likewise.
        arm_seconds: Training seconds spent at each budget [P, T], if known.
        reference_seconds: The reference's training seconds [P, T], if known.

    Raises:
        ArgumentError: Shapes differ, or budgets do not increase.

    Examples:
        >>> import numpy as np
        >>> from hpo_mab.advantage import PairedCurves
        >>> budgets = np.array([100.0, 200.0])
        >>> arm, reference = np.array([[0.6, 0.75]]), np.array([[0.5, 0.75]])
        >>> pairs = PairedCurves(budgets=budgets, arm=arm, reference=reference)
        >>> pairs.difference.round(2).tolist()
        [[0.1, 0.0]]
    """

    budgets: Floats
    arm: Floats
    reference: Floats
    arm_seconds: Floats | None = None
    reference_seconds: Floats | None = None

    def __post_init__(self) -> None:
        for name in ("budgets", "arm", "reference", "arm_seconds", "reference_seconds"):
            values = getattr(self, name)
            if values is not None:
                object.__setattr__(self, name, np.asarray(values, dtype=np.float64))
        increases = np.all(np.diff(self.budgets, prepend=0.0) > 0.0) if self.budgets.ndim else False
        if self.budgets.ndim != 1 or not increases or not np.isfinite(self.budgets).all():
            raise ArgumentError(
                "budgets must be one-dimensional, positive, finite and increasing, "
                f"got {self.budgets}."
            )
        shape = (len(self.arm), len(self.budgets))
        for name in ("arm", "reference", "arm_seconds", "reference_seconds"):
            values = getattr(self, name)
            if values is not None and values.shape != shape:
                raise ArgumentError(
                    f"{name} must have shape {list(shape)}, pairs by budgets, "
                    f"got {list(values.shape)}."
                )
            if values is not None and np.isinf(values).any():
                raise ArgumentError(f"{name} must be finite, or NaN where a trial was stopped.")

    def __len__(self) -> int:
        """Number of pairs P."""
        return len(self.arm)

    @property
    def difference(self) -> Floats:
        """``arm - reference`` [P, T], NaN where either was stopped."""
        return self.arm - self.reference

    @property
    def ended(self) -> int:
        """Pairs whose trials both ran to the last budget."""
        return int(np.isfinite(self.difference[:, -1:]).sum())

    @property
    def cost(self) -> float:
        """Geometric mean over pairs of the arm's seconds divided by the reference's.

        NaN if they are not known.
        """
        return float(np.exp(self._log_costs()[1]))

    def _log_costs(self) -> tuple[Floats, float]:
        """Logarithms of each pair's ratio of seconds [P], and their mean."""
        if self.arm_seconds is None or self.reference_seconds is None:
            return np.full(len(self), np.nan), math.nan
        costs = _log_costs(self.arm_seconds, self.reference_seconds)
        if not np.isfinite(costs).any():
            return costs, math.nan
        # Of whole trainings, if there are any: a stopped pair has the pace of its beginning.
        ended = np.isfinite(costs) & np.isfinite(self.difference[:, -1])
        return costs, float(np.nanmean(costs[ended] if ended.any() else costs))

    def in_seconds(self) -> Self:
        """The same pairs at equal training seconds instead of equal examples.

        With ``c`` the geometric mean over pairs of the arm's seconds divided by the reference's,
        the arm's accuracy at budget ``t`` becomes that at ``t / c``. `advantage` and
        `acceleration` of the result then include the sampler's cost. An arm that costs less keeps
        its last accuracy; one that was stopped is NaN from there.

        One pair's seconds are noisy, so ``c`` is that of all pairs. With ``c_p`` the ratio of pair
        ``p``, its accuracy is ``a_p(t / c) - s(t / c) (log c_p - log c)``, where ``s`` is the slope
        of the mean curve in ``log t``. The corrections sum to zero over the pairs that ended, so
        their mean stays that at ``t / c``; the interval includes the noise of ``c``. With one
        budget a curve cannot be read before it, so that all values are NaN.

        Raises:
            ArgumentError: The seconds are not known.
        """
        if self.arm_seconds is None or self.reference_seconds is None:
            raise ArgumentError("in_seconds needs arm_seconds and reference_seconds, got None.")
        costs, cost = self._log_costs()
        if len(self.budgets) < 2 or math.isnan(cost):
            accuracy = np.full_like(self.arm, np.nan)
            return dataclasses.replace(self, arm=accuracy, arm_seconds=self.reference_seconds)
        at = self.budgets * np.exp(-cost)
        read = interpolate(self.budgets, self.arm, at)
        # From the left, so that the slope is 0 once the arm has ended.
        slopes = (read - interpolate(self.budgets, self.arm, at * np.exp(-_SMALL))) / _SMALL
        finite = np.isfinite(slopes)
        slope = np.where(finite, slopes, 0.0).sum(axis=0) / np.maximum(finite.sum(axis=0), 1)
        accuracy = read - slope * (costs - cost)[:, None]
        return dataclasses.replace(self, arm=accuracy, arm_seconds=self.reference_seconds)


def interpolate(budgets: Floats, values: Floats, at: Floats) -> Floats:
    """Accuracies between evaluations: straight in the logarithm of the budget.

    Learning curves are nearer to straight lines in ``log t`` than in ``t``. A chord in ``t``
    between budgets that double overstates the budget at which an accuracy is reached. Before the
    first evaluation the line between the first two is extended. Its lower bound is the straight
    line in ``t`` from ``(0, 0)``.

    Args:
        budgets: Budgets of the evaluations, positive and increasing [T], ``T >= 1``.
        values: Accuracies [..., T].
        at: Budgets to read [G], in ``[0, budgets[-1]]``; beyond that the last value is kept.

    Returns:
        Accuracies [..., G].
    """
    position = np.interp(
        np.log(np.maximum(at, budgets[0])), np.log(budgets), np.arange(len(budgets))
    )
    left = np.minimum(position.astype(np.int64), max(len(budgets) - 2, 0))
    right = np.minimum(left + 1, len(budgets) - 1)
    share = position - left
    inside = values[..., left] * (1.0 - share) + values[..., right] * share
    # A NaN of one neighbour, times a share of 0, would make a point on the other one NaN.
    inside = np.where(share == 0.0, values[..., left], inside)
    inside = np.where(share == 1.0, values[..., right], inside)
    return np.where(at < budgets[0], _before_first(budgets, values, at), inside)


def _before_first(budgets: Floats, values: Floats, at: Floats) -> Floats:
    """Accuracies [..., G] at budgets [G]; only those below the first evaluation are used."""
    first = values[..., :1]
    rising = first * at / budgets[0]
    if len(budgets) == 1:
        return np.asarray(rising, dtype=np.float64)
    slope = (values[..., 1:2] - first) / np.log(budgets[1] / budgets[0])
    # A stopped curve without a second evaluation has no slope; `rising` is used instead.
    slope = np.maximum(np.where(np.isnan(slope), np.inf, slope), 0.0)
    # At budget 0 the logarithm is -inf, and a slope of 0 makes NaN, which `fmax` ignores.
    with np.errstate(divide="ignore", invalid="ignore"):
        extended = first + slope * np.minimum(np.log(at / budgets[0]), 0.0)
    return np.asarray(np.fmax(rising, extended), dtype=np.float64)


#: Step in the logarithm of the budget over which a slope is measured.
_SMALL = 0.01
#: Ratios of seconds count up to this many standard deviations, estimated by the median deviation.
_OUTLIER = 3.0


def _log_costs(arm: Floats, reference: Floats) -> Floats:
    """Logarithm of the ratio of each pair's seconds [P, T] at its last common budget, [P].

    Outliers are moved to three deviations from the median; NaN where seconds are not known.
    """
    positive = (arm > 0.0) & (reference > 0.0)
    logs = np.full(len(arm), np.nan)
    for row in np.flatnonzero(positive.any(axis=1)):
        last = np.flatnonzero(positive[row])[-1]
        logs[row] = np.log(arm[row, last] / reference[row, last])
    if not positive.any():
        return logs
    # A training during which the machine did other work counts as one that is a little slow.
    centre = np.nanmedian(logs)
    room = _OUTLIER * 1.4826 * np.nanmedian(np.abs(logs - centre))
    return np.asarray(np.clip(logs, centre - room, centre + room), dtype=np.float64)


#: Batches round budgets to whole steps, so a budget counts as reached within this share of it.
_SLACK = 0.01


def pair_curves(
    arm: Sequence[StudyRun],
    reference: Sequence[StudyRun],
) -> PairedCurves:
    """Pair the trials of two arms: same study seed, same slot, same common parameters.

    The budgets are those of the reference's longest complete trial. Failed trials, and trials that
    are not marked ``paired``, are left out. So are trials that ``auto`` trained under uniform
    sampling, and pairs that studies of different samplers trained under one. If all studies have
    the same number of evaluations, and all complete trials made equally many, evaluations of equal
    index are compared, because the batch size may change a trial's budget. Otherwise curves are
    interpolated, accuracies in the logarithm of the budget, at the same shares of each trial's own
    budget if it is known. Budgets within 1% count as reached. A curve is NaN beyond its last
    evaluation and before its first one.

    Args:
        arm: Studies of the arm in question, one a seed.
        reference: Studies of the reference, one a seed.

    Returns:
        The pairs in order of seed and slot; may be none, or have no budgets.

    Raises:
        ArgumentError: Two studies of one arm and seed, or trials of different full budgets.
    """
    refuse_other_budgets((*arm, *reference))
    ours, theirs = _trials_by_slot(arm), _trials_by_slot(reference)
    keys = paired_slots(ours, theirs, arm, reference)
    # The last evaluation of a running trial is not the end of its budget.
    complete = [theirs[key] for key in keys if theirs[key].state == "complete"]
    longest = max(complete, key=lambda trial: trial.examples, default=None)
    grid, read = _grid(longest, (*arm, *reference), (*ours.values(), *theirs.values()))
    arm_curves = [read(ours[key], grid) for key in keys]
    reference_curves = [read(theirs[key], grid) for key in keys]
    shape = (len(keys), len(grid))
    return PairedCurves(
        budgets=grid,
        arm=np.reshape([accuracy for accuracy, _ in arm_curves], shape),
        reference=np.reshape([accuracy for accuracy, _ in reference_curves], shape),
        arm_seconds=np.reshape([seconds for _, seconds in arm_curves], shape),
        reference_seconds=np.reshape([seconds for _, seconds in reference_curves], shape),
    )


def _grid(
    longest: TrialRun | None, runs: Sequence[StudyRun], trials: Sequence[TrialRun]
) -> tuple[Floats, _Read]:
    """Budgets from the longest trial [T], and what reads a trial's curve at them."""
    counts = {run.settings.evaluations for run in runs}
    # Loops of a user's own may skip evaluations, and store no number of them.
    most = counts.pop() if len(counts) == 1 else None
    if most is not None:
        # With fewer steps than evaluations, the number of evaluations depends on the batch size.
        complete = (trial for trial in trials if trial.state == "complete")
        if len({min(trial.curve[-1].index, most) for trial in complete}) <= 1:
            return np.unique([] if longest is None else _examples(longest)), _curve_by_number
    to_end = most is not None
    budget = min((run.trial_examples for run in runs), default=0)
    grid = np.unique([] if longest is None else _examples(longest, budget=budget, to_end=to_end))
    # The last step of a large batch may exceed the budget, where smaller batches have no value.
    grid = np.unique(np.minimum(grid, budget)) if budget else grid
    return grid, functools.partial(_curve_at, budget=budget, to_end=to_end)


def paired_slots(
    ours: Mapping[tuple[int, int], TrialRun],
    theirs: Mapping[tuple[int, int], TrialRun],
    arm: Sequence[StudyRun],
    reference: Sequence[StudyRun],
) -> list[tuple[int, int]]:
    """Seed and slot of each pair: one configuration, trained with the samplers of both arms."""
    samplers = [{run.seed: _sampler_of(run) for run in runs} for runs in (arm, reference)]
    return sorted(
        key
        for key in ours.keys() & theirs.keys()
        if same_configuration(ours[key].params, theirs[key].params)
        and not _compares_nothing(ours[key], theirs[key], *(kinds[key[0]] for kinds in samplers))
    )


def refuse_other_budgets(runs: Sequence[StudyRun]) -> None:
    """Refuse studies whose trials differ in length by more than rounding to whole steps."""
    for run in runs:
        first = runs[0]
        passes = [(one.settings.epochs, one.training_examples) for one in (first, run)]
        # Batches of other sizes round the same number of passes to other steps.
        agree = None not in passes[0] and passes[0] == passes[1]
        # Own loops store the length of each trial, which a searched batch size rounds or decides.
        agree = agree or (_steps(first) is not None and _steps(first) == _steps(run))
        rounding = [one.largest_batch for one in (first, run) if not one.spec]
        slack = max(_SLACK * first.trial_examples, *rounding, 0)
        if not agree and abs(run.trial_examples - first.trial_examples) > slack:
            raise ArgumentError(
                "Studies of one comparison must have the same budget per trial: it is "
                f"{first.trial_examples:,} examples in '{first.name}' and {run.trial_examples:,} "
                f"in '{run.name}'. Name studies that agree in it."
            )


def _steps(run: StudyRun) -> int | None:
    """Steps of the longest trial of an own loop; None where batch sizes are not searched."""
    if run.spec or not run.largest_batch:
        return None
    return run.trial_examples // run.largest_batch


def _compares_nothing(one: TrialRun, other: TrialRun, kind: str, other_kind: str) -> bool:
    """Whether a pair does not compare its studies' samplers, ``kind`` and ``other_kind``.

    The first trials of ``auto`` are uniform, whatever sampler the study continues with. Studies of
    different samplers may also have trained both trials under one sampler.
    """
    trained = one.attrs.get(SAMPLER_KEY, kind), other.attrs.get(SAMPLER_KEY, other_kind)
    if (AUTO, UNIFORM) in ((kind, trained[0]), (other_kind, trained[1])):
        return True
    return kind != other_kind and trained[0] == trained[1]


def _sampler_of(run: StudyRun) -> str:
    """The batch sampler of a study; of an own loop that of its trials, ``auto`` for a race."""
    if run.settings.sampler.kind:
        return run.settings.sampler.kind
    trained = [(t.twin, t.attrs[SAMPLER_KEY]) for t in run.trials if SAMPLER_KEY in t.attrs]
    originals = {name for twin, name in trained if not twin}
    # A pilot trains uniform twins, a race twins of uniform trials under other samplers.
    races = UNIFORM in originals and any(twin and name != UNIFORM for twin, name in trained)
    return AUTO if races else "+".join(sorted(originals))


def same_configuration(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether parameters agree in every name that both have, except the sampler's."""
    mine, theirs = (
        {name: value for name, value in params.items() if not name.startswith("sampler.")}
        for params in (one, other)
    )
    common = mine.keys() & theirs.keys()
    # Own loops may search quite other parameters: these trials are not one configuration.
    disjoint = bool(mine and theirs) and not common
    return not disjoint and all(mine[name] == theirs[name] for name in common)


def _trials_by_slot(runs: Sequence[StudyRun]) -> dict[tuple[int, int], TrialRun]:
    """Trials by (seed, slot); of a slot's trials within one budget that with the most examples."""
    seeds = [run.seed for run in runs]
    if len(set(seeds)) < len(seeds):
        raise ArgumentError(f"Studies of one arm must differ in seed, got seeds {sorted(seeds)}.")
    trials: dict[tuple[int, int], TrialRun] = {}
    for run in runs:
        for trial in run.trials:
            key = (run.seed, trial.slot)
            usable = trial.state != "fail" and trial.curve and trial.paired
            # A uniform twin in a bandit's study is paired with its original, not across arms.
            usable = usable and not trial.twin and trial.budgets == 1
            if usable and (key not in trials or trial.examples > trials[key].examples):
                trials[key] = trial
    return trials


def _examples(trial: TrialRun, *, budget: int = 0, to_end: bool = False) -> Floats:
    """Examples of a trial's evaluations [n], at the same shares of ``budget`` if that is given.

    A trial of an own loop has stored its own budget, which its batch size may round or decide. With
    ``to_end`` the budget of a complete trial is where it ends.
    """
    examples = np.asarray([point.examples for point in trial.curve], dtype=np.float64)
    own_budget = trial.attrs.get(BUDGET_KEY)
    if own_budget is None and to_end and trial.state == "complete":
        own_budget = trial.examples
    return examples * (budget / own_budget) if budget and own_budget else examples


def _curve_by_number(trial: TrialRun, grid: Floats) -> tuple[Floats, Floats]:
    """Accuracy and seconds of a trial's evaluations, each [T]; NaN after the last one."""
    accuracy, seconds = np.full(len(grid), np.nan), np.full(len(grid), np.nan)
    for point in trial.curve:
        if point.index <= len(grid):
            accuracy[point.index - 1], seconds[point.index - 1] = point.accuracy, point.seconds
    return accuracy, seconds


def _curve_at(trial: TrialRun, grid: Floats, *, budget: int, to_end: bool) -> tuple[Floats, Floats]:
    """Accuracy and seconds of a trial at shares of a budget, given in examples, each [T]."""
    examples = _examples(trial, budget=budget, to_end=to_end)
    inside = (grid >= examples[0] * (1 - _SLACK)) & (grid <= examples[-1] * (1 + _SLACK))
    accuracy = np.interp(np.log(grid), np.log(examples), [e.accuracy for e in trial.curve])
    seconds = np.interp(grid, examples, [e.seconds for e in trial.curve])
    return np.where(inside, accuracy, np.nan), np.where(inside, seconds, np.nan)
