"""Checks that what a study definition names exists."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from hpo_mab import data, models, samplers, training
from hpo_mab._errors import HpoMabError, SpecError, UnknownNameError
from hpo_mab.advantage import FEWEST_PAIRS
from hpo_mab.pruners import TopKPruner
from hpo_mab.search._components import create_pruner, sampler_factory
from hpo_mab.search._pilot import trained_kind
from hpo_mab.search._space import types_of_defaults
from hpo_mab.search._spec import (
    DataSection,
    ModelSection,
    OptimizerSection,
    PrunerSection,
    SamplerSection,
    StudySpec,
)
from hpo_mab.search._values import check_types

_OWN_KEYS: Mapping[str, set[str]] = {
    "data": set(DataSection.model_fields),
    "model": set(ModelSection.model_fields),
    "optimizer": set(OptimizerSection.model_fields),
    "sampler": set(SamplerSection.model_fields),
    "pruner": set(PrunerSection.model_fields),
}

#: Types of the options of what a section names.
_OPTIONS: Mapping[str, Callable[[str], Mapping[str, Any]]] = {
    "data": lambda name: {option: _DATA_TYPES.get(option, Any) for option in data.options(name)},
    "model": lambda name: types_of_defaults(models.options(name)),
    "optimizer": lambda name: types_of_defaults(training.optimizer_options(name)),
    "sampler": lambda kind: samplers.knob_types(trained_kind(kind)),
    "pruner": lambda _: {},
}
_DATA_TYPES: Mapping[str, Any] = {"size": int}


def valid_options(section: str, name: str) -> set[str]:
    """Keys that a section may hold when it names ``name``.

    Raises:
        UnknownNameError: Nothing of that name.
    """
    return _OWN_KEYS[section] | set(_OPTIONS[section](name))


def check_names(spec: StudySpec) -> None:
    """Check every name in a definition, the arms of its comparison included.

    Raises:
        UnknownNameError: An unknown name or option; the message offers the nearest.
    """
    _check_section("data", spec.data.name, spec.data.options)
    _check_section("model", spec.model.name, spec.model.values("model"))
    _check_section("optimizer", spec.optimizer.name, spec.optimizer.values("optimizer"))
    sampler_factory(spec.search.sampler, spec.search.options)
    _check_arm(spec)
    for name, arm in spec.compare.arms.items():
        parts = {"sampler": arm.sampler or spec.sampler, "pruner": arm.pruner or spec.pruner}
        try:
            _check_arm(spec.model_copy(update=parts))
        except HpoMabError as error:
            raise SpecError(f"compare.arms.{name}: {error}") from None


def _check_arm(spec: StudySpec) -> None:
    _check_section("sampler", spec.sampler.kind, spec.sampler.values("sampler"))
    pruner = create_pruner(
        spec.pruner.kind,
        # The evidence itself is read where trials are run, and only there.
        {key: value for key, value in spec.pruner.options.items() if key != "evidence"},
        evaluations=spec.budget.evaluations,
    )
    if isinstance(pruner, TopKPruner):
        _check_top_k(spec, pruner)
    if spec.has_pilot and spec.search.initial < FEWEST_PAIRS:
        what = "sampler 'auto'" if spec.sampler.kind == "auto" else "pruner 'advantage'"
        raise SpecError(
            f"search.initial must be at least {FEWEST_PAIRS} for the pilot that {what} needs, "
            f"got {spec.search.initial}."
        )


def _check_section(section: str, name: str, values: Mapping[str, Any]) -> None:
    valid = valid_options(section, name)
    for option in values:
        if option not in valid:
            raise UnknownNameError(f"option of {section} '{name}'", option, valid)
    check_types(section, values, _OPTIONS[section](name))


def _check_top_k(spec: StudySpec, pruner: TopKPruner) -> None:
    """Refuse a definition under which the best could not be told or trained.

    Raises:
        SpecError: Too few trials, or a limit in another currency than trials.
    """
    fewest = spec.search.initial + 2 * pruner.k
    if spec.budget.trials < fewest:
        raise SpecError(
            f"budget.trials must be at least {fewest} for pruner 'top_k': search.initial = "
            f"{spec.search.initial} are never stopped, {pruner.k} or more are, and the best "
            f"{pruner.k} of them are trained in full; got {spec.budget.trials}."
        )
    if spec.budget.total is not None:
        raise SpecError(
            "budget.total cannot be used with pruner 'top_k', which must know from budget.trials "
            f"when to train the best in full; got {spec.budget.total!r}."
        )
