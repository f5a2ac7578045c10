"""Ray Tune as its documentation advises: a function trainable, ASHA, and OptunaSearch.

https://docs.ray.io/en/latest/tune/examples/tune-pytorch-cifar.html
https://docs.ray.io/en/latest/tune/tutorials/tune-fault-tolerance.html
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from contract import EVALUATIONS, SPACE, Job, Outcome, knobs, main, read_events


@dataclasses.dataclass(frozen=True, kw_only=True)
class RayTune:
    """An experiment with random configurations, or with `OptunaSearch` if ``optuna`` is set."""

    optuna: bool
    packages: tuple[str, ...] = ("ray", "optuna")
    each_worker: bool = False

    def search(self, job: Job) -> None:
        """As ``Tuner(...).fit()`` with a time budget, or ``Tuner.restore(...).fit()``."""
        import ray
        from ray import tune

        _start(job)
        experiment = str(Path(job.folder) / "ray")
        if tune.Tuner.can_restore(experiment):
            tuner = tune.Tuner.restore(
                experiment, trainable=_trainable(job), resume_unfinished=True
            )
        else:
            tuner = self._tuner(job)
        tuner.fit()
        ray.shutdown()

    def _tuner(self, job: Job) -> Any:
        from ray import tune
        from ray.tune.schedulers import ASHAScheduler
        from ray.tune.search.optuna import OptunaSearch

        space = {
            name: (tune.loguniform if one.log else tune.uniform)(one.low, one.high)
            for name, one in SPACE.items()
        }
        return tune.Tuner(
            _trainable(job),
            param_space=space,
            tune_config=tune.TuneConfig(
                metric="accuracy",
                mode="max",
                num_samples=-1,
                time_budget_s=job.seconds_left,
                search_alg=OptunaSearch(seed=job.seed) if self.optuna else None,
                scheduler=ASHAScheduler(max_t=EVALUATIONS, grace_period=1, reduction_factor=3),
            ),
            run_config=tune.RunConfig(name="ray", storage_path=job.folder, verbose=0),
        )

    def outcome(self, job: Job) -> Outcome:
        """As ``results.get_best_result()``."""
        from ray import tune

        events = tuple(read_events(job.folder))
        experiment = str(Path(job.folder) / "ray")
        if not tune.Tuner.can_restore(experiment):
            return Outcome(config=None, accuracy=None, known=0, events=events)
        results = tune.Tuner.restore(experiment, trainable=_trainable(job)).get_results()
        known = [one for one in results if one.metrics and "accuracy" in one.metrics]
        if not known:
            return Outcome(config=None, accuracy=None, known=0, events=events)
        best = results.get_best_result(metric="accuracy", mode="max")
        return Outcome(
            config=knobs(best.config),
            accuracy=best.metrics["accuracy"],
            known=len(known),
            events=events,
        )


def _start(job: Job) -> None:
    import random

    import numpy as np
    import ray

    # Tune draws random configurations from NumPy's global state.
    random.seed(job.seed)
    np.random.seed(job.seed)
    ray.init(
        num_cpus=job.workers,
        num_gpus=int(job.device == "cuda"),
        include_dashboard=False,
        log_to_driver=False,
    )


def _trainable(job: Job) -> Any:
    from ray import tune

    def trainable(config: dict[str, float]) -> None:
        from usual import train

        for accuracy in train(job, config, trial=tune.get_context().get_trial_id()):
            tune.report({"accuracy": accuracy})

    share = 1 / job.workers if job.device == "cuda" else 0
    return tune.with_resources(trainable, {"cpu": 1, "gpu": share})


ARMS = {"ray_asha": RayTune(optuna=False), "ray_optuna_asha": RayTune(optuna=True)}

if __name__ == "__main__":
    main(ARMS)
