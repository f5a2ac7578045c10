"""The plan of a study: which trials count, which is next, and when the study is done.

Seeds of trials follow from the study's seed and the trial's slot.
"""

from __future__ import annotations

import collections
import dataclasses
import enum
import hashlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Self

import optuna
from optuna.trial import FrozenTrial, TrialState

from hpo_mab._attributes import (
    EVALUATION_KEY,
    INTERRUPTED_KEY,
    LOST_KEY,
    PROMOTES_KEY,
    REASON_KEY,
    RETRY_KEY,
    SAMPLER_KEY,
    SLOT_KEY,
    TARGET_KEY,
    TWIN_KEY,
    UNIFORM,
    trial_attributes,
)
from hpo_mab._errors import HpoMabError
from hpo_mab.search._definition import TotalBudget
from hpo_mab.storage import RETRIES, CurveStore, Definition, TrialRun

if TYPE_CHECKING:
    import optuna

# Seeds of trials.
#
# Every random choice of a trial follows from the study's seed and the trial's slot, so that a study
# resumed equals a study never stopped, and trials of two studies can be paired.


def derive_seed(*parts: int | str) -> int:
    """A seed in [0, 2**32) that depends on every part and on nothing else."""
    text = "\x1f".join(str(part) for part in parts).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=4).digest())


# The plan of a study: what its trials are, which of them count, and what comes next.
#
# Nothing else in the package counts trials. A *slot* is a place in the plan, from 0: it has one
# configuration and one seed. A trial is an *attempt* at a slot, or at the slot's *twin*, which
# repeats it under another batch sampler. An attempt that was cut off is followed by
# another one. A *promotion* has a slot of its own, in which it trains a stopped configuration in
# full.
#
# =========== ================================ ==========================================
# trial        counts towards ``budget.trials`` may be tried again
# =========== ================================ ==========================================
# complete     yes                              no
# pruned       yes                              no
# running      yes                              if its worker is lost, or interrupted
# failed       no                               if it was lost or interrupted, not by itself
# twin         no                               as any other
# promotion    yes                              as any other
# =========== ================================ ==========================================

#: A slot, and the batch sampler of its twin; "" for the slot's own trial.
Place = tuple[int, str]

_STATES = {state: state.name.lower() for state in TrialState}
_FINISHED = ("complete", "pruned")
_OPEN = ("waiting", "running")


class Next(enum.Enum):
    """What a worker does next."""

    DONE = "the study has what was asked for"
    WAIT = "other workers are running the last ones"
    QUEUED = "run the trial that waits"
    PROMOTION = "train the best stopped configuration in full"
    NEW = "try another configuration"


class Attempt(NamedTuple):
    """A trial as the plan sees it.

    Attributes:
        number: Optuna's trial number.
        state: ``"waiting"``, ``"running"``, ``"complete"``, ``"pruned"`` or ``"fail"``.
        slot: Its slot; None if nobody has given it one.
        twin: The batch sampler under which it repeats its slot; "" if it does not.
        promotion: Whether it trains a stopped configuration in full.
        lost: Whether its worker ended suddenly.
        interrupted: Whether it was interrupted.
        retry: Whether it follows an attempt that was cut off; of stored trials not known.
    """

    number: int
    state: str
    slot: int | None
    twin: str
    promotion: bool
    lost: bool
    interrupted: bool
    retry: bool

    @classmethod
    def of(cls, trial: FrozenTrial | TrialRun) -> Attempt:
        """An Optuna trial, or a stored one, as the plan sees it."""
        if isinstance(trial, TrialRun):
            state, attrs, retry = trial.state, trial.attrs, False
        else:
            state, attrs = _STATES[trial.state], trial_attributes(trial)
            retry = RETRY_KEY in trial.system_attrs
        slot = attrs.get(SLOT_KEY)
        return cls(
            number=trial.number,
            state=state,
            slot=None if slot is None else int(slot),
            twin=str(attrs.get(SAMPLER_KEY, UNIFORM)) if TWIN_KEY in attrs else "",
            promotion=PROMOTES_KEY in attrs,
            lost=bool(attrs.get(LOST_KEY)),
            interrupted=bool(attrs.get(INTERRUPTED_KEY)),
            retry=retry,
        )

    @property
    def cut_off(self) -> bool:
        """Whether it ended without being the cause."""
        return self.lost or self.interrupted


