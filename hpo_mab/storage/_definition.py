"""What a study was made from, kept with it as one user attribute."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

import optuna

from hpo_mab._attributes import DEFINITION_KEY
from hpo_mab._errors import StorageError
from hpo_mab.data import DataIdentity

_VERSION = 2
#: Those that can be read: the first knows nothing of the data but the number of examples.
_KNOWN = (1, _VERSION)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """Identity of a study.

    Attributes:
        arm: The arm of a comparison it is, e.g. ``"mab"``.
        seed: The study's seed.
        trial_examples: Budget of one unpruned trial, in training examples.
        epoch_examples: Size of the training part, in examples.
        spec: The study definition as JSON-like values.
        environment: Versions and hardware the study began with.
        data: What its data were; None if that is not known.
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
            StorageError: The study was not made by this product, or by a later version of it.
        """
        stored = dict(study.user_attrs.get(DEFINITION_KEY, {}))
        version = stored.pop("version", None)
        if version not in _KNOWN:
            raise StorageError(
                f"Study '{study.study_name}' "
                + (
                    "was not made by hpo-mab; 'hpo-mab dashboard' shows any study."
                    if version is None
                    else f"has format {version}; this hpo-mab reads formats up to {_VERSION}."
                )
            )
        stored["spec"] = _completed(stored["spec"])
        data = stored.pop("data", None)
        return cls(**stored, data=None if data is None else DataIdentity(**data))

    def data_difference(self, examples: int, data: DataIdentity | None) -> str:
        """How other data differ from the study's, for a message; empty if they are the same.

        Args:
            examples: Their training examples.
            data: What they are; None if that is not known.
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


def _completed(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A stored spec with the keys that studies of earlier versions did not have."""
    if "training" not in spec:
        return dict(spec)
    # Their trials were evaluated by their trained weights.
    return {**spec, "training": {"average": 0.0, **spec["training"]}}
