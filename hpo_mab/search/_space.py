"""The search space of a trial and the points in it.

A value of a definition is a constant, or a range that becomes an Optuna parameter.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from hpo_mab._attributes import BARE, ITEM_NAMES, parameter_of
from hpo_mab._errors import ArgumentError, UnknownNameError
from hpo_mab._registry import Named, Registry, check_types
from hpo_mab.samplers._registry import SAMPLERS, sampler_maker
from hpo_mab.training import DEFAULT_AVERAGE

_RANGE_KEYS = frozenset({"low", "high", "log", "step", "type"})
_KEYS = _RANGE_KEYS | {"choices"}


@dataclasses.dataclass(frozen=True, slots=True)
class ListChoices:
    """Choices that include lists: Optuna cannot store these, and gets their text.

    Attributes:
        distribution: The choices as given to Optuna, e.g. ``"[1, 2]"``.
        choices: The choices.
    """

    distribution: CategoricalDistribution
    choices: tuple[Any, ...]

    def suggest(self, trial: optuna.trial.BaseTrial, name: str) -> Any:
        """The choice whose text is suggested to the trial."""
        shown = trial.suggest_categorical(name, self.distribution.choices)
        return self.choices[self.distribution.choices.index(shown)]


def parse_value(name: str, value: Any) -> Any:
    """Turn a definition's value into a constant or an Optuna distribution.

    A table with ``choices`` is categorical. A table with ``low`` and ``high`` is an integer range
    if both and ``step`` are integers, and a float range otherwise; ``type = "float"`` makes
    integers floats. ``log`` and ``step`` are as in Optuna. The items of a list may be ranges, too.
    Everything else is a constant.

    Args:
        name: The value's name, for messages, e.g. ``"optimizer.lr"``.
        value: A plain value, or a distribution.

    Raises:
        ArgumentError: A range that holds nothing, or keys that do not go together.
        UnknownNameError: A key that a range does not have.
    """
    if isinstance(value, list | tuple):
        return [parse_value(f"{name}.{index}", item) for index, item in enumerate(value)]
    if not isinstance(value, Mapping):
        return value
    for key in value:
        if key not in _KEYS:
            raise UnknownNameError(f"key of the range {name}", str(key), _KEYS)
    if "choices" in value:
        return _parse_choices(name, value)
    return _parse_range(name, value)


def suggest(trial: optuna.trial.BaseTrial, name: str, value: Any) -> Any:
    """The trial's value: suggested where ``value`` is a distribution, else ``value`` itself."""
    if isinstance(value, FloatDistribution):
        return trial.suggest_float(name, value.low, value.high, step=value.step, log=value.log)
    if isinstance(value, IntDistribution):
        return trial.suggest_int(name, value.low, value.high, step=value.step, log=value.log)
    if isinstance(value, CategoricalDistribution):
        return trial.suggest_categorical(name, value.choices)
    if isinstance(value, ListChoices):
        return value.suggest(trial, name)
    if isinstance(value, list):
        return [suggest(trial, parameter_of(name, index), item) for index, item in enumerate(value)]
    return value


def ranges(name: str, value: Any) -> Iterator[tuple[str, BaseDistribution]]:
    """The Optuna parameters of a parsed value: names and distributions."""
    if isinstance(value, BaseDistribution):
        yield name, value
    elif isinstance(value, ListChoices):
        yield name, value.distribution
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from ranges(parameter_of(name, index), item)


def distributions(sections: Mapping[str, Mapping[str, Any]]) -> dict[str, BaseDistribution]:
    """The Optuna parameters of a search space, from the parsed values of its sections."""
    found = (
        ranges(f"{_prefix(section)}{key}", value)
        for section, values in sections.items()
        for key, value in values.items()
    )
    return dict(itertools.chain.from_iterable(found))


def _prefix(section: str) -> str:
    """What the names of a section's parameters begin with."""
    return "" if section in BARE else f"{section}."


