"""Optuna as its documentation advises: one process per core, a journal, a pruner.

https://optuna.readthedocs.io/en/stable/tutorial/10_key_features/004_distributed.html
"""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

import optuna
from contract import EVALUATIONS, SPACE, Job, Outcome, knobs, main, read_events
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optuna:
    """A study in a journal file that all workers open."""

    pruner: BasePruner
    tensors: bool = False
    early: int | None = None
    packages: tuple[str, ...] = ("optuna",)
    each_worker: bool = True

    def search(self, job: Job) -> None:
        """As ``study.optimize(objective, timeout=...)`` in each process."""
        from usual import train

        def objective(trial: optuna.Trial) -> float:
            config = {
                name: trial.suggest_float(name, one.low, one.high, log=one.log)
                for name, one in SPACE.items()
            }
            accuracy = 0.0
            for share, accuracy in enumerate(
                train(
                    job,
                    config,
                    trial=str(trial.number),
                    tensors=self.tensors,
                    early=self.early,
                ),
                start=1,
            ):
                trial.report(accuracy, share)
                if share < EVALUATIONS and trial.should_prune():
                    raise optuna.TrialPruned
            return accuracy

        study = optuna.create_study(
            study_name="peers",
            storage=_storage(job),
            direction="maximize",
            sampler=optuna.samplers.TPESampler(seed=100 * job.seed + job.worker),
            pruner=self.pruner,
            load_if_exists=True,
        )
        study.optimize(objective, timeout=job.seconds_left)

    def outcome(self, job: Job) -> Outcome:
        """As ``study.best_trial``."""
        study = optuna.load_study(study_name="peers", storage=_storage(job))
        ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        config, accuracy = None, None
        with contextlib.suppress(ValueError):  # No trial is complete.
            config, accuracy = knobs(study.best_params), study.best_value
        return Outcome(
            config=config,
            accuracy=accuracy,
            known=len(ended),
            events=tuple(read_events(job.folder)),
            running=tuple(
                str(trial.number)
                for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
            ),
        )


def _storage(job: Job) -> optuna.storages.JournalStorage:
    path = Path(job.folder) / "optuna.log"
    return optuna.storages.JournalStorage(JournalFileBackend(str(path)))


_HYPERBAND = HyperbandPruner(min_resource=1, max_resource=EVALUATIONS, reduction_factor=3)

ARMS = {
    "optuna_median": Optuna(pruner=MedianPruner()),
    "optuna_median_tensors": Optuna(pruner=MedianPruner(), tensors=True),
    "optuna_hyperband": Optuna(pruner=_HYPERBAND),
    "optuna_hyperband_tensors": Optuna(pruner=_HYPERBAND, tensors=True, early=2_000),
}

if __name__ == "__main__":
    main(ARMS)
