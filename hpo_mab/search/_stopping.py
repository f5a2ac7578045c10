"""When a study has done what was asked, and when it had better give up."""

from __future__ import annotations

import optuna
from optuna.trial import FrozenTrial, TrialState

from hpo_mab._errors import HpoMabError
from hpo_mab.search._total import TotalBudget

_FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
_FAILURES_IN_A_ROW = 3


class StudyFailedError(HpoMabError):
    """Trial after trial failed; the message holds the last reason."""


class StopWhenDone:
    """Callback that stops a study when its trials or its total budget are used up.

    Args:
        trials: Trials that must be complete or pruned.
        total: What all trials together may spend; None is no limit.
        epoch_examples: Examples of one epoch.
    """

    def __init__(self, *, trials: int, total: TotalBudget | None, epoch_examples: int) -> None:
        self._trials = trials
        self._total = total
        self._epoch_examples = epoch_examples

    def __call__(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """See `optuna.Study.optimize`, ``callbacks``."""
        self.raise_if_failing(study)
        if self.is_done(study):
            study.stop()

    def is_done(self, study: optuna.Study) -> bool:
        """Whether nothing is left to run."""
        return self.remaining(study) == 0 or self.share_spent(study) >= 1

    def remaining(self, study: optuna.Study) -> int:
        """Trials still to finish."""
        finished = study.get_trials(deepcopy=False, states=_FINISHED)
        return max(0, self._trials - len(finished))

    def share_spent(self, study: optuna.Study) -> float:
        """Share of the total budget spent, 0 if there is no limit."""
        if self._total is None:
            return 0.0
        attrs = [trial.user_attrs for trial in study.get_trials(deepcopy=False)]
        return self._total.share_spent(
            seconds=sum(a.get("seconds", 0.0) for a in attrs),
            examples=sum(a.get("examples", 0) for a in attrs),
            epoch_examples=self._epoch_examples,
        )

    @staticmethod
    def raise_if_failing(study: optuna.Study) -> None:
        """Give up after three failures in a row.

        Raises:
            StudyFailedError: The last three trials failed.
        """
        ended = [t for t in study.get_trials(deepcopy=False) if t.state.is_finished()]
        last = ended[-_FAILURES_IN_A_ROW:]
        failed = [
            t for t in last if t.state == TrialState.FAIL and not t.user_attrs.get("interrupted")
        ]
        if len(failed) == _FAILURES_IN_A_ROW:
            reason = failed[-1].user_attrs.get("reason", "see the log")
            raise StudyFailedError(
                f"{_FAILURES_IN_A_ROW} trials in a row failed, the last with: {reason}"
            )
