"""Trials of a study for a training that another tuner, such as Ray Tune, starts and stops."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from hpo_mab._attributes import SLOT_KEY, has_spent_budget
from hpo_mab._errors import ArgumentError, check_integer, plain, require
from hpo_mab.search._ranges import holds
from hpo_mab.storage import Storage
from hpo_mab.storage._open import STORAGE_ERRORS
from hpo_mab.storage._optuna import add_running, id_of, running_trial
from hpo_mab.storage._process import hold, release


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

        def train(config):  # The tuner calls this function.
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

    - complete, if its budget is spent, even if an exception ends the function then;
    - pruned, if `optuna.TrialPruned` or ``SystemExit(0)`` ends it earlier, which is how Ray Tune
      stops a function;
    - failed otherwise. A function that ends before its budget without an exception has failed.

    Exceptions are raised again.

    Args:
        config: The tuner's configuration.
        study: Name of the study.
        storage: Its database.
        number: The tuner's number of the trial. Trials of equal number and configuration in two
            studies are a pair of their comparison. None takes the trial's number in the study,
            which depends on the order in which workers start.
        distributions: Of the parameters, by name. Without one a number is its own range, and
            Optuna's figures of parameters lack the search space's bounds.

    Yields:
        The trial, for a `TrialReporter`.

    Raises:
        ArgumentError: A value is not a number and has no distribution, or lies outside it, or
            ``number`` is no integer of at least 0.
    """
    config = plain(dict(config))
    chosen = {
        name: (distributions or {}).get(name) or _single_value(name, value)
        for name, value in config.items()
    }
    for name, distribution in chosen.items():
        require(
            holds(distribution, config[name]),
            f"config['{name}']",
            f"in {distribution}",
            config[name],
        )
    if number is not None:
        check_integer("number", number, 0)
    with storage.lock(study):
        found = optuna.create_study(
            study_name=study,
            storage=storage.optuna,
            direction="maximize",
            pruner=optuna.pruners.NopPruner(),
            load_if_exists=True,
        )
    slot = {} if number is None else {SLOT_KEY: int(number)}
    try:
        # Not `ask`: a trial that waits in the study has other parameters.
        trial_id = add_running(found, slot, params=dict(config), distributions=chosen)
    except ValueError as error:
        raise ArgumentError(
            f"config: {error}. Give distributions= for a value that is whole in one trial and a "
            "fraction in another."
        ) from error
    trial = running_trial(found, trial_id)
    end, ending = TrialState.FAIL, None
    try:
        # `hold` records the next one only after an interval.
        storage.optuna.record_heartbeat(id_of(trial))
        hold(storage.optuna, id_of(trial))
        yield trial
    except BaseException as error:
        ending = error
        stopped = isinstance(error, SystemExit) and not error.code
        if stopped or isinstance(error, optuna.TrialPruned):
            end = TrialState.PRUNED
        raise
    finally:
        release(storage.optuna, id_of(trial))
        try:
            _end_trial(found, trial, end)
        except STORAGE_ERRORS as error:
            # The caller's exception must be raised and not this one: a tuner may end a function
            # by it.
            if ending is None:
                raise
            ending.add_note(f"The end of the trial could not be stored: {type(error).__name__}.")


def _single_value(name: str, value: Any) -> BaseDistribution:
    """The distribution of one number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ArgumentError(
            f"config['{name}'] must be a number, or have a distribution, got {value!r}."
        )
    if isinstance(value, int):
        return IntDistribution(low=value, high=value)
    return FloatDistribution(low=value, high=value)


def _end_trial(study: optuna.Study, trial: optuna.trial.Trial, end: TrialState) -> None:
    frozen: FrozenTrial = study.get_trials(deepcopy=False)[trial.number]
    value = frozen.intermediate_values.get(frozen.last_step) if frozen.last_step else None
    complete = has_spent_budget(frozen.user_attrs) and value is not None
    state = TrialState.COMPLETE if complete else end
    study.tell(trial, value if complete else None, state=state, skip_if_finished=True)
