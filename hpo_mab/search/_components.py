"""Optuna sampler, pruner and portfolio of a study, by name, and the twins of its trials.

The sampler's suggestions depend on the study's seed, slot and history only.
"""

from __future__ import annotations

import copy
import functools
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import optuna
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState

from hpo_mab._attributes import (
    EVIDENCE_KEY,
    GIVEN_KEY,
    PAIRED_KEY,
    SAMPLER_KEY,
    SLOT_KEY,
    TWIN_KEY,
    UNIFORM,
    budgets_of,
)
from hpo_mab._errors import ArgumentError, check_integer, name_of, require
from hpo_mab._plan import Plan, derive_seed, slot_of
from hpo_mab._registry import Named, Registry, bound_to
from hpo_mab.pruners import AdvantagePruner, PromotionPruner, TopKPruner
from hpo_mab.samplers._registry import SAMPLERS, record_column, sampler_maker
from hpo_mab.search._space import Part, check_options, distributions, examples, parse_value
from hpo_mab.storage._optuna import StudyView, add_copy, unchecked_trial

if TYPE_CHECKING:
    from hpo_mab.search._definition import StudySpec

AUTO = "auto"
#: The samplers that ``"auto"`` chooses from. With few trials only the first ones race.
PORTFOLIO: tuple[str | dict[str, Any], ...] = (
    "uniform",
    "mab",
    {"name": "easy_first", "kind": "curriculum", "start": 0.6, "end": 0.5},
    {"name": "trimmed", "kind": "curriculum", "start": 1.0, "end": 0.0, "trim": 0.1},
    {"name": "hard_half", "kind": "hard_mining", "presample": 2},
)


def trained_kind(kind: Named) -> Named:
    """The batch sampler that a kind trains the first configurations with."""
    return UNIFORM if kind == AUTO else kind


def parse_portfolio(entries: Sequence[Any] | None) -> dict[str, Part]:
    """The samplers of a portfolio by name, in order.

    Args:
        entries: Each is a batch sampler's name, or a table with ``kind``, its options and ``name``
            (the kind by default). None takes `PORTFOLIO`.

    Raises:
        ArgumentError: A name twice, no uniform sampling, options that are ranges, or a sampler that
            cannot be imported.
        UnknownNameError: An unknown sampler or option.
    """
    found: dict[str, Part] = {}
    for entry in PORTFOLIO if entries is None else entries:
        options = dict(entry) if isinstance(entry, Mapping) else {"kind": entry}
        if "kind" not in options:
            raise ArgumentError(f"sampler.portfolio: an entry needs a kind, got {entry!r}.")
        kind: Named = options.pop("kind")
        name = str(options.pop("name", re.split(r"[.:]", SAMPLERS.name(kind))[-1]))
        if not re.fullmatch(r"[\w-]{1,40}", name):
            raise ArgumentError(
                "sampler.portfolio: a name must be at most 40 letters, digits, '_' and '-', "
                f"got {name!r}."
            )
        if name in found:
            raise ArgumentError(
                f"sampler.portfolio must name each sampler once, got '{name}' twice; "
                "give an entry a name."
            )
        # With a range each twin would have other options, and a race would not compare samplers.
        values = {key: parse_value(f"sampler.{key}", value) for key, value in options.items()}
        if distributions({"sampler": values}):
            raise ArgumentError(f"sampler.portfolio: options of '{name}' must be constants.")
        check_options(SAMPLERS, kind, values, section="sampler")
        found[name] = Part(SAMPLERS.name(kind), sampler_maker(kind), options)
    if UNIFORM not in found or found[UNIFORM].name != UNIFORM or found[UNIFORM].options:
        raise ArgumentError(f"sampler.portfolio must hold '{UNIFORM}', got {', '.join(found)}.")
    return found


def uses_record(part: Part) -> bool:
    """Whether a sampler uses the study's record of examples."""
    return record_column(part.make, part.options) is not None


# A twin is an ordinary trial with the slot, parameters and seed of another trial, under another
# batch sampler. It is never pruned. It has the user attributes ``hpo_mab:twin_of`` (the slot) and
# ``hpo_mab:sampler``. Twins count in the study's total budget, but not in ``budget.trials``. So a
# study has as many configurations with twins as without. Their results are results of the study
# like any other.
#
# In the pilot of `AdvantagePruner` each complete configuration of the first ones gets a twin under
# uniform sampling. `hpo_mab.search._race` queues the twins of ``"auto"``.


