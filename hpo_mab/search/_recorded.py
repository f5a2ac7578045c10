"""Trials whose configurations another tuner chooses and stops, recorded in a study."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from hpo_mab._attributes import BUDGET_KEY, EXAMPLES_KEY, SLOT_KEY
from hpo_mab._errors import ArgumentError
from hpo_mab.storage import Storage, heartbeat


@contextlib.contextmanager
def recorded_trial(
    config: Mapping[str, Any],
    *,
    study: str,
    storage: Storage,
    number: int | None = None,
    distributions: Mapping[str, BaseDistribution] | None = None,
) -> Iterator[optuna.trial.Trial]:
    """A trial of a study for a training that another tuner, such as Ray Tune, starts and stops.

    .. code-block:: python

        def train(config):  # What the tuner calls.
            storage = Storage("/shared/studies.db")
            with (
                recorded_trial(config, study="ray-mab", storage=storage) as trial,
                TrialReporter(trial, model=model, budget_examples=20_000) as reporter,
            ):
                ...
                reporter.report(accuracy=accuracy)
                tune.report({"accuracy": reporter.accuracy})

    The study is made with the first trial. It has no pruner, because the tuner stops trials. At the
    end the trial is

    - complete, if its budget is spent, whatever ends the function then;
    - pruned, if `optuna.TrialPruned` or ``SystemExit(0)`` ends it earlier, which is how Ray Tune
      stops a function;
    - failed otherwise. A function that ends before its budget without an exception has failed.

    Exceptions pass.

    Args:
        config: The tuner's configuration.
        study: Name of the study.
        storage: Its database.
        number: The tuner's number of the trial. Trials of equal number and configuration in two
            studies are a pair of their comparison. None takes the trial's number in the study,
            which depends on the order in which workers start.
        distributions: Of the parameters, by name. Without one a number is its own range, and
            Optuna's figures of the parameters lack the bounds of the search space.

    Yields:
        The trial, for a `TrialReporter`.

    Raises:
        ArgumentError: A value is not a number and has no distribution, or lies outside it.
    """
    chosen = {
        name: (distributions or {}).get(name) or _point(name, value)
        for name, value in config.items()
    }
    for name, distribution in chosen.items():
        if not distribution._contains(distribution.to_internal_repr(config[name])):
            raise ArgumentError(f"config['{name}'] must lie in {distribution}, got {config[name]}.")
    with storage.lock(study):
        found = optuna.create_study(
            study_name=study,
            storage=storage.optuna,
            direction="maximize",
            pruner=optuna.pruners.NopPruner(),
            load_if_exists=True,
        )
    found.sampler = optuna.samplers.PartialFixedSampler(
        fixed_params=dict(config), base_sampler=optuna.samplers.RandomSampler()
    )
    with warnings.catch_warnings():
        # Optuna knows of heartbeats in its own loop only.
        warnings.filterwarnings("ignore", message="Heartbeat of storage")
        trial = found.ask(fixed_distributions=chosen)
    if number is not None:
        trial.set_user_attr(SLOT_KEY, number)
    end = TrialState.FAIL
    try:
        with heartbeat(storage.optuna, trial._trial_id):
            yield trial
    except optuna.TrialPruned:
        end = TrialState.PRUNED
        raise
    except SystemExit as stop:
        end = TrialState.FAIL if stop.code else TrialState.PRUNED
        raise
    finally:
        _tell(found, trial, end)


def _point(name: str, value: Any) -> BaseDistribution:
    """The distribution of one number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ArgumentError(
            f"config['{name}'] must be a number, or have a distribution, got {value!r}."
        )
    if isinstance(value, int):
        return IntDistribution(low=value, high=value)
    return FloatDistribution(low=value, high=value)


def _tell(study: optuna.Study, trial: optuna.trial.Trial, end: TrialState) -> None:
    frozen: FrozenTrial = study.get_trials(deepcopy=False)[trial.number]
    spent = frozen.user_attrs.get(EXAMPLES_KEY, 0) >= frozen.user_attrs.get(BUDGET_KEY, 1) - 1e-6
    value = frozen.intermediate_values.get(frozen.last_step) if frozen.last_step else None
    if spent and value is not None:
        study.tell(trial, value)
    else:
        study.tell(trial, state=end)
