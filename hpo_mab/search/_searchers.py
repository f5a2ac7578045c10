"""Searchers by name, and their suggestions, which depend on seed, slot and history only.

A *searcher* is a sampler of Optuna, which suggests hyperparameters; a *sampler* draws batches.
"""

from __future__ import annotations

import copy
import functools
import heapq
import itertools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import OptunaError
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState

from hpo_mab._errors import ArgumentError, HpoMabError, failure_reason, name_of, require
from hpo_mab._plan import budgets_of, derive_seed, slot_of
from hpo_mab._registry import Named, Registry, bound_to
from hpo_mab._results import Results
from hpo_mab.storage._open import STORAGE_ERRORS
from hpo_mab.storage._optuna import StudyView, all_trials, is_of_deleted, quietly, settings_of

#: About how many finished trials TPE is shown. Its time grows with their number, and more of them
#: do not improve its proposals: see ``benchmarks/long_search.py``.
SHOWN_TRIALS = 1000
#: The most trials that TPE takes as good ones, by its default.
_GOOD = 25
_GOLDEN_RATIO = (math.sqrt(5) - 1) / 2


class OwnHistory(StudyView):
    """A study as shown to a searcher: each configuration once, and not too many.

    A twin differs from its original by the batch sampler, which is not a parameter. Twins under the
    sampler that the study continues with replace their originals; all others are left out. Of a
    trial and its continuations only the one that counts is shown, with its value at one budget.
    If more than ``most`` trials have finished, it shows the best ones and an even share of the
    others.

    Each trial needs a new view, because a view selects trials only once, at its first read.

    Args:
        study: The study with all trials.
        repeats: Whether the study has twins or continued trials.
        most: About how many finished trials to show; None shows all.
    """

    def __init__(self, study: optuna.Study, *, repeats: bool, most: int | None) -> None:
        super().__init__(study)
        self._repeats = repeats
        self._most = most

    @functools.cached_property
    def _numbers(self) -> set[int] | None:
        """Numbers of the trials to show; None shows all."""
        if not self._repeats and self._most is None:
            return None
        trials, once = all_trials(self.study), None
        if self._repeats:
            # Hyperband passes the study of one bracket.
            whole = type(self.study) is optuna.Study
            results = Results.of(self.study) if whole else Results(trials)
            once = results.numbers_once_per_configuration
        if self._most is None or len(trials) <= self._most:
            return once
        if once is not None:
            trials = [_at_budget(trial) for trial in trials if trial.number in once]
        return _chosen(trials, most=self._most)

    def shown(self, trials: list[FrozenTrial]) -> list[FrozenTrial]:
        """Those of the trials that are shown to the searcher."""
        numbers = self._numbers
        shown = trials if numbers is None else [t for t in trials if t.number in numbers]
        return [_at_budget(trial) for trial in shown] if self._repeats else shown


class DistinctRanges(StudyView):
    """A study as shown to TPE when it looks for the ranges that all finished trials have.

    TPE compares each range of each trial, which is slow. Of consecutive trials with equal ranges
    this shows the first only: the others change nothing. Dictionaries compare fast, as stored
    trials share the objects of equal ranges.
    """

    def shown(self, trials: list[FrozenTrial]) -> list[FrozenTrial]:
        """Finished trials whose ranges differ from those of the finished trial before."""
        finished = (t for t in trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED))
        return [next(same) for _, same in itertools.groupby(finished, lambda t: t.distributions)]


def _chosen(trials: list[FrozenTrial], *, most: int) -> set[int]:
    """Numbers of trials to show, about ``most`` of them finished.

    TPE takes the best complete trials as good ones and, if these are too few, the pruned ones that
    came furthest. So these are chosen. The others are thinned out evenly over the study: the
    fractional parts of multiples of the golden ratio are evenly spread.
    """
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    pruned = [trial for trial in trials if trial.state == TrialState.PRUNED]
    best = heapq.nlargest(_GOOD, complete, key=lambda trial: trial.value or 0.0)
    best += heapq.nlargest(_GOOD - len(best), pruned, key=_progress)
    finished = np.array([trial.number for trial in (*complete, *pruned)])
    share = (most - len(best)) / max(1, len(finished) - len(best))
    even = finished[finished * _GOLDEN_RATIO % 1 < share]
    unfinished = (trial.number for trial in trials if not trial.state.is_finished())
    return {*even.tolist(), *(trial.number for trial in best), *unfinished}


