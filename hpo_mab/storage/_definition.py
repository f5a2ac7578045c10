"""What a study was made from, stored with it as one user attribute."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import optuna
from optuna.trial import FrozenTrial, Trial

from hpo_mab._attributes import BUDGET_KEY, DEFINITION_KEY, SAMPLER_KEY, SEED_KEY
from hpo_mab._errors import StorageError
from hpo_mab._stored_settings import StudySettings
from hpo_mab.data import DataIdentity
from hpo_mab.samplers._registry import NAMES

if TYPE_CHECKING:
    from hpo_mab.storage._runs import TrialRun

#: One more than before if the fields below change, or if a key with an effect is added.
_VERSION = 2


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StoredDefinition:
    """What a study was made from: its definition, arm, seed, data and machine.

    Attributes:
        arm: Name of the arm of a comparison, e.g. ``"mab"``.
        seed: The study's seed.
        trial_examples: Budget of the longest unpruned trial, in examples.
        epoch_examples: Size of the training part, in examples.
        spec: The study definition as JSON-like values.
        environment: Versions and hardware at the study's start.
        data: Identity of its data; None if not known.
    """

    arm: str
    seed: int
    trial_examples: int
    epoch_examples: int
    spec: Mapping[str, Any]
    environment: Mapping[str, Any]
    data: DataIdentity | None = None

    def save(self, study: optuna.Study) -> None:
        """Write the definition into the study."""
        study.set_user_attr(DEFINITION_KEY, {"version": _VERSION, **dataclasses.asdict(self)})

    @classmethod
    def load(cls, study: optuna.Study) -> Self:
        """Read the definition a study was made from.

        Raises:
            StorageError: The study has no definition, or one of another version.
        """
        stored = dict(study.user_attrs.get(DEFINITION_KEY, {}))
        version = stored.pop("version", None)
        if version != _VERSION:
            raise StorageError(
                f"Study '{study.study_name}' "
                + (
                    "has no definition: only 'hpo-mab run' and 'hpo-mab compare' store one. "
                    "'hpo-mab dashboard' shows any study."
                    if version is None
                    else f"has format {version}; this hpo-mab reads format {_VERSION}."
                )
            )
        data = stored.pop("data", None)
        return cls(**stored, data=None if data is None else DataIdentity(**data))

    @classmethod
    def of(cls, study: optuna.Study) -> Self:
        """The stored definition, or what is known from the trials of a `hpo_mab.TrialReporter`.

        The arm of the latter is the batch sampler of its trials, or the study's name if they have
        several. The size of its training part is not known, and is 0. Its seed is 0 unless the
        study has the user attribute ``hpo_mab:seed``.

        Raises:
            StorageError: Neither is there, or the trials differ in their budget.
        """
        if cls.is_in(study.user_attrs):
            return cls.load(study)
        trials = study.get_trials(deepcopy=False)
        own = [trial for trial in trials if BUDGET_KEY in trial.user_attrs]
        if not own:
            return cls.load(study)  # Raises.
        budgets = [trial.user_attrs[BUDGET_KEY] for trial in own]
        sizes = [batch_size_of(trial) for trial in own]
        if not have_one_budget(budgets, sizes):
            raise StorageError(
                f"Trials of study '{study.study_name}' have different budgets, {min(budgets):,} to "
                f"{max(budgets):,} examples. Only trials of one budget can be compared."
            )
        kinds = {where.partition(":")[2]: kind for kind, where in NAMES.items()}
        attrs = (trial.user_attrs for trial in trials)
        arms = {each[SAMPLER_KEY] for each in attrs if SAMPLER_KEY in each}
        arm = arms.pop() if len(arms) == 1 else study.study_name
        return cls(
            arm=kinds.get(arm, arm),
            seed=int(study.user_attrs.get(SEED_KEY, 0)),
            trial_examples=max(budgets),
            epoch_examples=0,
            spec={},
            environment={},
        )

    @property
    def settings(self) -> StudySettings:
        """The study definition as typed values."""
        return StudySettings.of(self.spec)

    def data_difference(self, examples: int, data: DataIdentity | None) -> str:
        """How other data differ from the study's, for a message; empty if they are the same.

        Args:
            examples: Number of their training examples.
            data: Their identity; None if not known.
        """
        if examples != self.epoch_examples:
            return f"{self.epoch_examples} training examples there, {examples} here"
        if self.data is None or data is None or data.is_same(self.data):
            return ""
        if self.data.classes != data.classes:
            return f"{self.data.classes} classes there, {data.classes} here"
        return "as many examples and classes, but other labels, files or pixels here"

    @staticmethod
    def is_in(study_attrs: Mapping[str, Any]) -> bool:
        """Whether a study with these user attributes was made by this product."""
        return DEFINITION_KEY in study_attrs


def have_one_budget(budgets: Sequence[int], sizes: Sequence[int]) -> bool:
    """Whether trials of an own loop can be compared.

    If batch sizes are searched, a budget in examples is rounded to whole steps, and a budget in
    steps gives different numbers of examples.

    ``budgets`` are in examples; a size is 0 where the batch size is no parameter.
    """
    steps = {budget // size for budget, size in zip(budgets, sizes, strict=True) if size}
    same_steps = all(sizes) and len(steps) == 1
    return same_steps or max(budgets) - min(budgets) <= max(sizes)


def largest_batch(trials: Iterable[FrozenTrial | TrialRun]) -> int:
    return max(map(batch_size_of, trials), default=0)


def batch_size_of(trial: FrozenTrial | TrialRun | Trial) -> int:
    """The batch size among a trial's parameters; 0 if it is none of them."""
    size = trial.params.get("batch_size")
    return size if isinstance(size, int) else 0
