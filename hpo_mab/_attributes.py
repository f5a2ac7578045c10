"""The attributes of Optuna's studies and trials that this package uses, as typed values.

One of them is the stored definition. Every name begins with ``hpo_mab:``, so that none equals a
user's own.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Self

from hpo_mab._errors import ArgumentError

PREFIX = "hpo_mab:"

# User attributes of a trial.
#: Its position in the study's plan, from 0; retries and twins have that of the trial they repeat.
SLOT_KEY = "hpo_mab:slot"
#: Whether it may be in a pair: one of the first trials, which no pruner stops.
PAIRED_KEY = "hpo_mab:paired"
#: Its batch sampler, in a study with twins or without a definition.
SAMPLER_KEY = "hpo_mab:sampler"
#: The slot that it repeats under another batch sampler.
TWIN_KEY = "hpo_mab:twin_of"
#: Number of the trial that it trains in full, or continues if the slot is the same.
PROMOTES_KEY = "hpo_mab:promotes"
#: How many budgets long it is, where it continues beyond one.
LENGTH_KEY = "hpo_mab:length"
#: Training examples that it may process; only in a study without a definition.
BUDGET_KEY = "hpo_mab:budget"
#: Training examples and seconds of its curve.
EXAMPLES_KEY = "hpo_mab:examples"
SECONDS_KEY = "hpo_mab:seconds"
#: Seconds of evaluation of this attempt, without those of an attempt that it continues.
EVALUATION_KEY = "hpo_mab:evaluation_seconds"
#: Training examples and seconds that its curve lacks: those after the last evaluation of a trial
#: that diverged, and its part of the seconds of a stack's free slots.
UNREPORTED_KEY = "hpo_mab:unreported"
#: Slots of the stack that trained it; absent if it was trained alone.
STACK_SLOTS_KEY = "hpo_mab:slots"
#: Whether its batch sampler used the study's record of examples.
USED_RECORD_KEY = "hpo_mab:learned"
#: How many evaluations of its curve an earlier attempt has made.
RESUMED_KEY = "hpo_mab:resumed_at"
#: Why it failed or diverged.
REASON_KEY = "hpo_mab:reason"
#: Why it was pruned, see `hpo_mab.pruners.why_pruned`.
PRUNED_KEY = "hpo_mab:pruned_because"
#: Whether it was interrupted, or lost its worker. It is then tried again.
INTERRUPTED_KEY = "hpo_mab:interrupted"
LOST_KEY = "hpo_mab:lost"

# System attributes of a trial.
#: Number of its learning curve, see `hpo_mab.storage.CurveStore`.
CURVE_KEY = "hpo_mab:curve"
#: Name of the process that trains it, see `hpo_mab.storage._process.this_process`.
WORKER_KEY = "hpo_mab:worker"
#: ``[step, value]`` of a rung of `AdvantagePruner` that it has reached; the rung's number follows.
RUNG_KEY = "hpo_mab:rung_"
#: Optuna's own: number of the failed trial that it tries again.
RETRY_KEY = "failed_trial"

# User attributes of a study.
#: The definition that it was made from, see `hpo_mab.storage.StoredDefinition`.
DEFINITION_KEY = "hpo_mab:definition"
#: Seed of a study whose trials a `TrialReporter` follows; the user sets it.
SEED_KEY = "hpo_mab:seed"
#: The goal of its trials, see `hpo_mab.search._target.Target`.
TARGET_KEY = "hpo_mab:target"
#: The evidence its pruner uses, see `hpo_mab.advantage.Evidence`.
EVIDENCE_KEY = "hpo_mab:evidence"
#: How well early values rank its first trials, see `hpo_mab.pruners.RungFidelity`.
FIDELITY_KEY = "hpo_mab:fidelity"
#: The batch sampler that ``sampler.kind = "auto"`` chose, and why.
CHOICE_KEY = "hpo_mab:auto"
#: The samplers that race for that choice, and their pairs, see `hpo_mab.search._race.RacePlan`.
RACE_KEY = "hpo_mab:race"
#: What the study uses of the evidence that its definition names: the ``digest`` of the evidence,
#: whether the ``pruner`` uses it, and why the batch sampler chosen in it is ``unused`` (or empty).
GIVEN_KEY = "hpo_mab:given"
#: Test accuracy of the best trial's network: ``{"trial": number, "accuracy": float}``.
TEST_KEY = "hpo_mab:test"
#: Number of the study's record of examples, a system attribute, see
#: `hpo_mab.storage._examples.ExampleStore`.
RECORD_KEY = "hpo_mab:record"
#: How far a study's notes and figures have been written, a system attribute.
PUBLISHED_KEY = "hpo_mab:published"
#: Test accuracies of the best configuration, trained again: ``trial``, ``budget``, ``accuracies``.
RETRAINED_KEY = "hpo_mab:retrained"
#: Validation accuracies of configurations trained again, by trial, see `hpo_mab.search.confirm`.
CONFIRMED_KEY = "hpo_mab:confirmed"

# Kinds of batch samplers with a meaning of their own.
#: Name of uniform sampling, which every other batch sampler is compared with.
UNIFORM = "uniform"
#: The kind with which a study chooses its batch sampler by a race.
AUTO = "auto"


def attrs_of_retry(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """The user attributes of a trial that its retry keeps: none of its results.

    A retry keeps its sampler, and a promotion the trial that it promotes. The study's record of
    examples is used only if the first attempt used it.
    """
    kept = (SLOT_KEY, PROMOTES_KEY, LENGTH_KEY, USED_RECORD_KEY, TWIN_KEY, SAMPLER_KEY)
    return {key: one for key, one in attrs.items() if key in kept or not key.startswith(PREFIX)}


def has_spent_budget(attrs: Mapping[str, Any]) -> bool:
    """Whether a trial that a `hpo_mab.TrialReporter` followed was evaluated at its budget's end."""
    return bool(attrs.get(EXAMPLES_KEY, 0) >= attrs.get(BUDGET_KEY, 1))


def unreported(attrs: Mapping[str, Any]) -> tuple[int, float]:
    """Training examples and seconds of a trial that its curve lacks, from its attributes."""
    examples, seconds = attrs.get(UNREPORTED_KEY, (0, 0.0))
    return int(examples), float(seconds)


# A stored definition: its sections and settings.


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
_OF_A_PAIR = (
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
_NOT_OF_A_PAIR = (*MAY_CHANGE, "training.threads")


def unlike(spec: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Keys that decide the curve of a trial and in which two definitions differ."""
    own, theirs = dict(flat_spec(spec)), dict(flat_spec(other))
    early = "budget.early_validation"
    # A study stores the number that "auto" has become; before that it is not known.
    unknown = (early,) if "auto" in (own.get(early), theirs.get(early)) else ()
    return [
        key
        for key in sorted(own.keys() | theirs.keys())
        if key.startswith(_OF_A_PAIR) and key not in (*_NOT_OF_A_PAIR, *unknown)
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