def queue_twin(
    study: optuna.Study, trial: optuna.trial.Trial | FrozenTrial, sampler: str = UNIFORM
) -> None:
    """Queue a trial's twin, unless it has one.

    Args:
        study: The trial's study.
        trial: A trial all of whose parameters are known.
        sampler: The twin's batch sampler.
    """
    slot = slot_of(study, trial)
    if Plan(study.get_trials(deepcopy=False)).has_twin(slot, sampler):
        return
    attrs = {SLOT_KEY: slot, PAIRED_KEY: True, TWIN_KEY: slot, SAMPLER_KEY: sampler}
    twin = unchecked_trial(
        state=TrialState.WAITING,
        params=trial.params,
        distributions=trial.distributions,
        user_attrs=attrs,
    )
    add_copy(study, twin)


class OwnHistory(StudyView):
    """A study as shown to an Optuna sampler: each configuration once.

    A twin differs from its original by the batch sampler, which is not a parameter. Twins under the
    sampler that the study continues with replace their originals; all others are left out. Of
    trials that continue one another the last is shown, with its value at a trial's budget. A view
    serves one trial: which trials it shows is decided at the first reading.

    Args:
        study: The study with all trials.
    """

    @functools.cached_property
    def _numbers(self) -> set[int]:
        return Plan(self.study.get_trials(deepcopy=False)).once

    def shown(self, trials: list[FrozenTrial]) -> list[FrozenTrial]:
        """Those of the trials that are shown to the sampler."""
        return [_at_budget(trial) for trial in trials if trial.number in self._numbers]


