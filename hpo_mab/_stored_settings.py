"""A stored study definition as typed values, and how two definitions differ."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Self

from hpo_mab._attributes import DEFINITION_KEY
from hpo_mab._errors import ArgumentError


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A section of a stored definition: the name in it, and its other keys.

    Attributes:
        kind: The name, e.g. ``"mab"``; empty if it is not known.
        options: The other keys, as JSON values: constants and ranges.
    """

    kind: str
    options: Mapping[str, Any]

    @classmethod
    def of(cls, spec: Mapping[str, Any], name: str, key: str) -> Self:
        """The section ``name`` of a spec; ``key`` is the option that holds its `kind`."""
        options = dict(spec.get(name, {}))
        return cls(kind=str(options.pop(key, "")), options=options)


#: Sections that name something, each with the key of the name.
NAMING_KEYS: Mapping[str, str] = {
    "data": "name",
    "model": "name",
    "optimizer": "name",
    "sampler": "kind",
    "search": "sampler",
    "pruner": "kind",
}
#: A trial's budget has one of these units.
BUDGET_KEYS = ("budget.epochs", "budget.steps", "budget.examples")
#: Sections that parameter names leave out: ``lr``, not ``optimizer.lr``.
BARE = ("optimizer", "training")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StudySettings:
    """A stored study definition as typed values; a study without one has empty sections.

    A key that an older record lacks has the value that was in effect then.

    Attributes:
        name: Name of the definition; empty if there is none.
        data: The data set.
        model: The network.
        optimizer: The optimiser.
        sampler: The batch sampler.
        pruner: The Optuna pruner.
        search: The Optuna sampler.
        training: The loop.
        initial: Configurations at the start that are never pruned.
        average: Window of the moving average of the weights, a constant or a range.
        schedule: Of the learning rate.
        epochs: Passes over the training set per trial; None if the budget is in another unit.
        steps: Steps of a trial, likewise.
        evaluations: Evaluations per trial; None if not known.
        early_validation: Validation examples of the evaluations before the last, or ``"all"``.
        trials: Trials that must finish.
        total: What all trials together may spend, as written; None for no limit.
        reference: Arm with which a comparison compares the others; empty if not known.
    """

    name: str
    data: Section
    model: Section
    optimizer: Section
    sampler: Section
    pruner: Section
    search: Section
    training: Mapping[str, Any]
    initial: int
    average: Any
    schedule: str
    epochs: float | None
    steps: int | None
    evaluations: int | None
    early_validation: int | Literal["all"]
    trials: int
    total: str | None
    reference: str

    @classmethod
    def of(cls, spec: Mapping[str, Any]) -> Self:
        """The settings of a spec as it was stored."""
        training, budget = spec.get("training", {}), spec.get("budget", {})
        evaluations = budget.get("evaluations")
        sections = {name: Section.of(spec, name, key) for name, key in NAMING_KEYS.items()}
        return cls(
            **sections,
            name=str(spec.get("name", "")),
            training=training,
            initial=int(sections["search"].options.get("initial", 0)),
            average=training.get("average", 0.0),
            schedule=str(training.get("schedule", "linear")),
            epochs=budget.get("epochs"),
            steps=budget.get("steps"),
            evaluations=None if evaluations is None else int(evaluations),
            early_validation=budget.get("early_validation", "all"),
            trials=int(budget.get("trials", 0)),
            total=budget.get("total"),
            reference=str(spec.get("compare", {}).get("reference", "")),
        )

    @classmethod
    def stored_in(cls, study_attrs: Mapping[str, Any]) -> Self:
        """The settings of a study with these user attributes; empty without a definition."""
        return cls.of(study_attrs.get(DEFINITION_KEY, {}).get("spec", {}))

    def examples_of(self, params: Mapping[str, Any], *, longest: int) -> int:
        """Training examples of one budget of a trial, given those of the longest one."""
        size = params.get("batch_size")
        return longest if self.steps is None or size is None else self.steps * int(size)

    def evaluations_of(self, longest: int) -> int | None:
        """Evaluations of one budget, at most one a step; ``longest`` as in `examples_of`."""
        if self.evaluations is None:
            return None
        size = self.training.get("batch_size")
        # Where it is searched there are enough steps, see `Workload.check_evaluations`.
        steps = longest // size if isinstance(size, int) else self.evaluations
        return min(self.evaluations, self.steps or steps)

    @property
    def ranges(self) -> dict[str, Any]:
        """Every searched parameter's range, as JSON values, by the parameter's name."""
        sections = {
            "optimizer": self.optimizer.options,
            "training": self.training,
            "model": self.model.options,
            "sampler": self.sampler.options,
        }
        values: dict[str, Any] = {}
        for name, options in sections.items():
            for key, value in options.items():
                full = key if name in BARE else f"{name}.{key}"
                if isinstance(value, list):
                    values |= {parameter_of(full, index): one for index, one in enumerate(value)}
                else:
                    values[full] = value
        return {name: value for name, value in values.items() if is_range(value)}