def range_ends(distribution: BaseDistribution) -> tuple[Any, Any]:
    """The lowest and highest value of a range; the first and last of choices."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[0], distribution.choices[-1]
    if isinstance(distribution, FloatDistribution | IntDistribution):
        return distribution.low, distribution.high
    raise TypeError(f"not a range: {distribution!r}")


def holds(distribution: BaseDistribution, value: Any) -> bool:
    """Whether a value is one of a range's, or one of the choices."""
    try:
        return distribution._contains(distribution.to_internal_repr(value))
    except ValueError:
        # None of the choices.
        return False


def examples(value: Any) -> Iterator[Any]:
    """Constants that a parsed value may become: both ends of ranges, every choice, itself."""
    if isinstance(value, CategoricalDistribution | ListChoices):
        yield from value.choices
    elif isinstance(value, BaseDistribution):
        yield from range_ends(value)
    elif isinstance(value, list):
        yield from (list(items) for items in itertools.product(*map(examples, value)))
    else:
        yield value


def present_names(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of a recorded trial by their present names; some had others before."""
    return {ITEM_NAMES.get(name, name): value for name, value in params.items()}


def _parse_choices(name: str, value: Mapping[str, Any]) -> CategoricalDistribution | ListChoices:
    choices = value["choices"]
    if len(value) > 1 or not isinstance(choices, list | tuple) or not choices:
        raise ArgumentError(f"{name}: choices must be a list of values and stand alone.")
    for choice in choices:
        items = choice if isinstance(choice, list | tuple) else [choice]
        if not all(isinstance(item, bool | int | float | str | None) for item in items):
            raise ArgumentError(
                f"{name}: choices must be booleans, numbers, strings or lists of them, "
                f"got {choice!r}."
            )
    if not any(isinstance(choice, list | tuple) for choice in choices):
        return CategoricalDistribution(choices)
    shown = [str(list(one)) if isinstance(one, list | tuple) else one for one in choices]
    return ListChoices(CategoricalDistribution(shown), tuple(choices))


def _parse_range(name: str, value: Mapping[str, Any]) -> FloatDistribution | IntDistribution:
    low, high = _bound(name, value, "low"), _bound(name, value, "high")
    log, step, kind = value.get("log", False), value.get("step"), value.get("type")
    if kind not in (None, "int", "float"):
        raise ArgumentError(f'{name}: type must be "int" or "float", got {kind!r}.')
    if low > high:
        raise ArgumentError(f"{name}: low must not exceed high, got low = {low}, high = {high}.")
    whole = step is None or (isinstance(step, int | float) and float(step).is_integer())
    integer = isinstance(low, int) and isinstance(high, int) and whole
    if kind == "int" and not integer:
        raise ArgumentError(
            f"{name}: an int range needs integer bounds and an integer step, "
            f"got low = {low}, high = {high}, step = {step}."
        )
    try:
        if integer and kind != "float":
            return IntDistribution(
                int(low), int(high), log=log, step=1 if step is None else int(step)
            )
        return FloatDistribution(float(low), float(high), log=log, step=step)
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"{name}: {error}") from error


def _bound(name: str, value: Mapping[str, Any], key: str) -> int | float:
    bound = value.get(key)
    # In Python booleans are integers.
    if isinstance(bound, bool) or not isinstance(bound, int | float) or not abs(bound) < math.inf:
        raise ArgumentError(f"{name}: a range needs {key}, a finite number, got {bound!r}.")
    return bound


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """A sampler or an optimiser that a trial uses.

    Attributes:
        name: What the definition calls it.
        make: What makes it, see `hpo_mab.samplers._registry.sampler_maker` and
            `hpo_mab.training._optimizers.optimizer_maker`.
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

    Examples:
        >>> from hpo_mab.search import SearchSpace
        >>> space = SearchSpace(optimizer={"name": "sgd", "lr": 0.1}, sampler={"kind": "mab"})
        >>> space.at({}).batch_size
        128
    """

    optimizer: Part
    sampler: Part
    model: Mapping[str, Any]
    batch_size: int
    warmup: float
    label_smoothing: float
    average: float

    def with_sampler(self, kind: str) -> Configuration:
        """The same configuration with another batch sampler, its knobs at their defaults."""
        return dataclasses.replace(self, sampler=Part(kind, sampler_maker(kind)))

    def with_difficulty(self) -> Configuration:
        """The same configuration whose batch sampler gets the difficulty of each example."""
        options = {**self.sampler.options, "difficulty": True}
        return dataclasses.replace(self, sampler=dataclasses.replace(self.sampler, options=options))

    def to_json(self) -> dict[str, Any]:
        """Names and values, for a record."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {
            **values,
            "optimizer": {"name": self.optimizer.name, **self.optimizer.options},
            "sampler": {"kind": self.sampler.name, **self.sampler.options},
        }


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """What a trial trains: a point of the search space, in a slot of the study's plan.

    Attributes:
        slot: Its place in the study's plan.
        configuration: Its point of the search space.
        seed: Of initial weights, batches and augmentation.
        may_prune: Whether the study's pruner may stop it.
        budgets: Its length, in budgets of a trial.
    """

    slot: int
    configuration: Configuration
    seed: int
    may_prune: bool
    budgets: int = 1


