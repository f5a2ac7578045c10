"""Passing on the trials that other processes have finished."""

from __future__ import annotations

import optuna
from optuna.trial import FrozenTrial

from hpo_mab._plan import budgets_of
from hpo_mab.search._observer import Observer
from hpo_mab.storage._definition import StoredDefinition


class FinishedWatch:
    """Passes every trial that finishes from now on to an observer once."""

    def __init__(self, study: optuna.Study, observer: Observer) -> None:
        self._study = study
        self.observer = observer
        self._known = {t.number for t in self._trials() if t.state.is_finished()}
        definition = StoredDefinition.load(study)
        self._evaluations = definition.settings.evaluations_of(definition.trial_examples) or 1

    def report(self, trial: FrozenTrial) -> None:
        """Pass a trial that has finished to the observer."""
        self._known.add(trial.number)
        self.observer.ended(self._study, trial)

    def report_new(self) -> list[FrozenTrial]:
        """Pass the trials finished since the last call to the observer; returns them."""
        trials = self._trials()
        new = [t for t in trials if t.state.is_finished() and t.number not in self._known]
        for trial in new:
            self.report(trial)
        # Trials of other processes show progress by their last report only.
        if not new:
            self.observer.running(
                {
                    t.number: t.last_step / (self._evaluations * budgets_of(t.user_attrs))
                    for t in trials
                    if not t.state.is_finished() and t.last_step is not None
                }
            )
        return new

    def _trials(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)
