"""Telling of trials that other processes finish."""

from __future__ import annotations

import optuna

from hpo_mab.search import TrialCallback


class FinishedTrials:
    """Passes every trial that finishes from now on to a callback, once.

    Args:
        study: The study.
        on_trial: Called with study and trial; None only counts.
    """

    def __init__(self, study: optuna.Study, on_trial: TrialCallback | None) -> None:
        self._study = study
        self._on_trial = on_trial
        self._known = {t.number for t in self._ended()}

    def look(self) -> int:
        """Pass on what has finished since the last look; returns how many trials that were."""
        new = [trial for trial in self._ended() if trial.number not in self._known]
        for trial in new:
            self._known.add(trial.number)
            if self._on_trial is not None:
                self._on_trial(self._study, trial)
        return len(new)

    def _ended(self) -> list[optuna.trial.FrozenTrial]:
        return [t for t in self._study.get_trials(deepcopy=False) if t.state.is_finished()]
