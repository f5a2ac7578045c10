"""The study definition: its sections, what each of their keys means, and which values it takes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from hpo_mab._attributes import AUTO, UNIFORM
from hpo_mab._errors import ArgumentError, plain
from hpo_mab._stored_settings import NAMING_KEYS, TotalBudget
from hpo_mab.search._portfolio import PORTFOLIO
from hpo_mab.search._ranges import parse_value, without_none
from hpo_mab.search._space import LOOP_TYPES
from hpo_mab.training import Budget
from hpo_mab.training._schedule import DEFAULT_AVERAGE

#: Trials that one process trains at the same time.
Slots = int | Literal["auto"]


class _Section(BaseModel):
    # Strict: texts and booleans are not numbers.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _plain_values(cls, raw: Any) -> Any:
        raw = plain(raw)
        if not isinstance(raw, Mapping):
            return raw
        # The text "none" unsets a key whose default is None; TOML has no None.
        unset = {name for name, field in cls.model_fields.items() if field.default is None}
        return {key: None if one == "none" and key in unset else one for key, one in raw.items()}


class _OpenSection(_Section):
    """A section that names something; its further keys are options of it, constants or ranges."""

    model_config = ConfigDict(extra="allow")

    @property
    def options(self) -> dict[str, Any]:
        """The further keys; the text ``"none"`` means None, which TOML lacks."""
        return {key: without_none(raw) for key, raw in (self.__pydantic_extra__ or {}).items()}

    def parsed_options(self, section: str) -> dict[str, Any]:
        """The further keys, ranges turned into Optuna distributions."""
        return {key: parse_value(f"{section}.{key}", raw) for key, raw in self.options.items()}


class DataSection(_OpenSection):
    """``[data]``: the data set and how it is split."""

    name: str = "digits"
    root: str = "data"
    download: bool = True
    validation: float = Field(default=0.2, gt=0, lt=1)
    augment: bool | Literal["auto"] = "auto"
    exclude: str | None = None


class ModelSection(_OpenSection):
    """``[model]``: the network; further keys are its options, constants or ranges."""

    name: str = "small_cnn"


class BudgetSection(_Section):
    """``[budget]``: what one trial, and the whole study, may spend."""

    epochs: float | None = Field(default=None, gt=0)
    steps: int | None = Field(default=None, gt=0)
    examples: int | None = Field(default=None, gt=0)
    evaluations: int = Field(default=8, ge=1, le=100)
    early_validation: Annotated[int, Field(ge=1)] | Literal["auto", "all"] = "auto"
    trials: int = Field(default=30, ge=1)
    total: str | None = None

    @model_validator(mode="after")
    def _one_unit(self) -> BudgetSection:
        # Raises if there is not exactly one unit.
        Budget(epochs=self.epochs, steps=self.steps, examples=self.examples)
        if self.total is not None:
            TotalBudget.parse(self.total)  # Raises if it cannot be read.
        return self


class OptimizerSection(_OpenSection):
    """``[optimizer]``: its name; further keys are its options, constants or ranges."""

    name: str = "sgd"


class TrainingSection(_Section):
    """``[training]``: the loop."""

    # Constants or ranges, which `SearchSpace` checks.
    batch_size: Any = 128
    warmup: Any = 0.15
    label_smoothing: Any = 0.0
    average: Any = DEFAULT_AVERAGE
    schedule: Literal["linear", "constant"] = "linear"
    keep: Literal["trained", "better"] = "trained"
    precision: Literal["float32", "bfloat16"] = "float32"
    channels_last: bool = True
    graph: bool = True
    slots: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"] = "auto"
    device: str = "auto"
    # One is the fastest per core for small networks, and does not depend on the number of cores.
    threads: int = Field(default=1, ge=1, le=4096)
    checkpoint: float = Field(default=60.0, ge=0, allow_inf_nan=False)
    examples: bool = True


class SamplerSection(_OpenSection):
    """``[sampler]``: the batch sampler; further keys are its knobs, constants or ranges.

    Attributes:
        kind: Name of a batch sampler, or ``"auto"``. ``"auto"`` trains the first configurations
            under uniform sampling, some also under the rest of ``portfolio``, then takes the best.
        portfolio: The samplers that ``"auto"`` chooses from, including uniform sampling. Each is a
            name, or a table with ``kind``, its knobs and a ``name``.
        evidence: File of ``hpo-mab evidence`` with the choice of an earlier study. If it applies,
            ``"auto"`` takes it without a race. The default is the file of ``pruner.evidence``.
    """

    kind: str = "mab"
    portfolio: list[str | dict[str, Any]] | None = None
    evidence: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _has_portfolio(cls, raw: Any) -> Any:
        if not isinstance(raw, Mapping):
            return raw
        # The text "none" is replaced by None only after this.
        set_keys = [key for key in ("portfolio", "evidence") if raw.get(key) not in (None, "none")]
        if raw.get("kind") == AUTO:
            return raw if "portfolio" in set_keys else {**raw, "portfolio": list(PORTFOLIO)}
        if set_keys:
            raise ValueError(f"{set_keys[0]} needs kind = 'auto', got {raw.get('kind', 'mab')!r}")
        return raw


class SearchSection(_OpenSection):
    """``[search]``: the Optuna sampler; further keys are its options."""

    sampler: str = "tpe"
    initial: int = Field(default=10, ge=0)


class PrunerSection(_OpenSection):
    """``[pruner]``: the Optuna pruner; further keys are its options."""

    kind: str = "median"


class ArmSection(_Section):
    """``[compare.arms.NAME]``: what differs in one arm of a comparison.

    A section that is given replaces the study's own.
    """

    sampler: SamplerSection | None = None
    pruner: PrunerSection | None = None


class CompareSection(_Section):
    """``[compare]``: the arms and the seeds of a comparison."""

    seeds: int = Field(default=1, ge=1, le=1000)
    retrain: int = Field(default=3, ge=0)
    retrain_epochs: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    reference: str = "uniform"
    unpruned: bool = False
    arms: dict[Annotated[str, Field(min_length=1)], ArmSection] = Field(default_factory=dict)


def _check_can_be_stored(key: str, raw: Any) -> None:
    # Other processes read the definition from the database, as JSON.
    try:
        json.dumps(raw, allow_nan=False)
    except (TypeError, ValueError):
        raise ArgumentError(
            f"{key} must be a finite number, a text, a boolean, or a list or table of these, "
            f"got {raw!r}; write it as a text, and a range as a table."
        ) from None


class StudySpec(_Section):
    """A whole study definition; ``studies/README.md`` says what each key means.

    It is made by `load_spec` or `make_spec`, whose errors name the key; the class itself raises
    pydantic's.

    Examples:
        >>> from hpo_mab.search import make_spec
        >>> spec = make_spec(
        ...     {
        ...         "name": "small",
        ...         "budget": {"steps": 4, "trials": 1},
        ...         "model": {"name": "mlp"},
        ...         "optimizer": {"name": "sgd", "lr": {"low": 0.01, "high": 0.1}},
        ...     }
        ... )
        >>> spec.sampler.kind, spec.budget.trials
        ('mab', 1)
    """

    name: str = Field(min_length=1, max_length=200)
    seed: int = Field(default=0, ge=0, lt=2**32)
    data: DataSection = DataSection()
    model: ModelSection = ModelSection()
    budget: BudgetSection
    optimizer: OptimizerSection = OptimizerSection()
    training: TrainingSection = TrainingSection()
    sampler: SamplerSection = SamplerSection()
    search: SearchSection = SearchSection()
    pruner: PrunerSection = PrunerSection()
    compare: CompareSection = CompareSection()

    @model_validator(mode="after")
    def _check_arms_too(self) -> StudySpec:
        for spec in (self, *map(self.as_arm, self.compare.arms.values())):
            spec._check_values()
        return self

    def _check_values(self) -> None:
        for section in ("optimizer", "model", "sampler"):
            getattr(self, section).parsed_options(section)  # Raises if a range cannot be used.
        for section in NAMING_KEYS:
            for key, raw in getattr(self, section).options.items():
                _check_can_be_stored(f"{section}.{key}", raw)
        _check_can_be_stored("sampler.portfolio", self.sampler.portfolio)
        for key in LOOP_TYPES:
            _check_can_be_stored(f"training.{key}", getattr(self.training, key))

    def as_arm(self, arm: ArmSection) -> StudySpec:
        """The definition with an arm's sections in place of its own."""
        sections = {"sampler": arm.sampler, "pruner": arm.pruner}
        return self.model_copy(update={k: one for k, one in sections.items() if one is not None})

    @property
    def given_evidence(self) -> dict[str, Any]:
        """The advantage pruner's ``evidence`` or ``reference``; empty under uniform sampling."""
        # A user's own pruner may have options of these names.
        if self.pruner.kind != "advantage" or self.sampler.kind == UNIFORM:
            return {}
        given = self.pruner.options
        return {key: given[key] for key in ("evidence", "reference") if given.get(key) is not None}

    @property
    def has_pilot(self) -> bool:
        """Whether the pruner measures its evidence on pairs with uniform sampling."""
        # Evidence from elsewhere is not measured again, and the race of "auto" has pairs.
        measures = self.sampler.kind not in (UNIFORM, AUTO) and not self.given_evidence
        return self.pruner.kind == "advantage" and measures
