"""The plan of a study: its slots and attempts, and which is next.

A *slot* is a position in the plan, from 0, with one configuration and one seed. A *twin* repeats a
slot under another batch sampler. A trial is an *attempt* at a *place*: a slot or a twin. An attempt
that was cut off is followed by another one. A *promotion* has a slot of its own, in which it trains
a stopped configuration in full. A *continuation* has the slot of a paused or complete attempt and
replaces it; if the continuation is pruned, a complete attempt stays.

=========== ================================ ==========================================
trial        counts towards ``budget.trials`` may be tried again
=========== ================================ ==========================================
complete     yes                              no
pruned       yes                              no
running      yes                              if its worker is lost, or interrupted
failed       no                               if it was lost or interrupted
twin         no                               as any other
promotion    yes                              as any other
continuation in place of what it continues   as any other
=========== ================================ ==========================================

The plan works on the trials of Optuna and on stored ones, and imports neither Optuna nor torch.
`hpo_mab._results` counts its trials.
"""

from __future__ import annotations

import collections
import dataclasses
import enum
import functools
import hashlib
import itertools
import weakref
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

from hpo_mab._attributes import (
    INTERRUPTED_KEY,
    LENGTH_KEY,
    LOST_KEY,
    PAIRED_KEY,
    PROMOTES_KEY,
    RESUMED_KEY,
    RETRY_KEY,
    SAMPLER_KEY,
    SLOT_KEY,
    TWIN_KEY,
    UNIFORM,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    import optuna
    from optuna.trial import FrozenTrial

    from hpo_mab.storage import TrialRun

#: Most retries of a trial whose worker is lost, without getting further.
RETRIES = 3


def derive_seed(*parts: int | str) -> int:
    """A seed in [0, 2**32) that depends on every part and on nothing else."""
    text = "\x1f".join(str(part) for part in parts).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=4).digest())


def trial_seed(seed: int, slot: int) -> int:
    """The seed of initial weights, batches and augmentation of the trial in a slot."""
    return derive_seed(seed, "trial", slot)


#: A slot, and the batch sampler of its twin; "" for the slot's own trial.
Place = tuple[int, str]

#: `TrialRun`'s states: of results, of all ended trials, and of trials that have not ended.
FINISHED_STATES = ("complete", "pruned")
ENDED_STATES = (*FINISHED_STATES, "fail")
OPEN_STATES = ("waiting", "running")


class Next(enum.Enum):
    """The next action of a worker."""

    DONE = "the study has reached its target"
    WAIT = "other workers are running the last ones"
    QUEUED = "run the trial that waits"
    PROMOTION = "train one of the best configurations in full, or further"
    NEW = "try another configuration"


@dataclasses.dataclass(frozen=True)
class Attempt:
    """A trial's state and user attributes, as typed values.

    A plan is made for every trial and reads all attempts, so most properties are computed once.

    Attributes:
        number: Optuna's trial number.
        state: ``"waiting"``, ``"running"``, ``"complete"``, ``"pruned"`` or ``"fail"``.
        attrs: Its user attributes.
        retry: Whether it follows an attempt that was cut off; False for every stored trial.
    """

    number: int
    state: str
    attrs: Mapping[str, Any]
    retry: bool

    @classmethod
    def of(cls, trial: FrozenTrial | TrialRun) -> Attempt:
        """The attempt of an Optuna trial or of a stored one."""
        # Distinguished by the state, so that neither class needs to be imported.
        any_trial: Any = trial
        if isinstance(any_trial.state, str):
            return cls(any_trial.number, any_trial.state, any_trial.attrs, False)
        retry = RETRY_KEY in any_trial.system_attrs
        return cls(any_trial.number, any_trial.state.name.lower(), any_trial.user_attrs, retry)

    @functools.cached_property
    def slot(self) -> int | None:
        """Its slot; None if it has none yet."""
        slot = self.attrs.get(SLOT_KEY)
        return None if slot is None else int(slot)

    @functools.cached_property
    def place(self) -> Place | None:
        """Its slot, or its slot's twin under its batch sampler; None if it has no slot yet."""
        if self.slot is None:
            return None
        return self.slot, (self.sampler or UNIFORM) if self.twin else ""

    @functools.cached_property
    def twin(self) -> bool:
        """Whether it repeats its slot under another batch sampler."""
        return TWIN_KEY in self.attrs

    @property
    def lacked_checkpoint(self) -> bool:
        """Whether it was to continue a complete trial whose checkpoint its worker could not use."""
        lengthens = budgets_of(self.attrs) > 1 and RESUMED_KEY not in self.attrs
        return self.state == "pruned" and lengthens

    @property
    def sampler(self) -> str | None:
        """Its batch sampler; None where it is not stored, and is the definition's."""
        return self.attrs.get(SAMPLER_KEY)

    @property
    def uniform(self) -> bool:
        """Whether its stored batch sampler is uniform sampling."""
        return self.sampler == UNIFORM

    @functools.cached_property
    def promotes(self) -> int | None:
        """Number of the trial that it trains in full or continues; None without one."""
        return self.attrs.get(PROMOTES_KEY)

    @functools.cached_property
    def lost(self) -> bool:
        """Whether its worker ended without recording it."""
        return bool(self.attrs.get(LOST_KEY))

    @functools.cached_property
    def interrupted(self) -> bool:
        """Whether it was interrupted."""
        return bool(self.attrs.get(INTERRUPTED_KEY))

    @functools.cached_property
    def cut_off(self) -> bool:
        """Whether it was interrupted or lost its worker, and so did not fail by itself."""
        return self.lost or self.interrupted

    @functools.cached_property
    def finished(self) -> bool:
        """Whether it is complete or pruned."""
        return self.state in FINISHED_STATES

    @property
    def unstoppable(self) -> bool:
        """Whether it is complete and the study's pruner could not stop it.

        True of the first ``search.initial`` configurations, not of their twins.
        """
        return self.state == "complete" and bool(self.attrs.get(PAIRED_KEY)) and not self.twin


