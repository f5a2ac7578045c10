"""The private parts of Optuna that this package uses.

Optuna numbers studies and trials by ids that have no public name, and keeps the settings of its
pruners privately. Nothing but this module, `_lean`, `_tables` and `search._ranges` touches them.
This module imports neither SQLAlchemy nor torch, as a user's pruner needs neither.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.pruners import BasePruner, HyperbandPruner
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.study._tell import _tell_with_warning
from optuna.trial import FrozenTrial, TrialState

from hpo_mab._attributes import RETRY_KEY, attrs_of_retry
from hpo_mab._errors import HpoMabWarning

#: Begins the system attribute of an artifact; its id follows.
ARTIFACT = "artifacts:"
#: Begins the system attribute of a rung of successive halving that a trial has reached.
RUNG_PREFIX = "completed_rung_"
#: The system attributes of a grid's point.
GRID_KEYS = ("grid_id", "search_space")


def queued_params(trial: optuna.trial.Trial) -> Mapping[str, Any]:
    """Parameters that a trial was queued with, by `optuna.Study.enqueue_trial`."""
    found: Mapping[str, Any] = trial._cached_frozen_trial.system_attrs.get("fixed_params", {})
    return found


def id_of(known: optuna.Study | optuna.trial.Trial | FrozenTrial) -> int:
    """Optuna's id of a study or a trial, which no other one in its storage has."""
    return known._study_id if isinstance(known, optuna.Study) else known._trial_id


def is_of_deleted(error: Exception) -> bool:
    """Whether a database storage raised the error because a study or a trial has been deleted."""
    return isinstance(error, KeyError) and error.args == ("Record does not exist.",)


def storage_of(study: optuna.Study) -> BaseStorage:
    """The storage of a study."""
    return study._storage


def engine_of(study: optuna.Study) -> Any:
    """The SQLAlchemy engine of a study's storage; None if it has none."""
    # Optuna puts a cache around a database storage.
    return getattr(getattr(study._storage, "_backend", study._storage), "engine", None)


def add_running(study: optuna.Study, user_attrs: dict[str, Any], **known: Any) -> int:
    """Add a running trial that has its attributes from the start; returns its id.

    ``known`` are ``params`` and ``distributions``, if they are not to be suggested.
    """
    template = unchecked_trial(state=TrialState.RUNNING, user_attrs=user_attrs, **known)
    return add_copy(study, template)


def unchecked_trial(
    *,
    state: TrialState,
    user_attrs: Mapping[str, Any],
    system_attrs: Mapping[str, Any] | None = None,
    params: Mapping[str, Any] | None = None,
    distributions: Mapping[str, BaseDistribution] | None = None,
) -> FrozenTrial:
    """A trial for `add_copy`, as `optuna.create_trial` makes it, but with unchecked parameters.

    Optuna lets users enqueue values outside their range, which `optuna.create_trial` refuses.
    """
    made = optuna.create_trial(
        state=state, user_attrs=dict(user_attrs), system_attrs=dict(system_attrs or {})
    )
    made.params, made.distributions = dict(params or {}), dict(distributions or {})
    return made


def retry_of(trial: FrozenTrial, numbers: Sequence[int]) -> FrozenTrial:
    """A waiting trial that repeats ``trial``, the last of the attempts ``numbers``."""
    # `fixed_params` holds queued parameters until they are suggested. Other attributes are results,
    # or the state of a search sampler, which would replace a newer one.
    kept = ("fixed_params", *GRID_KEYS)
    system = {key: one for key, one in trial.system_attrs.items() if key in kept}
    return unchecked_trial(
        state=TrialState.WAITING,
        params=trial.params,
        distributions=trial.distributions,
        user_attrs=attrs_of_retry(trial.user_attrs),
        system_attrs={**system, RETRY_KEY: numbers[0], "retry_history": [*numbers]},
    )


def begin_waiting(study: optuna.Study, waiting: FrozenTrial) -> bool:
    """Let a waiting trial run; returns whether it was still waiting."""
    try:
        return study._storage.set_trial_state_values(id_of(waiting), TrialState.RUNNING)
    except UpdateFinishedTrialError:
        return False


def running_trial(study: optuna.Study, trial_id: int) -> optuna.trial.Trial:
    """A running trial, as `optuna.Study.ask` returns one: it calls the study's sampler."""
    study._thread_local.cached_all_trials = None
    return optuna.trial.Trial(study, trial_id)


