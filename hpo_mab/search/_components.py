"""Optuna's samplers and pruners by the names used in study definitions."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import optuna
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler

from hpo_mab._attributes import EVIDENCE_KEY
from hpo_mab._errors import ArgumentError
from hpo_mab._registry import Named, Registry, name_of
from hpo_mab.pruners import AdvantagePruner, TopKPruner
from hpo_mab.search._space import examples, parse_value

if TYPE_CHECKING:
    from hpo_mab.search._definition import StudySpec

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

#: Share of a trial before the first rung of successive halving, if evaluations are those of the
#: trained weights. An eighth saved most and regretted most in the replays of ``studies/replay``;
#: from three eighths on, it did no worse than Hyperband.
FIRST_RUNG = 3 / 8
#: The same, if evaluations are those of averaged weights: see ``studies/rungs``. On its three data
#: sets a quarter cost 0.52 to 0.55 of unpruned trials, where three eighths cost 0.63 to 0.66, and
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
        "successive_halving": optuna.pruners.SuccessiveHalvingPruner,
        "top_k": TopKPruner,
    },
    given=(),
)


def pruner_kinds() -> tuple[str, ...]:
    """Kinds of this package and of Optuna that `create_pruner` takes."""
    return tuple(PRUNERS)


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
    pinned = {**_PINNED.get(name_of(kind), {}), **options}

    def factory(*, seed: int) -> BaseSampler:
        made: BaseSampler = _quietly(SEARCHERS.maker(kind, seed=seed), pinned, BaseSampler)
        return made

    try:
        factory(seed=0)
    except Exception as error:
        raise ArgumentError(f"search.sampler '{name_of(kind)}': {error}") from error
    return factory


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
            ``"hyperband"``, ``"advantage"`` or ``"top_k"``; ``package.module:Name`` of another
            pruner for Optuna, or its class.
        options: Arguments of the class.
        evaluations: Evaluations of a full trial, the largest step reported.
        averaged: Whether all trials report averaged weights. Successive halving then begins at a
            quarter of a trial, else at three eighths.

    Raises:
        UnknownNameError: No such pruner, or no such option of it.
        ArgumentError: An option's value that the pruner refuses.
    """
    first = FIRST_AVERAGED_RUNG if averaged else FIRST_RUNG
    halving = {"min_resource": max(1, round(first * evaluations)), "reduction_factor": 2}
    defaults: dict[str, dict[str, Any]] = {
        "advantage": halving,
        # A quarter of the budget first: in the warm-up all configurations look alike.
        "median": {"n_warmup_steps": evaluations // 4},
        "percentile": {"percentile": 50.0, "n_warmup_steps": evaluations // 4},
        "successive_halving": halving,
        "hyperband": {"min_resource": 1, "reduction_factor": 2},
    }
    full = {"max_resource": evaluations} if PRUNERS.takes(kind, "max_resource") else {}
    chosen = {**full, **defaults.get(name_of(kind), {}), **options}
    PRUNERS.check(kind, {key: [value] for key, value in chosen.items()}, section="pruner")
    try:
        pruner: BasePruner = _quietly(PRUNERS.load(kind), chosen, BasePruner)
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"pruner '{name_of(kind)}': {error}") from error
    return pruner


def study_pruner(spec: StudySpec, attrs: Mapping[str, Any]) -> BasePruner:
    """The pruner of a study definition.

    Uniform trials have no advantage to use: there the advantage pruner is successive halving, whose
    first rung the study's own fidelity may move.

    Args:
        spec: The definition.
        attrs: User attributes of the study. It keeps a copy of the evidence it was given, which
            serves when the file has gone.

    Raises:
        ArgumentError: Evidence that cannot be read, and the study has no copy.
    """
    kind, options = spec.pruner.kind, spec.pruner.options
    if kind == "advantage" and "evidence" in options and EVIDENCE_KEY in attrs:
        options = {**options, "evidence": attrs[EVIDENCE_KEY]}
    if kind == "advantage" and spec.sampler.kind == "uniform":
        options = {k: value for k, value in options.items() if k not in ("evidence", "reference")}
    if kind == "top_k":
        # A trial at a constant rate has no end that its schedule was made for.
        resume = spec.training.schedule == "constant" and spec.training.checkpoint > 0
        options = {"resume": resume, **options}
    averaged = always_averages(spec.training.average)
    return create_pruner(kind, options, evaluations=spec.budget.evaluations, averaged=averaged)


def _quietly(make: Callable[..., Any], options: Mapping[str, Any], base: type) -> Any:
    """Make something of Optuna's, without its warnings of what is experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        made = make(**options)
    if not isinstance(made, base):
        raise TypeError(f"must be an optuna {base.__name__}, got {type(made).__name__}.")
    return made
