"""The search space of a trial and the points in it."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any, get_args

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from hpo_mab._errors import ArgumentError, check_integer
from hpo_mab._registry import Named, Registry, check_types
from hpo_mab._stored_settings import BARE, NAMING_KEYS, parameter_of
from hpo_mab.samplers._registry import SAMPLERS, sampler_maker
from hpo_mab.search._ranges import (
    count_values,
    extremes,
    integers,
    parse_value,
    range_ends,
    ranges,
)
from hpo_mab.training._schedule import LearningCurve


@dataclasses.dataclass(frozen=True, slots=True)
class Component:
    """A sampler or an optimiser that a trial uses.

    Attributes:
        name: What the definition calls it.
        make: What makes it: a class, or a function that takes its options.
        options: Its options, every value decided.
    """

    name: str
    # Not compared: two makers of one name are equal functions but different objects.
    make: Callable[..., Any] = dataclasses.field(repr=False, compare=False)
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """One point of the search space, every value decided.

    Attributes:
        optimizer: The optimiser.
        sampler: The batch sampler.
        model: Options of the network.
        batch_size: Examples per batch.
        warmup: Share of the budget in which the learning rate rises.
        label_smoothing: Mass moved from the true label to all labels.
        average: Window of the average of the weights, as a share of the steps so far; 0 for none.
        difficulty: Whether the batch sampler gets the difficulty of each example.
    """

    optimizer: Component
    sampler: Component
    model: Mapping[str, Any]
    batch_size: int
    warmup: float
    label_smoothing: float
    average: float
    difficulty: bool = False

    def with_sampler(self, kind: str) -> Configuration:
        """The same configuration with another batch sampler, its knobs at their defaults."""
        made = Component(kind, sampler_maker(kind))
        return dataclasses.replace(self, sampler=made, difficulty=False)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """What a trial trains: a point of the search space, in a slot of the study's plan.

    Attributes:
        plan_slot: Its slot in the study's plan.
        configuration: Its point of the search space.
        seed: Of initial weights, batches and augmentation.
        may_prune: Whether the study's pruner may stop it.
        budgets: Its length, in budgets of a trial.
    """

    plan_slot: int
    configuration: Configuration
    seed: int
    may_prune: bool
    budgets: int = 1


class ComponentSpace:
    """The search space of a `Component`: what a section names, with constants and ranges.

    ``raw`` is the section ``"optimizer"`` or ``"sampler"``: a name, or a class or function in its
    place, and options as `parse_value` takes them.

    Attributes:
        name: Its name as text.
        values: Its options, parsed.
    """

    def __init__(
        self,
        section: str,
        registry: Registry,
        maker: Callable[[Named], Callable[..., Any]],
        raw: Mapping[str, Any],
    ) -> None:
        options = dict(raw)
        named = options.pop(NAMING_KEYS[section])
        self.name = registry.name(named)
        self.values = _parse(section, options)
        check_options(registry, named, self.values, section=section)
        self._make = maker(named)
        self._section = section

    def suggest(self, trial: optuna.trial.BaseTrial) -> Component:
        """Suggest a value of every range to the trial."""
        return Component(self.name, self._make, _suggest(trial, self._section, self.values))


def check_options(
    registry: Registry,
    named: Named,
    values: Mapping[str, Any],
    *,
    section: str,
    shown: str | None = None,
) -> None:
    """Refuse parsed values that a named class or function does not take; see `Registry.check`."""
    ends = {key: list(extremes(value)) for key, value in values.items()}
    registry.check(named, ends, section=section, shown=shown)
    kinds = {key: one.annotation for key, one in registry.options(named).items()}
    check_fractions(section, values, kinds)


def check_fractions(section: str, values: Mapping[str, Any], kinds: Mapping[str, Any]) -> None:
    """Refuse a range of two integers, ``{ low = 0, high = 1 }``, for an option of fractions."""
    for key, value in values.items():
        taken = get_args(kinds.get(key)) or (kinds.get(key),)
        is_range = isinstance(value, IntDistribution) and value.high - value.low == 1
        if is_range and float in taken and int not in taken:
            low, high = range_ends(value)
            raise ArgumentError(
                f"{section}.{key}: a range of integers from {low} to {high} holds nothing between "
                f"them; write low = {low}.0 for fractions, or choices = [{low}, {high}]."
            )


#: Settings of the training loop that can be searched, with their types.
LOOP_TYPES: Mapping[str, type] = {
    "batch_size": int,
    "warmup": float,
    "label_smoothing": float,
    "average": float,
}


class SearchSpace:
    """Constants and ranges of a trial; ranges become Optuna parameters.

    The names of the parameters are those of `hpo_mab.search.TrainingObjective`.

    Args:
        optimizer: ``name`` and options. Here and for ``sampler``, a class or a function may be
            given in place of its name.
        sampler: ``kind`` and knobs.
        model: Options of the network.
        loop: A value for each key of `LOOP_TYPES`.

    Raises:
        ArgumentError: A range that holds nothing, a setting of the loop outside its bound, or what
            cannot be imported.
        UnknownNameError: An unknown optimiser, sampler, option or knob.
    """

    def __init__(
        self,
        *,
        optimizer: Mapping[str, Any],
        sampler: Mapping[str, Any],
        model: Mapping[str, Any],
        loop: Mapping[str, Any],
    ) -> None:
        # Imported late: mistakes in a definition are found without torch.
        from hpo_mab.training._optimizers import OPTIMIZERS

        self.optimizer = ComponentSpace("optimizer", OPTIMIZERS, OPTIMIZERS.load, optimizer)
        self.sampler = ComponentSpace("sampler", SAMPLERS, sampler_maker, sampler)
        self.model = _parse("model", model)
        self.loop = _parse("training", loop)
        check_types(
            "training",
            {key: list(extremes(value)) for key, value in self.loop.items()},
            LOOP_TYPES,
        )
        check_fractions("training", self.loop, LOOP_TYPES)
        _check_bounds(self.loop)
        #: Every batch size that a trial may have.
        self.batch_sizes = integers(self.loop["batch_size"])

    def suggest(self, trial: optuna.trial.BaseTrial) -> Configuration:
        """Suggest a value of every range to the trial."""
        return Configuration(
            optimizer=self.optimizer.suggest(trial),
            sampler=self.sampler.suggest(trial),
            model=_suggest(trial, "model", self.model),
            **_suggest(trial, "training", self.loop),
        )

    @property
    def shapes(self) -> float:
        """How many shapes of network and batch the space has, at most; infinite for float ranges.

        Trials of one shape share a stack, see `hpo_mab.training.StackedTrainer`.
        """
        return math.prod(map(count_values, (*self.model.values(), self.loop["batch_size"])))

    def corners(self) -> tuple[Configuration, Configuration]:
        """The points where every range is at its low end, and at its high end."""
        return self._corner(0), self._corner(-1)

    def _corner(self, end: int) -> Configuration:
        sections = {
            "optimizer": self.optimizer.values,
            "training": self.loop,
            "sampler": self.sampler.values,
            "model": self.model,
        }
        searched = itertools.chain.from_iterable(
            ranges(f"{_prefix(section)}{key}", value)
            for section, values in sections.items()
            for key, value in values.items()
        )
        return self.at({name: range_ends(value)[end] for name, value in searched})

    def at(self, params: Mapping[str, Any]) -> Configuration:
        """The point that a recorded trial's parameters name."""
        return self.suggest(optuna.trial.FixedTrial(dict(params)))