def tell(
    study: optuna.Study, trial: optuna.trial.Trial, value: float | None, state: TrialState
) -> None:
    """`optuna.Study.tell` without its last read; a trial that has ended stays as it is."""
    # Another process may end it after it was read.
    with contextlib.suppress(UpdateFinishedTrialError):
        _tell_with_warning(study, trial, value, state, skip_if_finished=True)


def add_copy(study: optuna.Study, trial: FrozenTrial) -> int:
    """Add a trial to a study as it is, running or finished; returns its id."""
    return study._storage.create_new_trial(study._study_id, template_trial=trial)


def settings_of(made: BasePruner | BaseSampler) -> dict[str, Any]:
    """What one of Optuna's pruners or samplers was made with, by the names of its arguments."""
    return {name.removeprefix("_"): value for name, value in vars(made).items()}


def startup_trials(pruner: BasePruner) -> int:
    """How many trials a pruner lets end before it stops one; 0 if it has no such number."""
    # `PatientPruner` stops a trial only if the pruner in it does.
    pruner = getattr(pruner, "_wrapped_pruner", None) or pruner
    return int(getattr(pruner, "_n_startup_trials", 0))


def hyperband_bracket(
    pruner: HyperbandPruner, study: optuna.Study, trial: FrozenTrial
) -> tuple[int, BasePruner, optuna.Study]:
    """A trial's bracket number, the bracket's pruner, and the study with the bracket's trials."""
    number = pruner._get_bracket_id(study, trial)
    return number, pruner._pruners[number], pruner._create_bracket_study(study, number)


def completed_rungs(trial: FrozenTrial) -> int:
    """How many rungs of Optuna's successive halving a trial has reached."""
    return sum(key.startswith(RUNG_PREFIX) for key in trial.system_attrs)


def values_at_rung(trials: Sequence[FrozenTrial], rung: int) -> list[float]:
    """The values of those of the trials that have reached a rung of successive halving."""
    key = f"{RUNG_PREFIX}{rung}"
    return [float(trial.system_attrs[key]) for trial in trials if key in trial.system_attrs]


def needed_at_rung(
    values: Sequence[float], *, reduction_factor: int, direction: StudyDirection
) -> float:
    """The worst value that successive halving would promote, of all values at a rung."""
    ranked = sorted(values, reverse=direction == StudyDirection.MAXIMIZE)
    return float(ranked[max(len(ranked) // reduction_factor, 1) - 1])


def all_trials(study: optuna.Study) -> list[FrozenTrial]:
    """All trials of a study, as Optuna caches them for one trial; not to be changed.

    Hyperband limits `get_trials` to a bracket, but not this function.
    """
    return study._get_trials(deepcopy=False, use_cache=True)


class StudyView:
    """A study that shows some of its trials, to be given to one of Optuna's samplers."""

    def __init__(self, study: optuna.Study) -> None:
        self.study = study

    def __getattr__(self, name: str) -> Any:
        return getattr(self.study, name)

    def stop(self) -> None:
        """Warn in place of `optuna.Study.stop`: the study's budget decides when it ends."""
        text = "The search sampler has proposed all that it has; further trials repeat it."
        warnings.warn(text, HpoMabWarning, stacklevel=2)

    @property
    def trials(self) -> list[FrozenTrial]:
        """See `optuna.Study.trials`."""
        return self.get_trials()

    def get_trials(self, *args: Any, **options: Any) -> list[FrozenTrial]:
        """See `optuna.Study.get_trials`."""
        return self.shown(self.study.get_trials(*args, **options))

    def _get_trials(self, *args: Any, **options: Any) -> list[FrozenTrial]:
        # Optuna's samplers use this one.
        return self.shown(self.study._get_trials(*args, **options))

    def shown(self, trials: list[FrozenTrial]) -> list[FrozenTrial]:
        """Those of these trials that the view shows."""
        return trials


class AttributeSink:
    """Collects the system attributes that ``optuna_dashboard`` sets, in place of a study.

    ``known`` are those that it has.
    """

    def __init__(self, known: Mapping[str, Any]) -> None:
        self.known = dict(known)
        self.written: dict[str, Any] = {}
        self._storage = self.storage = self.study = self
        self._study_id = 0
        self._trial_id = None

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """See `optuna.storages.BaseStorage`."""
        return self.known

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """See `optuna.storages.BaseStorage`."""
        self.known[key] = self.written[key] = value


def quietly(make: Callable[..., Any], options: Mapping[str, Any], base: type) -> Any:
    """Make an object of Optuna's without its warnings about experimental features."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        made = make(**options)
    if not isinstance(made, base):
        raise TypeError(f"must be an optuna {base.__name__}, got {type(made).__name__}.")
    return made