class Plan:
    """A view of a study's trials, in order of their number.

    Args:
        trials: The trials, Optuna's or stored ones.
        target: Trials that must finish, see `Target`; 0 where nothing is to come.
        promotions: How many of them train the best stopped configurations in full.
    """

    def __init__(
        self,
        trials: Iterable[FrozenTrial | TrialRun],
        *,
        target: int = 0,
        promotions: int = 0,
    ) -> None:
        self._attempts = [Attempt.of(trial) for trial in trials]
        self._target = target
        self._promotions = promotions

    def counts(self, *, twins: bool = False) -> dict[str, int]:
        """Ended trials by state: ``complete``, ``pruned`` and ``fail``, without interrupted ones.

        Args:
            twins: Whether to count twins as well.
        """
        counts = {"complete": 0, "pruned": 0, "fail": 0}
        for one in self._attempts:
            if one.state in counts and not one.interrupted and (twins or not one.twin):
                counts[one.state] += 1
        return counts

    @property
    def twins(self) -> int:
        """Twins, each attempt counted."""
        return sum(bool(one.twin) for one in self._attempts)

    @property
    def finished(self) -> int:
        """Trials that are results of the study, of those that were asked for."""
        return sum(one.state in _FINISHED and not one.twin for one in self._attempts)

    @property
    def next_slot(self) -> int:
        """The lowest slot that no trial has had."""
        return max((one.slot for one in self._attempts if one.slot is not None), default=-1) + 1

    @property
    def waiting(self) -> Attempt | None:
        """The trial that Optuna hands out next, if one waits."""
        return next((one for one in self._attempts if one.state == "waiting"), None)

    def next(self) -> Next:
        """What a worker does next; twins are run even where the study has its trials."""
        waiting = self.waiting
        running = [one for one in self._attempts if one.state == "running"]
        taken = self.finished + sum(not one.twin for one in running)
        if taken >= self._target and not (waiting is not None and waiting.twin):
            # What runs may yet be lost with its worker, and then somebody must try it again.
            return Next.WAIT if running else Next.DONE
        if waiting is not None:
            return Next.QUEUED
        if not self._promotions or taken < self._target - self._promotions:
            return Next.NEW
        # A trial that still runs may be among the best; a twin or a promotion is never stopped.
        candidates = any(not (one.twin or one.promotion) for one in running)
        return Next.WAIT if candidates else Next.PROMOTION

    def has_twin(self, slot: int, sampler: str = UNIFORM) -> bool:
        """Whether a slot has a twin under that sampler, however it may have ended."""
        return (slot, sampler) in self._places()

    def retries(self) -> list[tuple[Place, list[int]]]:
        """Places that are to be tried again, in order, each with the numbers of its attempts."""
        # The usual answer, which many ask for.
        if not any(one.cut_off for one in self._attempts):
            return []
        return [
            (place, [one.number for one in attempts])
            for place, attempts in sorted(self._places().items())
            if _is_to_be_retried(attempts)
        ]

    def unsettled(self) -> set[Place]:
        """Places with a trial that is open or will be tried again."""
        return {
            place
            for place, attempts in self._places().items()
            if any(one.state in _OPEN for one in attempts) or _is_to_be_retried(attempts)
        }

    def failed_in_a_row(self) -> list[int]:
        """Numbers of the last trials that ended by themselves, as far as all of them failed."""
        own = [o for o in self._attempts if o.state in (*_FINISHED, "fail") and not o.cut_off]
        failed: list[int] = []
        for one in reversed(own):
            if one.state != "fail":
                break
            failed.insert(0, one.number)
        return failed

    def slot_of(self, number: int) -> int:
        """The slot of a trial that nobody has given one.

        It is the trial's number less the retries and twins before it, which have the slot of the
        trial that they repeat.
        """
        return number - sum(one.retry or bool(one.twin) for one in self._attempts[:number])

    def _places(self) -> dict[Place, list[Attempt]]:
        places: dict[Place, list[Attempt]] = collections.defaultdict(list)
        for one in self._attempts:
            if one.slot is not None:
                places[one.slot, one.twin].append(one)
        return places