def _check_bounds(loop: Mapping[str, Any]) -> None:
    """Refuse a training setting if an end of its range, or a choice, is outside its bound."""
    for key, value in loop.items():
        for one in extremes(value):
            try:
                if key == "batch_size":
                    check_integer(key, one, 1)
                else:
                    LearningCurve(steps=1, **{key: one})  # Raises if it is outside its bound.
            except ArgumentError as error:
                raise ArgumentError(f"training.{error}") from None


def _prefix(section: str) -> str:
    """What the names of a section's parameters begin with."""
    return "" if section in BARE else f"{section}."


def _parse(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: parse_value(f"{section}.{key}", raw) for key, raw in values.items()}


def _suggest(
    trial: optuna.trial.BaseTrial, section: str, values: Mapping[str, Any]
) -> dict[str, Any]:
    return {key: suggest(trial, f"{_prefix(section)}{key}", value) for key, value in values.items()}


def suggest(trial: optuna.trial.BaseTrial, name: str, value: Any) -> Any:
    """The trial's value: suggested where ``value`` is a distribution, else ``value`` itself."""
    if isinstance(value, FloatDistribution):
        return trial.suggest_float(name, value.low, value.high, step=value.step, log=value.log)
    if isinstance(value, IntDistribution):
        return trial.suggest_int(name, value.low, value.high, step=value.step, log=value.log)
    if isinstance(value, CategoricalDistribution):
        return trial.suggest_categorical(name, value.choices)
    if isinstance(value, list):
        return [suggest(trial, parameter_of(name, index), item) for index, item in enumerate(value)]
    return value
