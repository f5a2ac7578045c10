"""A learning curve on its way into the database."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from hpo_mab.storage._curves import CurveStore
from hpo_mab.training import Evaluation


class CurveWriter:
    """Collects a trial's evaluations and writes them every few seconds, many at a time.

    A short trial's curve is one transaction, a long one's a few; a trial that is killed loses what
    it evaluated in the last moments. Nothing is written before the first evaluation, and the first
    writing forgets what an earlier attempt at the trial has left.

    Args:
        curves: Where to.
        trial_id: Optuna's trial id.
        seconds: Longest time that an evaluation waits for the next one.
        clock: Returns seconds.
    """

    def __init__(
        self,
        curves: CurveStore,
        trial_id: int,
        *,
        seconds: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._curves = curves
        self._trial_id = trial_id
        self._seconds = seconds
        self._clock = clock
        self._waiting: list[Evaluation] = []
        self._anew = True
        self._written = clock()

    def append(self, evaluation: Evaluation) -> None:
        """Add an evaluation; it is written now if the last writing was a while ago."""
        self.add(evaluation)
        if self.is_due:
            self.flush()

    def add(self, evaluation: Evaluation) -> None:
        """Add an evaluation, to be written later."""
        self._waiting.append(evaluation)

    @property
    def is_due(self) -> bool:
        """Whether the last writing was a while ago."""
        return self._clock() - self._written >= self._seconds

    def flush(self) -> None:
        """Write what waits; to be called before the trial ends."""
        self.flush_all([self])

    @staticmethod
    def flush_all(writers: Iterable[CurveWriter]) -> None:
        """Write what waits in writers of one store, in one transaction."""
        full = [writer for writer in writers if writer._waiting]
        if not full:
            return
        full[0]._curves.extend_many([(w._trial_id, w._waiting, w._anew) for w in full])
        for writer in full:
            writer._waiting.clear()
            writer._anew = False
            writer._written = writer._clock()