def slot_of(study: optuna.Study, trial: FrozenTrial | optuna.trial.Trial) -> int:
    """The trial's place in the study's plan, from 0."""
    slot = trial.user_attrs.get(SLOT_KEY)
    if slot is not None:
        return int(slot)
    return Plan(study.get_trials(deepcopy=False)).slot_of(trial.number)


def _is_to_be_retried(attempts: Sequence[Attempt]) -> bool:
    # A trial may be the cause of its worker's end. It is not that of an interruption.
    lost = sum(one.lost for one in attempts)
    held = any(one.state in (*_OPEN, *_FINISHED) for one in attempts)
    return attempts[-1].cut_off and not held and lost <= RETRIES


_FAILURES_IN_A_ROW = 3


class StudyFailedError(HpoMabError):
    """Trial after trial failed; the message holds the last reason."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a study is to reach; kept with it, so that all its workers know.

    Attributes:
        trials: Trials that must be complete or pruned, twins not counted.
        total: What all trials together may spend, as written; None is no limit.
        epoch_examples: Examples of one epoch.
    """

    trials: int
    total: str | None
    epoch_examples: int

    def raised(self, stored: Target) -> Target:
        """A stored target, raised to this one where this one is higher.

        Without a limit here the stored limit stays. Limits of different units cannot be compared:
        there this one is taken.
        """
        total = self.total or stored.total
        if self.total is not None and stored.total is not None:
            before, now = TotalBudget.parse(stored.total), TotalBudget.parse(self.total)
            if before.unit == now.unit and before.amount > now.amount:
                total = stored.total
        return dataclasses.replace(self, trials=max(self.trials, stored.trials), total=total)

    def save(self, study: optuna.Study) -> None:
        """Write the target into the study, in place of an earlier one."""
        study.set_user_attr(TARGET_KEY, dataclasses.asdict(self))

    @classmethod
    def load(cls, study: optuna.Study) -> Self:
        """The study's target as it is now; that of its definition where it has none."""
        stored = study.user_attrs.get(TARGET_KEY)
        if stored is None:
            definition = Definition.load(study)
            budget = definition.spec["budget"]
            return cls(
                trials=budget["trials"],
                total=budget["total"],
                epoch_examples=definition.epoch_examples,
            )
        return cls(**stored)

    def is_spent(self, study: optuna.Study, curves: CurveStore) -> bool:
        """Whether the total budget is used up."""
        return self.share_spent(study, curves) >= 1

    def share_spent(self, study: optuna.Study, curves: CurveStore) -> float:
        """Share of the total budget spent, lost and running trials included; 0 without limit."""
        if self.total is None:
            return 0.0
        examples, seconds = curves.spent(study._study_id)
        evaluation = sum(
            float(trial.user_attrs.get(EVALUATION_KEY, 0.0))
            for trial in study.get_trials(deepcopy=False)
        )
        return TotalBudget.parse(self.total).share_spent(
            seconds=seconds + evaluation, examples=examples, epoch_examples=self.epoch_examples
        )


def raise_if_failing(study: optuna.Study) -> None:
    """Give up after three failures in a row.

    Raises:
        StudyFailedError: The last three trials failed by themselves.
    """
    trials = study.get_trials(deepcopy=False)
    failed = Plan(trials).failed_in_a_row()
    if len(failed) >= _FAILURES_IN_A_ROW:
        reason = trial_attributes(trials[failed[-1]]).get(REASON_KEY, "see the log")
        raise StudyFailedError(
            f"{_FAILURES_IN_A_ROW} trials in a row failed, the last with: {reason}"
        )
