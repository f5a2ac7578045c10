"""The results of a study: how many trials count, which ones, and what all have spent."""

from __future__ import annotations

import collections
import functools

from hpo_mab._attributes import (
    EVALUATION_KEY,
    REASON_KEY,
    RESUMED_KEY,
    UNREPORTED_KEY,
    unreported,
)
from hpo_mab._plan import ENDED_STATES, Plan, replaced_numbers


class Results(Plan):
    """A study's plan, and which of its trials count. Sets are of trials' numbers."""

    def counts(self, *, twins: bool = False) -> dict[str, int]:
        """Ended trials by state: ``complete``, ``pruned`` and ``fail``.

        Interrupted attempts are left out, and lost ones that were repeated.
        """
        states = self.states(twins=twins)
        return {state: states[state] for state in ENDED_STATES}

    def states(self, *, twins: bool = False) -> collections.Counter[str]:
        """Trials by state, in order of the names of the states; see `counts`.

        A trial that another one has continued does not count.
        """
        left_out = self._replaced | self._repeated
        counted = (
            attempt.state
            for attempt in self._attempts
            if not attempt.interrupted
            and attempt.number not in left_out
            and (twins or not attempt.twin)
        )
        return collections.Counter(dict(sorted(collections.Counter(counted).items())))

    @functools.cached_property
    def _repeated(self) -> set[int]:
        """Numbers of attempts that lost their worker, after which another one began."""
        placed = [attempt for attempt in self._attempts if attempt.place is not None]
        last = {attempt.place: attempt.number for attempt in placed}
        return {
            attempt.number
            for attempt in placed
            if attempt.lost and attempt.number < last[attempt.place]
        }

    @property
    def numbers_that_count(self) -> set[int]:
        """Numbers of all trials; of a trial and its continuation only the one that counts.

        That is the continuation once it has finished, and the trial before that.
        """
        finished = [pair for pair in self._continuations if pair[1].finished]
        unfinished = {after.number for _, after in self._continuations if not after.finished}
        numbers = {attempt.number for attempt in self._attempts}
        return numbers - replaced_numbers(finished) - unfinished

    @property
    def evaluation_seconds(self) -> float:
        """Seconds of evaluation of all trials, each attempt counted."""
        return sum(float(attempt.attrs.get(EVALUATION_KEY, 0.0)) for attempt in self._attempts)

    @property
    def unreported(self) -> tuple[int, float]:
        """Training examples and seconds that curves lack, each attempt counted."""
        spent = [
            unreported(attempt.attrs)
            for attempt in self._attempts
            if UNREPORTED_KEY in attempt.attrs
        ]
        return sum(examples for examples, _ in spent), sum(seconds for _, seconds in spent)

    @property
    def numbers_not_continued(self) -> set[int]:
        """Numbers of pruned trials that no other trial has continued: they saved budget.

        A continued one has saved nothing; a continuation that was pruned counts in its place.
        """
        continued = {
            before.number
            for before, after in self._continuations
            if after.finished or RESUMED_KEY in after.attrs
        }
        return {attempt.number for attempt in self._in_state("pruned")} - continued

    @property
    def numbers_diverged(self) -> set[int]:
        """Numbers of trials that diverged and count; their state is that of pruned ones."""
        pruned = self._in_state("pruned")
        diverged = {attempt.number for attempt in pruned if REASON_KEY in attempt.attrs}
        return diverged - self._replaced

    @property
    def numbers_stopped(self) -> set[int]:
        """Numbers of pruned trials that are no promotions and have not diverged."""
        pruned = self._in_state("pruned")
        return {
            attempt.number for attempt in pruned if attempt.promotes is None
        } - self.numbers_diverged

    @property
    def numbers_promoted(self) -> set[int]:
        """Numbers of the trials that another trial trains in full, or continues."""
        # The last attempt decides: earlier ones may have been cut off.
        last = {
            attempt.promotes: attempt for attempt in self._attempts if attempt.promotes is not None
        }
        return {number for number, attempt in last.items() if not attempt.lacked_checkpoint}

    @property
    def numbers_once_per_configuration(self) -> set[int]:
        """Numbers of the `numbers_that_count` trials, with one trial for each configuration.

        The study continues with the batch sampler of its highest slot. Twins under that sampler
        replace their originals; all other twins are left out.
        """
        own = [attempt for attempt in self._attempts if not attempt.twin]
        sampled = (attempt for attempt in own if attempt.sampler is not None)
        last = max(sampled, key=lambda attempt: attempt.slot or 0, default=None)
        twins = [
            attempt
            for attempt in self._attempts
            if last is not None
            and attempt.twin
            and attempt.finished
            and attempt.sampler == last.sampler
        ]
        replaced = {attempt.slot for attempt in twins}
        kept = (attempt for attempt in own if attempt.slot not in replaced)
        return {attempt.number for attempt in (*twins, *kept)} & self.numbers_that_count