class PartSpace:
    """The search space of a `Part`: what a section names, with constants and ranges as options.

    Args:
        section: Of the definition, ``"optimizer"`` or ``"sampler"``.
        named: A name, or a class or function in place of it.
        options: Values as `parse_value` takes them.

    Attributes:
        name: Its name as text.
        values: Its options, parsed.

    Raises:
        ArgumentError: A range that holds nothing, a value of another type, or what cannot be
            imported.
        UnknownNameError: An unknown name or option.
    """

    def __init__(self, section: str, named: Named, options: Mapping[str, Any]) -> None:
        registry, make = _registry_and_maker(section)
        self.name = registry.name(named)
        self.values = _parse(section, options)
        check_options(registry, named, self.values, section=section)
        self._make = make(named)
        self._section = section

    def suggest(self, trial: optuna.trial.BaseTrial) -> Part:
        """Suggest a value of every range to the trial."""
        return Part(self.name, self._make, _suggest(trial, self._section, self.values))


def _registry_and_maker(section: str) -> tuple[Registry, Callable[[Named], Callable[..., Any]]]:
    """The registry of a section's names, and the function that makes a maker of one of them."""
    if section == "sampler":
        return SAMPLERS, sampler_maker
    # Imported late: optimisers need torch, and mistakes in a definition are found without it.
    from hpo_mab.training._optimizers import OPTIMIZERS, optimizer_maker

    return OPTIMIZERS, optimizer_maker


def check_options(
    registry: Registry,
    named: Named,
    values: Mapping[str, Any],
    *,
    section: str,
    shown: str | None = None,
) -> None:
    """Refuse parsed values that a named class or function does not take; see `Registry.check`."""
    each = {key: list(examples(one)) for key, one in values.items()}
    registry.check(named, each, section=section, shown=shown)


#: Settings of the training loop that can be searched, with their types.
LOOP_TYPES: Mapping[str, type] = {
    "batch_size": int,
    "warmup": float,
    "label_smoothing": float,
    "average": float,
}