def _at_budget(trial: FrozenTrial) -> FrozenTrial:
    """A complete trial as it was at one budget: values at different lengths do not compare."""
    length = budgets_of(trial.user_attrs)
    if length > 1 and trial.state == TrialState.COMPLETE:
        trial = copy.copy(trial)
        trial.value = trial.intermediate_values[(trial.last_step or 0) // length]
    return trial


class PlannedSampler(BaseSampler):
    """Fixes the first configurations by the seed; then uses a sampler re-seeded each trial.

    The first ``initial`` slots get random configurations. They depend on
    ``(seed, slot, parameter name, range)`` only. So studies of one seed start with equal values of
    their common parameters. Each later slot uses a new sampler seeded by ``(seed, slot)``. So
    stopping and resuming change nothing. Trials that run at the same time change only the history
    that it sees.

    Args:
        factory: Makes the underlying sampler from a keyword argument ``seed``.
        seed: The study's seed.
        initial: Number of fixed first configurations.
        repeats: Whether the study has twins or continued trials, which the underlying sampler must
            not count as further configurations, see `hpo_mab.search._components.OwnHistory`.

    Examples:
        >>> import optuna
        >>> from hpo_mab.search import PlannedSampler
        >>> sampler = PlannedSampler(optuna.samplers.RandomSampler, seed=0, initial=2)
        >>> study = optuna.create_study(sampler=sampler)
        >>> study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
    """

    def __init__(
        self,
        factory: Callable[..., BaseSampler],
        *,
        seed: int,
        initial: int = 10,
        repeats: bool = False,
    ) -> None:
        self._factory = factory
        # All trials take their points from one sequence.
        self._is_sequence = isinstance(factory(seed=0), optuna.samplers.QMCSampler)
        self._seed = seed
        self._initial = initial
        self._repeats = repeats
        #: By study and number: trials of one study may run in several threads. Each with the study
        #: that its sampler sees, which is as it was when that sampler first read it.
        self._asked: dict[tuple[str, int], tuple[BaseSampler, optuna.Study]] = {}

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """See `optuna.samplers.BaseSampler`."""
        if slot_of(study, trial) < self._initial:
            return {}
        sampler, seen = self._sampler(study, trial)
        return sampler.infer_relative_search_space(seen, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """See `optuna.samplers.BaseSampler`."""
        if slot_of(study, trial) < self._initial:
            return {}
        sampler, seen = self._sampler(study, trial)
        return sampler.sample_relative(seen, trial, search_space)

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
            sampler, seen = self._sampler(study, trial)
            return sampler.sample_independent(seen, trial, param_name, param_distribution)
        random = RandomSampler(seed=derive_seed(self._seed, "initial", slot, param_name))
        return random.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """See `optuna.samplers.BaseSampler`."""
        sampler, seen = self._sampler(study, trial)
        sampler.before_trial(seen, trial)

    def after_trial(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """See `optuna.samplers.BaseSampler`."""
        sampler, seen = self._sampler(study, trial)
        sampler.after_trial(seen, trial, state, values)
        self._asked.pop((study.study_name, trial.number), None)

    def _sampler(self, study: optuna.Study, trial: FrozenTrial) -> tuple[BaseSampler, optuna.Study]:
        """The trial's sampler, and the study as that sampler sees it."""
        key = (study.study_name, trial.number)
        if key not in self._asked:
            place = [] if self._is_sequence else [slot_of(study, trial)]
            seed = derive_seed(self._seed, "sampler", *place)
            seen = cast(optuna.Study, OwnHistory(study)) if self._repeats else study
            self._asked[key] = self._factory(seed=seed), seen
        return self._asked[key]


# Not CMA-ES: Optuna's keeps its state as a pickle in the database, and runs what it finds there.
#: Optuna's samplers. Another one is given ``seed`` where it takes it.
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
    "tpe": {"multivariate": True, "constant_liar": True, "n_startup_trials": 10},
}


def sampler_factory(kind: Named, options: Mapping[str, Any]) -> Callable[..., BaseSampler]:
    """A function that makes the named Optuna sampler from a keyword argument ``seed``.

    Args:
        kind: ``"tpe"``, ``"random"``, ``"gp"`` or ``"qmc"``; ``package.module:Name`` of another
            sampler for Optuna, or its class.
        options: Arguments of the Optuna class.

    Raises:
        UnknownNameError: No such sampler, or no such option of it.
        ArgumentError: An option's value that the sampler refuses.
    """
    SEARCHERS.check(kind, {key: [value] for key, value in options.items()}, section="search")
    for key, least in _LEAST.items():
        # Optuna's classes raise at the first trial that is not random.
        if isinstance(value := options.get(key), int | float):
            require(value >= least, f"search.{key}", f"at least {least}", value)
    pinned = {**_PINNED.get(name_of(kind), {}), **options}
    make = SEARCHERS.load(kind)
    # Read once: each trial makes a sampler, and reading a signature takes long.
    takes_seed = bound_to(make, {"seed": 0}) is not make

    def factory(*, seed: int) -> BaseSampler:
        given = {**pinned, "seed": seed} if takes_seed else pinned
        made: BaseSampler = quietly(make, given, BaseSampler)
        return made

    try:
        factory(seed=0)
    except Exception as error:
        raise ArgumentError(f"search.sampler '{name_of(kind)}': {error}") from error
    return factory


#: Bounds of options of search samplers that Optuna does not check in time.
_LEAST: Mapping[str, float] = {"n_startup_trials": 0, "n_ei_candidates": 1, "prior_weight": 0}


def quietly(make: Callable[..., Any], options: Mapping[str, Any], base: type) -> Any:
    """Make an object of Optuna's without its warnings about experimental features."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        made = make(**options)
    if not isinstance(made, base):
        raise TypeError(f"must be an optuna {base.__name__}, got {type(made).__name__}.")
    return made


#: Share of a trial before the first rung of successive halving, if evaluations are those of the
#: trained weights. In the simulations of ``studies/replay`` an eighth saved and regretted most.
#: From three eighths on, successive halving did no worse than Hyperband.
FIRST_RUNG = 3 / 8
#: The same, if evaluations are those of averaged weights: see ``studies/rungs``. On its three data
#: sets a quarter cost 0.52 to 0.55 of unpruned trials, three eighths 0.63 to 0.66. A quarter
#: regretted at most 0.11 points; Hyperband on trained weights regretted 0.10 to 0.33. An eighth
#: regretted 0.36 points on CIFAR-10.
FIRST_AVERAGED_RUNG = 1 / 4

#: Pruners. Each that takes ``max_resource`` has the step of a trial's last evaluation as default.
PRUNERS = Registry(
    "pruner",
    {
        "advantage": AdvantagePruner,
        "hyperband": optuna.pruners.HyperbandPruner,
        "median": optuna.pruners.MedianPruner,
        "none": optuna.pruners.NopPruner,
        "percentile": optuna.pruners.PercentilePruner,
        "promotion": PromotionPruner,
        "successive_halving": optuna.pruners.SuccessiveHalvingPruner,
        "top_k": TopKPruner,
    },
    given=(),
)


def always_averages(average: Any) -> bool:
    """Whether every trial of a definition reports averaged weights before its last evaluation.

    Args:
        average: The definition's ``training.average``, a constant or a range.
    """
    return all(window > 0 for window in examples(parse_value("training.average", average)))


def create_pruner(
    kind: Named, options: Mapping[str, Any], *, evaluations: int, averaged: bool = False
) -> BasePruner:
    """Make a pruner whose steps are a trial's evaluations, 1 to ``evaluations``.

    Args:
        kind: ``"none"``, ``"median"``, ``"percentile"``, ``"successive_halving"``,
            ``"hyperband"``, ``"advantage"``, ``"promotion"`` or ``"top_k"``;
            ``package.module:Name`` of another pruner for Optuna, or its class.
        options: Arguments of the class.
        evaluations: Evaluations of a full trial, the largest step reported.
        averaged: Whether all trials report averaged weights. Successive halving then begins at a
            quarter of a trial, else at three eighths; ``"median"`` and ``"percentile"`` begin at
            the first evaluation, else at a quarter.

    Raises:
        UnknownNameError: No such pruner, or no such option of it.
        ArgumentError: An option's value that the pruner refuses.
    """
    first = FIRST_AVERAGED_RUNG if averaged else FIRST_RUNG
    halving = {"min_resource": max(1, round(first * evaluations)), "reduction_factor": 2}
    # Trained weights hardly rank trials in the first quarter, averaged ones do: ``studies/rungs``.
    unranked = 0 if averaged else evaluations // 4
    defaults: dict[str, dict[str, Any]] = {
        "advantage": halving,
        "median": {"n_warmup_steps": unranked},
        "percentile": {"percentile": 50.0, "n_warmup_steps": unranked},
        "successive_halving": halving,
        # A paused trial may continue later, so the first rung may lie earlier: ``studies/rungs``.
        "promotion": {"min_resource": max(1, evaluations // 8), "reduction_factor": 2},
        "hyperband": {"min_resource": 1, "reduction_factor": 2},
    }
    full = {"max_resource": evaluations} if PRUNERS.takes(kind, "max_resource") else {}
    chosen = {**full, **defaults.get(name_of(kind), {}), **options}
    PRUNERS.check(kind, {key: [value] for key, value in chosen.items()}, section="pruner")
    _check_rungs(kind, options, full=options.get("max_resource", evaluations))
    try:
        pruner: BasePruner = quietly(PRUNERS.load(kind), chosen, BasePruner)
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"pruner '{name_of(kind)}': {error}") from error
    return pruner


def _check_rungs(kind: Named, options: Mapping[str, Any], *, full: Any) -> None:
    """Refuse rungs that no trial reaches, or at which Optuna's classes raise."""
    if kind in ("top_k", "promotion") and "max_resource" not in options:
        require(full >= 2, "budget.evaluations", f"at least 2 for pruner '{kind}'", full)
    if kind not in ("hyperband", "successive_halving", "advantage"):
        return
    check_integer("pruner.reduction_factor", options.get("reduction_factor", 2), 2)
    first = options.get("min_resource", "auto")
    # "auto", or what the study's longest trial reports.
    if not isinstance(full, int):
        return
    check_integer("pruner.max_resource", full, 1)
    if first != "auto":
        check_integer("pruner.min_resource", first, 1)
        require(first <= full, "pruner.min_resource", f"at most the last evaluation, {full}", first)


def is_continuable(spec: StudySpec) -> bool:
    """Whether trials of a definition can continue beyond their budget.

    A learning rate that has decayed cannot, and the trials of a race are compared at their budget.
    The pruner's ``max_resource`` must be that budget.
    """
    full = spec.budget.evaluations
    ends = spec.pruner.options.get("max_resource", full) == full
    return spec.training.schedule == "constant" and spec.sampler.kind != AUTO and ends


def study_pruner(spec: StudySpec, attrs: Mapping[str, Any]) -> BasePruner:
    """The pruner of a study definition.

    Uniform trials have no measured advantage. For them the advantage pruner is successive halving,
    whose first rung the study's own fidelity may move.

    Args:
        spec: The definition.
        attrs: User attributes of the study. It keeps a copy of its evidence, which is used if the
            file no longer exists.

    Raises:
        ArgumentError: Evidence that cannot be read, and the study has no copy.
    """
    kind, options = spec.pruner.kind, spec.pruner.options
    if kind == "advantage" and "evidence" in options:
        if not attrs.get(GIVEN_KEY, {}).get("pruner", True):
            # Of another task, so the file is not needed.
            options = {key: value for key, value in options.items() if key != "evidence"}
        elif EVIDENCE_KEY in attrs:
            options = {**options, "evidence": attrs[EVIDENCE_KEY]}
    # There is no advantage over uniform sampling to measure.
    if kind == "advantage" and spec.sampler.kind == UNIFORM:
        options = {k: value for k, value in options.items() if k not in ("evidence", "reference")}
    if kind == "promotion":
        options = {"unlimited": is_continuable(spec), **options}
    averaged = always_averages(spec.training.average)
    return create_pruner(kind, options, evaluations=spec.budget.evaluations, averaged=averaged)