class Plan:
    """A study's attempts in order of number: ``before``, already read, then those of ``trials``."""

    #: Of each study, the attempts before the first one that has not ended. They do not change.
    _attempts_read: ClassVar[weakref.WeakKeyDictionary[optuna.Study, Sequence[Attempt]]] = (
        weakref.WeakKeyDictionary()
    )

    def __init__(
        self, trials: Iterable[FrozenTrial | TrialRun], *, before: Sequence[Attempt] = ()
    ) -> None:
        self._attempts = [*before, *map(Attempt.of, trials)]

    @classmethod
    def of(cls, study: optuna.Study) -> Self:
        """The plan of a study as it is now.

        It is made for every trial, and a study may have thousands. So it reads only the first trial
        that had not ended at the last call, and those after it.
        """
        ended = cls._attempts_read.get(study, ())
        new = study.get_trials(deepcopy=False)[len(ended) :]
        plan = cls(new, before=ended)
        later = plan._attempts[len(ended) :]
        if more := [*itertools.takewhile(lambda attempt: attempt.state in ENDED_STATES, later)]:
            cls._attempts_read[study] = [*ended, *more]
        return plan

    def _in_state(self, state: str) -> list[Attempt]:
        return [attempt for attempt in self._attempts if attempt.state == state]

    @functools.cached_property
    def _continuations(self) -> list[tuple[Attempt, Attempt]]:
        """Pairs of a trial and the trial that continues it in its slot."""
        by_number: dict[int | None, Attempt] = {one.number: one for one in self._attempts}
        promotions = (one for one in self._attempts if one.promotes in by_number)
        pairs = ((by_number[one.promotes], one) for one in promotions)
        return [(a, b) for a, b in pairs if a.slot is not None and a.slot == b.slot]

    @functools.cached_property
    def _replaced(self) -> set[int]:
        return replaced_numbers(self._continuations)

    @property
    def finished(self) -> int:
        """Trials that are results of the study, without twins and trials that were continued."""
        finished = (attempt for attempt in self._attempts if attempt.finished and not attempt.twin)
        return sum(attempt.number not in self._replaced for attempt in finished)

    @property
    def next_slot(self) -> int:
        """The slot after the highest that a trial has had."""
        slots = (attempt.slot for attempt in self._attempts if attempt.slot is not None)
        return max(slots, default=-1) + 1

    @property
    def first_running_slot(self) -> int:
        """The lowest slot of a uniform trial that runs for the first time; else `next_slot`."""
        slots = (
            attempt.slot
            for attempt in self._in_state("running")
            if attempt.slot is not None
            and attempt.sampler in (None, UNIFORM)
            and not (attempt.retry or attempt.twin)
        )
        return min(slots, default=self.next_slot)

    @property
    def waiting(self) -> Attempt | None:
        """The waiting trial to begin next: a twin, else a retry, else a trial of the user's."""
        waiting = self._in_state("waiting")
        return min(
            waiting, key=lambda attempt: (not attempt.twin, attempt.slot is None), default=None
        )

    def next(self, trials: int, *, promotions: int = 0, promotable: bool = False) -> Next:
        """The next action of a worker; twins are trained even if the study has all its trials.

        Args:
            trials: How many must finish.
            promotions: How many of them train the best stopped configurations in full.
            promotable: Whether a trial is to continue before another configuration is tried.
        """
        waiting = self.waiting
        # A trial without a slot is of another program, and may never end.
        running = [attempt for attempt in self._in_state("running") if attempt.slot is not None]
        begun = self.finished + sum(not attempt.twin for attempt in running)
        if waiting is not None and (begun < trials or waiting.twin):
            return Next.QUEUED
        if promotable:
            return Next.PROMOTION
        if begun >= trials:
            # A running trial may be lost with its worker, and is then tried again.
            return Next.WAIT if running else Next.DONE
        if begun < trials - promotions:
            return Next.NEW
        # A trial that still runs may be among the best; a twin or a promotion is never stopped.
        candidates = any(not attempt.twin and attempt.promotes is None for attempt in running)
        return Next.WAIT if candidates else Next.PROMOTION

    def retries(self) -> list[tuple[Place, list[int]]]:
        """Places that are to be tried again, in order, each with the numbers of its attempts."""
        # A shortcut: usually no trial was cut off, and this is called before every trial.
        if not any(attempt.cut_off for attempt in self._attempts):
            return []
        return [
            (place, [attempt.number for attempt in attempts])
            for place, attempts in sorted(self.places.items())
            if _is_to_be_retried(attempts)
        ]

    def unsettled(self) -> set[Place]:
        """Places with a trial that is open or will be tried again."""
        return {
            place
            for place, attempts in self.places.items()
            if any(attempt.state in OPEN_STATES for attempt in attempts)
            or _is_to_be_retried(attempts)
        }

    def failed_in_a_row(self) -> list[int]:
        """Numbers of the last trials that failed by themselves, with no healthy trial in between.

        A running trial counts as healthy if it began before the last failure.
        """
        own = [
            attempt
            for attempt in self._attempts
            if attempt.state != "waiting" and not attempt.cut_off
        ]
        failed: list[int] = []
        for attempt in reversed(own):
            if attempt.state == "fail":
                failed.insert(0, attempt.number)
            elif failed or attempt.state != "running":
                break
        return failed

    def is_suspect(self, number: int) -> bool:
        """Whether a trial follows two attempts that lost their worker: it may itself end it."""
        if number >= len(self._attempts):  # It was made after the plan.
            return False
        attempt = self._attempts[number]
        place = attempt.place
        return attempt.retry and place is not None and _times_lost(self.places[place]) >= 2

    def slot_of(self, number: int) -> int:
        """The slot of a trial that has none yet.

        It is the trial's number minus the retries and twins before it, which have the slot of the
        trial that they repeat.
        """
        return number - sum(attempt.retry or attempt.twin for attempt in self._attempts[:number])

    @functools.cached_property
    def places(self) -> dict[Place, list[Attempt]]:
        """The attempts at each slot, and at each slot's twins, in order of number.

        If a slot was continued, only the attempts at its last continuation.
        """
        places: dict[Place, list[Attempt]] = collections.defaultdict(list)
        for attempt in self._attempts:
            if attempt.place is None:
                continue
            attempts = places[attempt.place]
            if attempts and attempt.promotes not in (None, attempts[-1].promotes):
                attempts.clear()
            attempts.append(attempt)
        return places


