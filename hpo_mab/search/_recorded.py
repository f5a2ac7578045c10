"""Training what a recorded trial trained."""

from __future__ import annotations

from contextlib import AbstractContextManager

from hpo_mab.search._objective import TrainingObjective, trial_seed
from hpo_mab.search._workload import TrainingRun
from hpo_mab.storage import TrialRun
from hpo_mab.training import Budget


def train_recorded(
    objective: TrainingObjective,
    trial: TrialRun,
    *,
    seed: int | None = None,
    sampler: str | None = None,
    final: Budget | None = None,
) -> AbstractContextManager[TrainingRun]:
    """A recorded trial's configuration in training, from the start; see `Workload.training`.

    Args:
        objective: The objective of the trial's study.
        trial: Whose parameters to use.
        seed: Seed of the training; None takes the trial's own.
        sampler: Batch sampler with its default knobs; None takes the trial's own.
        final: Another budget than a trial's, evaluated at its end only.
    """
    configuration = objective.recorded(trial.params, trial.attrs)
    if sampler is not None:
        configuration = configuration.with_sampler(sampler)
    if seed is None:
        seed = trial_seed(objective.seed, trial.slot)
    return objective.workload.training(configuration, seed=seed, final=final)
