"""Syne Tune as its documentation advises: the local backend, which starts a process per trial.

https://syne-tune.readthedocs.io/en/latest/getting_started.html. ``ASHACQR`` is the model-based
multi-fidelity scheduler of its authors' latest comparison (Salinas et al., ICML 2023).
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path
from typing import Any

from contract import EVALUATIONS, SPACE, Job, Outcome, knobs, main, read_events

#: Seconds between checks of the trials. With the default of 5, workers would be idle.
_SLEEP = 0.1
_NAME = "peers"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SyneTune:
    """An experiment with a scheduler of `syne_tune.optimizer.baselines`."""

    scheduler: str
    packages: tuple[str, ...] = ("syne-tune",)
    each_worker: bool = False

    def search(self, job: Job) -> None:
        """As ``Tuner(...).run()``, or ``Tuner.load(...).run()`` where one was saved."""
        os.environ["SYNETUNE_FOLDER"] = job.folder
        from syne_tune import StoppingCriterion, Tuner

        saved = Path(job.folder) / _NAME
        is_saved = (saved / "tuner.dill").exists()
        tuner = Tuner.load(str(saved)) if is_saved else self._tuner(job)
        status = getattr(tuner, "tuning_status", None)
        spent = 0.0 if status is None else status.wallclock_time
        tuner.stop_criterion = StoppingCriterion(max_wallclock_time=spent + job.seconds_left)
        tuner.run()

    def _tuner(self, job: Job) -> Any:
        from syne_tune import StoppingCriterion, Tuner
        from syne_tune.backend import LocalBackend
        from syne_tune.config_space import loguniform, uniform
        from syne_tune.optimizer import baselines

        space: dict[str, Any] = {
            name: (loguniform if one.log else uniform)(one.low, one.high)
            for name, one in SPACE.items()
        }
        space["job"] = str(job.save())
        return Tuner(
            trial_backend=LocalBackend(entry_point=__file__),
            scheduler=getattr(baselines, self.scheduler)(
                space,
                metric="accuracy",
                do_minimize=False,
                time_attr="share",
                max_t=EVALUATIONS,
                random_seed=job.seed,
            ),
            stop_criterion=StoppingCriterion(max_wallclock_time=job.seconds_left),
            n_workers=job.workers,
            sleep_time=_SLEEP,
            tuner_name=_NAME,
            suffix_tuner_name=False,
        )

    def outcome(self, job: Job) -> Outcome:
        """As ``load_experiment(...).best_config()``."""
        os.environ["SYNETUNE_FOLDER"] = job.folder
        from syne_tune.experiments import load_experiment

        events = tuple(read_events(job.folder))
        found = load_experiment(_NAME)
        if found.results is None or found.results.empty:
            return Outcome(config=None, accuracy=None, known=0, events=events)
        best = found.best_config()
        config = {name.removeprefix("config_"): value for name, value in best.items()}
        return Outcome(
            config=knobs(config),
            accuracy=float(found.results["accuracy"].max()),
            known=int(found.results["trial_id"].nunique()),
            events=events,
        )


def trial() -> None:
    """The script that Syne Tune starts for each trial."""
    from syne_tune import Reporter
    from usual import train

    parser = argparse.ArgumentParser()
    parser.add_argument("--job")
    parser.add_argument("--st_checkpoint_dir", type=Path)
    for name in SPACE:
        parser.add_argument(f"--{name}", type=float)
    given, _ = parser.parse_known_args()
    report = Reporter()
    # The backend gives each trial a folder, named by its number.
    number = given.st_checkpoint_dir.parent.name
    job = Job.load(given.job)
    config = {name: getattr(given, name) for name in SPACE}
    for share, accuracy in enumerate(train(job, config, trial=number), start=1):
        report(share=share, accuracy=accuracy)


ARMS = {
    "syne_asha": SyneTune(scheduler="ASHA"),
    "syne_asha_cqr": SyneTune(scheduler="ASHACQR"),
}

if __name__ == "__main__":
    import sys

    if any(one.startswith("--job") for one in sys.argv):
        trial()
    else:
        main(ARMS)
