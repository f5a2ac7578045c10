"""Values of a search space: constants, and ranges that become Optuna parameters."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any, TypeGuard

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from hpo_mab._errors import ArgumentError, UnknownNameError
from hpo_mab._stored_settings import parameter_of

_KEYS = frozenset({"low", "high", "log", "step", "type", "choices"})


def parse_value(name: str, value: Any) -> Any:
    """Turn a definition's value into a constant or an Optuna distribution.

    A table with ``choices`` is categorical. A table with ``low`` and ``high`` is an integer range
    if both and ``step`` are integers, and a float range otherwise; ``type = "float"`` makes
    integers floats. ``log`` and ``step`` are as in Optuna. The items of a list may be ranges, too.
    A distribution is kept. Everything else is a constant.
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


def without_none(raw: Any) -> Any:
    """A definition's value, in which the text ``"none"`` means None, which TOML lacks."""
    if isinstance(raw, Mapping):
        return {key: without_none(value) for key, value in raw.items()}
    if isinstance(raw, list | tuple):
        return [without_none(value) for value in raw]
    return None if raw == "none" else raw


def ranges(name: str, value: Any) -> Iterator[tuple[str, BaseDistribution]]:
    """The Optuna parameters of a parsed value: names and distributions."""
    if isinstance(value, BaseDistribution):
        yield name, value
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from ranges(parameter_of(name, index), item)


def searched(written: Mapping[str, Any]) -> dict[str, BaseDistribution]:
    """The Optuna parameters of ranges as definitions write them, by name."""
    parsed = (ranges(name, parse_value(name, without_none(raw))) for name, raw in written.items())
    return dict(itertools.chain.from_iterable(parsed))


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


def extremes(value: Any) -> Iterator[Any]:
    """Constants that a parsed value may become: both ends of ranges, every choice, itself."""
    if isinstance(value, CategoricalDistribution):
        yield from value.choices
    elif isinstance(value, BaseDistribution):
        yield from range_ends(value)
    elif isinstance(value, list):
        # Not all combinations: a list may have many ranges.
        each = [list(extremes(item)) for item in value]
        for row in range(max(map(len, each), default=1)):
            yield [ends[min(row, len(ends) - 1)] for ends in each]
    else:
        yield value


def integers(value: Any) -> Collection[int]:
    """All values that a parsed integer, choice or range of integers may take."""
    if isinstance(value, IntDistribution):
        return range(value.low, value.high + 1, value.step)
    return [int(one) for one in extremes(value)]


def count_values(value: Any) -> float:
    """How many values a parsed value may take; infinite for float ranges."""
    if isinstance(value, list):
        return math.prod(map(count_values, value))
    if isinstance(value, CategoricalDistribution):
        return len(value.choices)
    if isinstance(value, IntDistribution):
        return (value.high - value.low) // value.step + 1
    return math.inf if isinstance(value, FloatDistribution) and not value.single() else 1


def _parse_choices(name: str, value: Mapping[str, Any]) -> CategoricalDistribution:
    choices = value["choices"]
    if len(value) > 1 or not isinstance(choices, list | tuple) or not choices:
        raise ArgumentError(
            f"{name}: choices must be a list of at least one value, without other keys."
        )
    for choice in choices:
        if not isinstance(choice, bool | int | float | str | None):
            raise ArgumentError(
                f"{name}: choices must be booleans, numbers or strings, got {choice!r}."
            )
    return CategoricalDistribution(choices)


def _parse_range(name: str, value: Mapping[str, Any]) -> FloatDistribution | IntDistribution:
    low, high = _bound(name, value, "low"), _bound(name, value, "high")
    log, step, kind = _log(name, value, low), _step(name, value), value.get("type")
    if kind not in (None, "int", "float"):
        raise ArgumentError(f'{name}: type must be "int" or "float", got {kind!r}.')
    if low > high:
        raise ArgumentError(f"{name}: low must not exceed high, got low = {low}, high = {high}.")
    whole = step is None or float(step).is_integer()
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
    if not _is_finite(bound):
        raise ArgumentError(f"{name}: a range needs {key}, a finite number, got {bound!r}.")
    return bound


def _log(name: str, value: Mapping[str, Any], low: float) -> bool:
    log = value.get("log", False)
    if not isinstance(log, bool):
        raise ArgumentError(f"{name}: log must be true or false, got {log!r}.")
    if log and low <= 0:
        raise ArgumentError(f"{name}: low must be above 0 with log, got {low}.")
    return log


def _step(name: str, value: Mapping[str, Any]) -> int | float | None:
    step = value.get("step")
    if step is not None and not (_is_finite(step) and step > 0):
        raise ArgumentError(f"{name}: step must be a finite number above 0, got {step!r}.")
    return step


def _is_finite(value: Any) -> TypeGuard[int | float]:
    # In Python booleans are integers.
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and abs(value) < math.inf
