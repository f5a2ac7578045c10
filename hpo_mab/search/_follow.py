"""Following a training: its curve to Optuna and the database, its state to a checkpoint."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

import optuna
from optuna.study import StudyDirection

from hpo_mab._attributes import EXAMPLES_KEY, RESUMED_KEY, SECONDS_KEY
from hpo_mab._errors import ArgumentError
from hpo_mab.search._checkpoint import SlotCheckpoint
from hpo_mab.storage import CurveStore, CurveWriter
from hpo_mab.training import Evaluation, Training


def check_direction(study: optuna.Study) -> None:
    """Refuse a study that does not maximize the accuracy that its trials report.

    Raises:
        ArgumentError: The study minimizes, or has several objectives.
    """
    if study.directions != [StudyDirection.MAXIMIZE]:
        given = ", ".join(f"'{direction.name.lower()}'" for direction in study.directions)
        raise ArgumentError(
            "A trial's value is validation accuracy: the study must be created with "
            f"direction='maximize', got {given}."
        )


def follow(
    trial: optuna.trial.Trial,
    training: Training,
    *,
    evaluations: int,
    curves: CurveStore | None,
    checkpoint: SlotCheckpoint | None,
    may_prune: bool,
) -> Evaluation:
    """Train to the end of the budget, or until the pruner has seen enough.

    Evaluations that come from a checkpoint are reported, stored and judged like all others: the
    trial's curve is whole, and a pruner that keeps notes on the trial has them all. How many they
    are is the trial's user attribute `RESUMED_KEY`, so that nobody counts their cost twice.

    Args:
        trial: Optuna's trial.
        training: Its training.
        evaluations: Evaluations of a whole trial.
        curves: Where learning curves are stored; None keeps none.
        checkpoint: Where long trials are saved; None saves none.
        may_prune: Whether the study's pruner is asked.

    Returns:
        The last evaluation.

    Raises:
        optuna.TrialPruned: The pruner said so.
        TrainingDiverged: A loss is no longer finite.
    """
    if training.resumed_at:
        # Before the curve: a worker that dies in between has spent nothing, and has no curve.
        trial.set_user_attr(RESUMED_KEY, training.resumed_at)
    with contextlib.closing(TrialRecord(trial, curves)) as record:
        for evaluation in training:
            record.add(evaluation)
            if evaluation.index == evaluations:
                continue
            if may_prune and trial.should_prune():
                raise optuna.TrialPruned
            if checkpoint is not None and checkpoint.is_due(training):
                record.flush()
                checkpoint.save(training)
    if record.last is None:
        raise RuntimeError("training ended without an evaluation")
    return record.last


class TrialRecord:
    """What is known of a trial, on its way to Optuna and the database."""

    def __init__(self, trial: optuna.trial.Trial, curves: CurveStore | None) -> None:
        self.last: Evaluation | None = None
        self._trial = trial
        self._curve = None if curves is None else CurveWriter(curves, trial._trial_id)

    def add(self, evaluation: Evaluation) -> None:
        """Add an evaluation and report it."""
        self.add_later(evaluation)
        if self._curve is not None and self._curve.is_due:
            self._curve.flush()

    def add_later(self, evaluation: Evaluation) -> None:
        """Add an evaluation and report it; its point of the curve waits for `flush_all`."""
        self.last = evaluation
        if self._curve is not None:
            self._curve.add(evaluation)
        self._trial.report(evaluation.accuracy, step=evaluation.index)

    def flush(self) -> None:
        """Write what waits of the curve."""
        self.flush_all([self])

    @property
    def is_due(self) -> bool:
        """Whether the curve has waited for a while."""
        return self._curve is not None and self._curve.is_due

    @staticmethod
    def flush_all(records: Iterable[TrialRecord]) -> None:
        """Write what waits of the curves of several trials, in one transaction."""
        CurveWriter.flush_all(each._curve for each in records if each._curve is not None)

    def close(self) -> None:
        """Write the rest, whatever has ended the training."""
        self.flush()
        if self.last is not None:
            self._trial.set_user_attr(EXAMPLES_KEY, self.last.examples)
            self._trial.set_user_attr(SECONDS_KEY, round(self.last.seconds, 3))
