"""The search space of a trial and the points in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import optuna

from hpo_mab import samplers, training
from hpo_mab._errors import UnknownNameError
from hpo_mab.search._values import (
    check_types,
    parse_value,
    present_names,
    range_ends,
    ranges,
    suggest,
)
from hpo_mab.training import DEFAULT_AVERAGE


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """One point of the search space, every value decided.

    Attributes:
        optimizer: The optimiser's ``name`` and options.
        sampler: The batch sampler's ``kind`` and knobs.
        model: Options of the network.
        batch_size: Examples a batch.
        warmup: Share of the budget in which the learning rate rises.
        label_smoothing: Mass moved from the true label to all labels.
        average: Window of the average of the weights, as a share of the steps so far; 0 for none.
    """

    optimizer: Mapping[str, Any]
    sampler: Mapping[str, Any]
    model: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    batch_size: int = 128
    warmup: float = 0.15
    label_smoothing: float = 0.0
    average: float = DEFAULT_AVERAGE

    def with_sampler(self, kind: str) -> Configuration:
        """The same configuration with another batch sampler, its knobs at their defaults."""
        return dataclasses.replace(self, sampler={"kind": kind})


class SearchSpace:
    """Constants and ranges of a trial; ranges become Optuna parameters.

    Parameters are named ``lr``, ``momentum``, ... for the optimiser, ``sampler.memory`` and so on
    for the sampler (``sampler.prior_alpha`` and ``sampler.prior_beta`` for the two items of
    ``prior``), ``model.width`` for the network, and ``batch_size``, ``warmup``,
    ``label_smoothing`` and ``average``.

    Args:
        optimizer: ``name`` and options.
        sampler: ``kind`` and knobs.
        model: Options of the network.
        batch_size: Examples a batch.
        warmup: Share of the budget in which the learning rate rises.
        label_smoothing: Mass moved from the true label to all labels.
        average: Window of the average of the weights, as a share of the steps so far.

    Raises:
        ArgumentError: A range that holds nothing.
        UnknownNameError: An unknown optimiser, sampler, option or knob.
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
        self.optimizer = _parse("optimizer", optimizer)
        self.sampler = _parse("sampler", sampler)
        self.model = _parse("model", model or {})
        loop = {
            "batch_size": batch_size,
            "warmup": warmup,
            "label_smoothing": label_smoothing,
            "average": average,
        }
        self.loop = _parse("training", loop)
        optimizer_types = types_of_defaults(training.optimizer_options(self.optimizer["name"]))
        _check_options("optimizer", self.optimizer, "name", optimizer_types)
        _check_options("sampler", self.sampler, "kind", samplers.knob_types(self.sampler["kind"]))
        check_types(
            "training",
            self.loop,
            {"batch_size": int, "warmup": float, "label_smoothing": float, "average": float},
        )

    def suggest(self, trial: optuna.trial.BaseTrial) -> Configuration:
        """Ask the trial for every range."""
        return Configuration(
            optimizer=_suggest(trial, "", self.optimizer),
            sampler=_suggest(trial, "sampler.", self.sampler),
            model=_suggest(trial, "model.", self.model),
            **_suggest(trial, "", self.loop),
        )

    def corners(self) -> tuple[Configuration, Configuration]:
        """The points where every range is at its low end, and at its high end."""
        return self._at_end(0), self._at_end(-1)

    def _at_end(self, end: int) -> Configuration:
        named = {
            **self.optimizer,
            **self.loop,
            **{f"sampler.{key}": value for key, value in self.sampler.items()},
            **{f"model.{key}": value for key, value in self.model.items()},
        }
        found = (item for name, value in named.items() for item in ranges(name, value))
        return self.at({name: range_ends(distribution)[end] for name, distribution in found})

    def at(self, params: Mapping[str, Any]) -> Configuration:
        """The point that a recorded trial's parameters name."""
        return self.suggest(optuna.trial.FixedTrial(present_names(params)))


def _parse(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: parse_value(f"{section}.{key}", raw) for key, raw in values.items()}


def _suggest(
    trial: optuna.trial.BaseTrial, prefix: str, values: Mapping[str, Any]
) -> dict[str, Any]:
    return {key: suggest(trial, f"{prefix}{key}", value) for key, value in values.items()}


def types_of_defaults(defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Types of options each of which is a number or a boolean, from their defaults."""
    return {name: type(default) for name, default in defaults.items()}


def _check_options(
    section: str, values: Mapping[str, Any], key: str, types: Mapping[str, Any]
) -> None:
    for option in values:
        if option != key and option not in types:
            raise UnknownNameError(f"option of {section} '{values[key]}'", option, types)
    check_types(section, values, types)