def is_range(value: Any) -> bool:
    """Whether a value of a stored definition is a range or a choice."""
    return isinstance(value, Mapping) and ("choices" in value or {"low", "high"} <= value.keys())


#: Names of parameters that are items of a list, where they are not ``list.index``.
_ITEM_NAMES = {"sampler.prior.0": "sampler.prior_alpha", "sampler.prior.1": "sampler.prior_beta"}


def parameter_of(name: str, index: int) -> str:
    """Name of the parameter of an item of a list, e.g. ``"sampler.prior_alpha"``."""
    full = f"{name}.{index}"
    return _ITEM_NAMES.get(full, full)


# Differences between two definitions.


def flat_spec(spec: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a definition with its dotted key."""
    for key, value in spec.items():
        if isinstance(value, Mapping):
            yield from flat_spec(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


#: Keys that may change when a study is continued, as may ``compare``: its trials mean the same.
MAY_CHANGE = (
    "name",
    "budget.trials",
    "budget.total",
    "data.root",
    "data.download",
    "training.device",
    "training.checkpoint",
    # Not with sampler "auto", which races samplers that use the record.
    "training.examples",
    "training.graph",
    "training.slots",
)
#: What the studies of a pair must have in common: all that decides a trial's curve, except the
#: batch sampler. "sampler.kind" is here because the reference must be uniform.
_EQUAL_IN_PAIRS = (
    "sampler.kind",
    "seed",
    "data.",
    "model.",
    "optimizer.",
    "training.",
    "budget.evaluations",
    "budget.early_validation",
    *BUDGET_KEYS,
)
_MAY_DIFFER_IN_PAIRS = (*MAY_CHANGE, "training.threads")


def differing_keys(spec: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Keys that decide the curve of a trial and in which two definitions differ."""
    own, theirs = dict(flat_spec(spec)), dict(flat_spec(other))
    early = "budget.early_validation"
    # A study stores the number that "auto" has become; before that it is not known.
    unknown = (early,) if "auto" in (own.get(early), theirs.get(early)) else ()
    return [
        key
        for key in sorted(own.keys() | theirs.keys())
        if key.startswith(_EQUAL_IN_PAIRS) and key not in (*_MAY_DIFFER_IN_PAIRS, *unknown)
        if own.get(key) != theirs.get(key)
    ]


# The total budget, as it is written.
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_TOTAL_UNITS = ("epochs", "epoch", "examples", *_SECONDS)
_FORM = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]+)\s*")


@dataclasses.dataclass(frozen=True, slots=True)
class TotalBudget:
    """The budget of all trials of a study together.

    Attributes:
        amount: How much, in ``unit``.
        unit: ``"seconds"`` of training (the sampler's cost included) and evaluation, added up over
            workers; ``"epochs"`` or ``"examples"`` of training.
    """

    amount: float
    unit: Literal["seconds", "epochs", "examples"]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``"45s"``, ``"30m"``, ``"2h"``, ``"1d"``, ``"200epochs"`` or ``"50000examples"``."""
        match = _FORM.fullmatch(text.lower()) if isinstance(text, str) else None
        if match is None or match[2] not in _TOTAL_UNITS or float(match[1]) == 0:
            raise ArgumentError(
                "total budget must be a positive amount with a unit "
                f"(45s, 30m, 2h, 1d, 200epochs, 1000000examples), got {text!r}."
            )
        amount, unit = float(match[1]), match[2]
        if unit in _SECONDS:
            return cls(amount * _SECONDS[unit], "seconds")
        return cls(amount, "examples" if unit == "examples" else "epochs")

    def share_spent(self, *, seconds: float, examples: int, epoch_examples: int) -> float:
        """Share of the budget spent; 1 or more means it is used up. Seconds include evaluations."""
        spent = {"seconds": seconds, "examples": examples, "epochs": examples / epoch_examples}
        return spent[self.unit] / self.amount
