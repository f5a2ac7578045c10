"""When a study has done what was asked, and when it had better give up."""

from __future__ import annotations

import dataclasses
from typing import Self

import optuna

from hpo_mab._attributes import REASON_KEY, TARGET_KEY, trial_attributes
from hpo_mab._errors import HpoMabError
from hpo_mab.search._plan import Plan
from hpo_mab.search._total import TotalBudget
from hpo_mab.storage import CurveStore, Definition

_FAILURES_IN_A_ROW = 3


class StudyFailedError(HpoMabError):
    """Trial after trial failed; the message holds the last reason."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a study is to reach; kept with it, so that all its workers know.

    Attributes:
        trials: Trials that must be complete or pruned, the pilot's twins not counted.
        total: What all trials together may spend, as written; None is no limit.
        epoch_examples: Examples of one epoch.
    """

    trials: int
    total: str | None
    epoch_examples: int

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
        return TotalBudget.parse(self.total).share_spent(
            seconds=seconds, examples=examples, epoch_examples=self.epoch_examples
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