def _progress(trial: FrozenTrial) -> tuple[int, float]:
    """The last step of a pruned trial, and its value there."""
    step = trial.last_step
    if step is None:
        return -1, 0.0
    value = trial.intermediate_values[step]
    return step, -math.inf if math.isnan(value) else value


def _at_budget(trial: FrozenTrial) -> FrozenTrial:
    """A complete trial as it was at one budget: values at different lengths do not compare."""
    length = budgets_of(trial.user_attrs)
    if length > 1 and trial.state == TrialState.COMPLETE:
        trial = copy.copy(trial)
        trial.value = trial.intermediate_values[(trial.last_step or 0) // length]
    return trial


class PlannedSearcher(BaseSampler):
    """Fixes the first configurations by the seed; then uses a searcher re-seeded each trial.

    The first ``initial`` slots get random configurations. They depend on
    ``(seed, slot, parameter name, range)`` only. So studies of one seed start with equal values of
    their common parameters. Each later slot uses a new searcher seeded by ``(seed, slot)``. So
    stopping and resuming change nothing, unless a process dies between two parameters of a trial:
    our own loop writes all at once, except on MySQL. Trials that run at the same time change only
    the history that it sees.

    Args:
        make: Makes the searcher from a keyword argument ``seed``.
        seed: The study's seed.
        initial: Number of fixed first configurations.
        repeats: Whether the study has twins or continued trials, which the searcher must not count
            as further configurations, see `hpo_mab.search._searchers.OwnHistory`.
    """

    def __init__(
        self,
        make: Callable[..., BaseSampler],
        *,
        seed: int,
        initial: int = 10,
        repeats: bool = False,
    ) -> None:
        self._make = make
        searcher = make(seed=0)
        self._is_sequence = isinstance(searcher, optuna.samplers.QMCSampler)
        self._is_grid = isinstance(searcher, optuna.samplers.GridSampler)
        # In groups, ranges need not be those of all trials.
        self._infers_ranges = (
            _most_shown(searcher) is not None and not settings_of(searcher)["group"]
        )
        self._seed = seed
        self._initial = initial
        self._repeats = repeats
        #: By study and number: trials of one study may run in several threads. Each value is the
        #: trial's searcher, and the study as that searcher first read it.
        self._asked: dict[tuple[str, int], tuple[BaseSampler, optuna.Study]] = {}

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """See `optuna.samplers.BaseSampler`."""
        fixed = slot_of(study, trial) < self._initial
        view = DistinctRanges if self._infers_ranges else None
        return {} if fixed else self._ask(study, trial, "infer_relative_search_space", view=view)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """See `optuna.samplers.BaseSampler`."""
        fixed = slot_of(study, trial) < self._initial
        return {} if fixed else self._ask(study, trial, "sample_relative", search_space)

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """See `optuna.samplers.BaseSampler`."""
        slot = slot_of(study, trial)
        # QMC draws such a value from its seed alone, which is equal for all trials.
        if slot >= self._initial and not self._is_sequence:
            return self._ask(study, trial, "sample_independent", param_name, param_distribution)
        random = RandomSampler(seed=derive_seed(self._seed, "initial", slot, param_name))
        return random.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """See `optuna.samplers.BaseSampler`."""
        if self._is_grid and (trial.params or slot_of(study, trial) < self._initial):
            # The grid would count a point that is not trained.
            return
        self._ask(study, trial, "before_trial")

    def after_trial(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """See `optuna.samplers.BaseSampler`."""
        try:
            if not self._is_grid or "grid_id" in trial.system_attrs:
                self._ask(study, trial, "after_trial", state, values)
        finally:
            self._asked.pop((study.study_name, trial.number), None)

    def _ask(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        method: str,
        *arguments: Any,
        view: type[StudyView] | None = None,
    ) -> Any:
        """What the trial's searcher answers. Its errors name it: it may be a user's own."""
        searcher, seen = self._searcher_of(study, trial)
        try:
            return getattr(searcher, method)(
                seen if view is None else view(seen), trial, *arguments
            )
        except (HpoMabError, OptunaError, *STORAGE_ERRORS):
            raise
        except Exception as error:
            if is_of_deleted(error):
                raise
            name = type(searcher).__name__
            raise ArgumentError(f"search.sampler {name} failed: {failure_reason(error)}") from error

    def _searcher_of(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> tuple[BaseSampler, optuna.Study]:
        """The trial's searcher, and the study as that searcher sees it."""
        key = (study.study_name, trial.number)
        if key not in self._asked:
            # All trials take their points from one sequence, or from one order of a grid.
            shared = self._is_sequence or self._is_grid
            slot = [] if shared else [slot_of(study, trial)]
            searcher = self._make(seed=derive_seed(self._seed, "sampler", *slot))
            # A view also where it shows all: searchers of grids stop the study, which Optuna allows
            # in its own loop only.
            view = OwnHistory(study, repeats=self._repeats, most=_most_shown(searcher))
            self._asked[key] = searcher, cast(optuna.Study, view)
        return self._asked[key]


def _most_shown(searcher: BaseSampler) -> int | None:
    """About how many finished trials a searcher is shown; None for all."""
    # A subclass may choose the good trials otherwise.
    if type(searcher) is not optuna.samplers.TPESampler:
        return None
    # TPE is random until it is shown this number.
    return SHOWN_TRIALS + int(settings_of(searcher)["n_startup_trials"])


# Not CMA-ES: Optuna's keeps its state as a pickle in the database, and runs what it finds there.
#: A user's own searcher gets ``seed`` if it has that argument.
SEARCHERS = Registry(
    "search.sampler",
    {
        "gp": optuna.samplers.GPSampler,
        "qmc": optuna.samplers.QMCSampler,
        "random": optuna.samplers.RandomSampler,
        "tpe": optuna.samplers.TPESampler,
    },
    given=("seed",),
)

# Optuna's defaults may change between releases; a study's meaning must not.
_PINNED: Mapping[str, Mapping[str, Any]] = {
    # Without it every seed has the same points.
    "qmc": {"scramble": True},
    "tpe": {"multivariate": True, "constant_liar": True, "n_startup_trials": 10},
}


def searcher_maker(kind: Named, options: Mapping[str, Any]) -> Callable[..., BaseSampler]:
    """A function that makes the named searcher from a keyword argument ``seed``.

    Args:
        kind: ``"tpe"``, ``"random"``, ``"gp"`` or ``"qmc"``; ``package.module:Name`` of another
            sampler of Optuna, or its class.
        options: Arguments of the Optuna class.
    """
    SEARCHERS.check(kind, {key: [value] for key, value in options.items()}, section="search")
    for key, least in _LEAST.items():
        # Optuna's classes raise at the first trial that is not random.
        if isinstance(value := options.get(key), int | float):
            require(value >= least, f"search.{key}", f"at least {least}", value)
    pinned = {**_PINNED.get(name_of(kind), {}), **options}
    make = SEARCHERS.load(kind)
    # Read once: each trial makes a searcher, and reading a signature takes long.
    takes_seed = bound_to(make, {"seed": 0}) is not make

    def created(seed: int) -> BaseSampler:
        arguments = {**pinned, "seed": seed} if takes_seed else pinned
        searcher: BaseSampler = quietly(make, arguments, BaseSampler)
        return searcher

    def created_quietly(*, seed: int) -> BaseSampler:
        with warnings.catch_warnings():
            # Optuna warns of an option that it will remove: once below, not for each trial.
            warnings.simplefilter("ignore", FutureWarning)
            return created(seed)

    try:
        created(0)
    except Exception as error:
        raise ArgumentError(f"search.sampler '{name_of(kind)}': {error}") from error
    return created_quietly


#: Bounds of options of searchers that Optuna does not check in time.
_LEAST: Mapping[str, float] = {"n_startup_trials": 0, "n_ei_candidates": 1, "prior_weight": 0}