def budgets_of(attrs: Mapping[str, Any]) -> int:
    """The length of a trial in budgets, from its attributes."""
    return int(attrs.get(LENGTH_KEY, 1))


def slot_of(study: optuna.Study, trial: FrozenTrial | optuna.trial.Trial) -> int:
    """The trial's slot; computed from its number if none is stored."""
    slot = trial.user_attrs.get(SLOT_KEY)
    if slot is not None:
        return int(slot)
    return Plan.of(study).slot_of(trial.number)


def replaced_numbers(pairs: Iterable[tuple[Attempt, Attempt]]) -> set[int]:
    """Numbers of trials that do not count, from pairs of a trial and its continuation."""
    return {
        # A complete trial counts if its continuation was pruned.
        (after if (before.state, after.state) == ("complete", "pruned") else before).number
        for before, after in pairs
        if after.state != "fail"
    }


def _times_lost(attempts: Sequence[Attempt]) -> int:
    """The number of lost attempts since one continued further than those before."""
    lost = reached = 0
    for attempt in attempts:
        if (resumed_at := attempt.attrs.get(RESUMED_KEY, 0)) > reached:
            lost, reached = 0, resumed_at
        lost += attempt.lost
    return lost


def _is_to_be_retried(attempts: Sequence[Attempt]) -> bool:
    # A trial may itself end its worker, e.g. by using up memory. So the number of lost attempts is
    # limited; that of interrupted ones is not, nor of those that continued further than before.
    needless = any(
        attempt.state in OPEN_STATES or (attempt.finished and not attempt.lacked_checkpoint)
        for attempt in attempts
    )
    return attempts[-1].cut_off and not needless and _times_lost(attempts) <= RETRIES
