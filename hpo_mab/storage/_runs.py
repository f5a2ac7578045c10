"""Finished and running studies as plain records, read once and analysed without a database."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from hpo_mab._attributes import RESUMED_KEY
from hpo_mab.training import Evaluation


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TrialRun:
    """One trial of a study with its learning curve.

    Attributes:
        number: Optuna's trial number.
        slot: Place in the study's plan. Trials of paired studies with the same slot share seed,
            initial weights and, where ``paired``, configuration. A retried trial keeps its slot.
        state: ``"complete"``, ``"pruned"``, ``"fail"`` or ``"running"``.
        params: Optuna's parameters.
        value: The objective (final validation accuracy); None unless complete.
        paired: Whether the configuration was given to every arm of a comparison.
        curve: Evaluations in order of budget.
        attrs: The trial's user attributes.
    """

    number: int
    slot: int
    state: str
    params: Mapping[str, Any]
    value: float | None
    paired: bool
    curve: tuple[Evaluation, ...]
    attrs: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def examples(self) -> int:
        """Training examples of the trial, those of the attempt it went on from included."""
        return self.curve[-1].examples if self.curve else 0

    @property
    def seconds(self) -> float:
        """Training seconds of the trial, counted likewise; the sampler's cost is part of them."""
        return self.curve[-1].seconds if self.curve else 0.0

    @property
    def lacks_curve(self) -> bool:
        """Whether it was evaluated, but its curve is not here: what it has cost is not known.

        A trial without attributes was not run, but added with its value by somebody else.
        """
        evaluated = bool(self.attrs) and (self.value is not None or "examples" in self.attrs)
        return evaluated and not self.curve

    @property
    def inherited(self) -> Evaluation | None:
        """The last evaluation that an earlier attempt at the trial had made and paid for."""
        count = min(int(self.attrs.get(RESUMED_KEY, 0)), len(self.curve))
        return self.curve[count - 1] if count else None

    @property
    def own_examples(self) -> int:
        """Training examples that this attempt at the trial has processed."""
        return self.examples - (self.inherited.examples if self.inherited else 0)

    @property
    def own_seconds(self) -> float:
        """Training seconds that this attempt at the trial has spent."""
        return self.seconds - (self.inherited.seconds if self.inherited else 0.0)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StudyRun:
    """One study: its definition and its trials in order of their number.

    Attributes:
        name: Optuna's study name.
        arm: Name of the arm of a comparison, e.g. ``"mab"`` or ``"uniform"``.
        seed: The study's seed; studies of different arms with one seed are paired.
        trial_examples: Budget of one unpruned trial, in training examples.
        spec: The definition the study was made from, as JSON-like values.
        trials: All trials.
    """

    name: str
    arm: str
    seed: int
    trial_examples: int
    spec: Mapping[str, Any]
    trials: tuple[TrialRun, ...]

    @property
    def missing_curves(self) -> int:
        """Trials whose curve is not here; where there are any, no cost of the study is known."""
        return sum(trial.lacks_curve for trial in self.trials)

    @property
    def examples(self) -> int | None:
        """Training examples spent by all trials, whatever their end; None if not known."""
        return None if self.missing_curves else sum(trial.own_examples for trial in self.trials)

    @property
    def seconds(self) -> float | None:
        """Training seconds spent by all trials, whatever their end; None if not known."""
        return None if self.missing_curves else sum(trial.own_seconds for trial in self.trials)

    @property
    def saved_examples(self) -> int | None:
        """Training examples that pruned trials did not spend; None if not known."""
        if self.missing_curves:
            return None
        pruned = [trial for trial in self.trials if trial.state == "pruned"]
        return sum(self.trial_examples - trial.examples for trial in pruned)

    @property
    def best(self) -> TrialRun | None:
        """The complete trial of the highest value, the earliest of equals, if there is one."""
        complete = [trial for trial in self.trials if trial.value is not None]
        return max(complete, key=lambda trial: trial.value or 0.0, default=None)
