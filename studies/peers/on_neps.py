"""NePS as its documentation advises: ``optimizer="auto"``, checkpoints, one process per core.

https://automl.github.io/neps/latest/reference/neps_run/#parallelization and its example
``efficiency/multi_fidelity.py``. "auto" is Hyperband if there is a fidelity and no prior.
``ifbo`` downloads a model and ``priorband`` needs the user's guess, which no other arm has.
"""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

from contract import EVALUATIONS, SPACE, Job, Outcome, knobs, main, read_events

_CHECKPOINT = "checkpoint.pt"


@dataclasses.dataclass(frozen=True, kw_only=True)
class NePS:
    """A run in a folder that all workers share."""

    packages: tuple[str, ...] = ("neural-pipeline-search",)
    each_worker: bool = True

    def search(self, job: Job) -> None:
        """Call ``neps.run`` in each process, without a limit of evaluations; SIGINT ends it."""
        import neps
        import numpy as np
        import torch
        from usual import train_to

        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(100 * job.seed + job.worker)

        def evaluate_pipeline(
            pipeline_directory: Path,
            previous_pipeline_directory: Path | None,
            share: int,
            **config: float,
        ) -> float:
            before = previous_pipeline_directory
            accuracy = train_to(
                job,
                config,
                trial=_trial(pipeline_directory),
                share=share,
                before=before and before / _CHECKPOINT,
                after=pipeline_directory / _CHECKPOINT,
            )
            return 1 - accuracy

        knobs_of = {
            name: neps.Float(lower=one.low, upper=one.high, log=one.log)
            for name, one in SPACE.items()
        }
        share = neps.IntegerFidelity(lower=1, upper=EVALUATIONS)
        neps.run(
            evaluate_pipeline,
            type("Space", (neps.PipelineSpace,), {**knobs_of, "share": share})(),
            root_directory=Path(job.folder) / "neps",
            worker_evaluations_to_spend=1_000_000,
        )

    def outcome(self, job: Job) -> Outcome:
        """The configuration with the smallest error, as in ``summary/best_config.txt``."""
        import neps

        events = tuple(read_events(job.folder))
        full, _ = neps.status(Path(job.folder) / "neps", print_summary=False)
        column = "objective_to_minimize"
        evaluated = () if full.empty else full.index[full["state"] == "evaluating"]
        running = tuple(_trial(Path(f"config_{index}")) for index in evaluated)
        if column not in full or full[column].isna().all():
            return Outcome(config=None, accuracy=None, known=0, events=events, running=running)
        ended = full[full[column].notna()]
        best = ended.loc[ended[column].astype(float).idxmin()]
        names = {name.rpartition(".")[2]: name for name in full.columns}
        return Outcome(
            config=knobs({name: best[names[name]] for name in SPACE}),
            accuracy=1 - float(best[column]),
            known=len({_trial(Path(str(index))) for index in ended.index}),
            events=events,
            running=running,
        )


def _trial(folder: Path) -> str:
    """Name of a configuration without its rung: ``config_7_rung_2`` is trial ``config_7``."""
    return folder.name.partition("_rung_")[0]


ARMS = {"neps_auto": NePS()}

if __name__ == "__main__":
    main(ARMS)