class SearchSpace:
    """Constants and ranges of a trial; ranges become Optuna parameters.

    Names of the optimiser's parameters are ``lr``, ``momentum``, ...; of the network's,
    ``model.width``, ...; of the sampler's, ``sampler.memory``, .... ``prior`` has two:
    ``sampler.prior_alpha`` and ``sampler.prior_beta``. The loop's are ``batch_size``, ``warmup``,
    ``label_smoothing`` and ``average``.

    Args:
        optimizer: ``name`` and options. Here and for ``sampler``, a class or a function may be
            given in place of its name.
        sampler: ``kind`` and knobs.
        model: Options of the network.
        batch_size: Examples per batch.
        warmup: Share of the budget in which the learning rate rises.
        label_smoothing: Mass moved from the true label to all labels.
        average: Window of the average of the weights, as a share of the steps so far.

    Raises:
        ArgumentError: A range that holds nothing, or what cannot be imported.
        UnknownNameError: An unknown optimiser, sampler, option or knob.

    Examples:
        >>> import optuna
        >>> from hpo_mab.search import SearchSpace
        >>> space = SearchSpace(
        ...     optimizer={"name": "sgd", "lr": {"low": 0.01, "high": 0.1, "log": True}},
        ...     sampler={"kind": "mab"},
        ... )
        >>> trial = optuna.trial.FixedTrial({"lr": 0.05})
        >>> space.suggest(trial).optimizer.options["lr"]
        0.05
    """

    def __init__(
        self,
        *,
        optimizer: Mapping[str, Any],
        sampler: Mapping[str, Any],
        model: Mapping[str, Any] | None = None,
        batch_size: Any = 128,
        warmup: Any = 0.15,
        label_smoothing: Any = 0.0,
        average: Any = DEFAULT_AVERAGE,
    ) -> None:
        self.optimizer = PartSpace("optimizer", *_name_and_options(optimizer, "name"))
        self.sampler = PartSpace("sampler", *_name_and_options(sampler, "kind"))
        self.model = _parse("model", model or {})
        loop = {
            "batch_size": batch_size,
            "warmup": warmup,
            "label_smoothing": label_smoothing,
            "average": average,
        }
        self.loop = _parse("training", loop)
        check_types(
            "training",
            {key: list(examples(value)) for key, value in self.loop.items()},
            LOOP_TYPES,
        )

    def loop_examples(self) -> Iterator[dict[str, Any]]:
        """Settings of the loop at both ends of each range and with every choice, all combined."""
        for values in itertools.product(*map(examples, self.loop.values())):
            yield dict(zip(self.loop, values, strict=True))

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
        return math.prod(map(_count_values, (*self.model.values(), self.loop["batch_size"])))

    def corners(self) -> tuple[Configuration, Configuration]:
        """The points where every range is at its low end, and at its high end."""
        return self._at_end(0), self._at_end(-1)

    def _at_end(self, end: int) -> Configuration:
        sections = {
            "optimizer": self.optimizer.values,
            "training": self.loop,
            "sampler": self.sampler.values,
            "model": self.model,
        }
        found = distributions(sections)
        return self.at({name: range_ends(one)[end] for name, one in found.items()})

    def at(self, params: Mapping[str, Any]) -> Configuration:
        """The point that a recorded trial's parameters name."""
        return self.suggest(optuna.trial.FixedTrial(present_names(params)))


def _count_values(value: Any) -> float:
    """How many values a parsed value may take."""
    if isinstance(value, list):
        return math.prod(map(_count_values, value))
    if isinstance(value, CategoricalDistribution | ListChoices):
        return len(value.choices)
    if isinstance(value, IntDistribution):
        return (value.high - value.low) // value.step + 1
    return math.inf if isinstance(value, FloatDistribution) and not value.single() else 1


def _parse(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: parse_value(f"{section}.{key}", raw) for key, raw in values.items()}


def _suggest(
    trial: optuna.trial.BaseTrial, section: str, values: Mapping[str, Any]
) -> dict[str, Any]:
    return {key: suggest(trial, f"{_prefix(section)}{key}", value) for key, value in values.items()}


def _name_and_options(values: Mapping[str, Any], key: str) -> tuple[Named, dict[str, Any]]:
    """What a mapping names under a key, and its other values."""
    return values[key], {name: value for name, value in values.items() if name != key}
