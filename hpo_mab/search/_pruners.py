"""Optuna's pruners by name, and where their rungs lie by default."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import optuna
from optuna.pruners import BasePruner

from hpo_mab._attributes import AUTO, EVIDENCE_KEY, GIVEN_KEY
from hpo_mab._errors import ArgumentError, check_integer, name_of, require
from hpo_mab._registry import Named, Registry
from hpo_mab.pruners import AdvantagePruner, PromotionPruner, TopKPruner
from hpo_mab.search._ranges import extremes, parse_value
from hpo_mab.storage._optuna import quietly

if TYPE_CHECKING:
    from hpo_mab.search._definition import StudySpec


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
    return all(window > 0 for window in extremes(parse_value("training.average", average)))


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
    except Exception as error:
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

    Not with a decaying learning rate, nor in a race, which compares trials at their budget. The
    pruner's ``max_resource`` must be that budget.
    """
    full = spec.budget.evaluations
    ends = spec.pruner.options.get("max_resource", full) == full
    return spec.training.schedule == "constant" and spec.sampler.kind != AUTO and ends


def study_pruner(spec: StudySpec, attrs: Mapping[str, Any]) -> BasePruner:
    """The pruner of a study definition.

    Uniform trials have no measured advantage. For them the advantage pruner is successive halving,
    whose first rung the study's own fidelity may move.

    A copy of the evidence in ``attrs``, the study's user attributes, is used instead of a file.

    Raises:
        ArgumentError: Evidence that cannot be read, and the study has no copy.
    """
    kind, options = spec.pruner.kind, spec.pruner.options
    if kind == "advantage":
        options = {**options, "evidence": None, "reference": None, **spec.given_evidence}
        if not attrs.get(GIVEN_KEY, {}).get("pruner", True):
            # Of another task, so the file is not needed.
            options["evidence"] = None
        elif "evidence" in spec.given_evidence and EVIDENCE_KEY in attrs:
            options["evidence"] = attrs[EVIDENCE_KEY]
    if kind == "promotion":
        options = {"unlimited": is_continuable(spec), **options}
    averaged = always_averages(spec.training.average)
    return create_pruner(kind, options, evaluations=spec.budget.evaluations, averaged=averaged)
