"""A learning curve on its way into the database."""

from __future__ import annotations

import time
from collections.abc import Callable

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
        self._waiting.append(evaluation)
        if self._clock() - self._written >= self._seconds:
            self.flush()

    def flush(self) -> None:
        """Write what waits; to be called before the trial ends."""
        if not self._waiting:
            return
        self._curves.extend(self._trial_id, self._waiting, anew=self._anew)
        self._waiting.clear()
        self._anew = False
        self._written = self._clock()
