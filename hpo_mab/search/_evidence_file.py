"""Evidence from a file: what a study takes of it for its pruner, and for the choice of "auto"."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

import optuna

from hpo_mab._attributes import AUTO, CHOICE_KEY, EVIDENCE_KEY, GIVEN_KEY
from hpo_mab._errors import ArgumentError, HpoMabWarning
from hpo_mab._stored_settings import BUDGET_KEYS, StudySettings, flat_spec
from hpo_mab.advantage import Evidence
from hpo_mab.advantage._evidence import difference_of_task, read_evidence
from hpo_mab.search._choice import Choice, race_unit, stored_choice
from hpo_mab.search._portfolio import parse_portfolio, uses_record
from hpo_mab.storage._definition import StoredDefinition

if TYPE_CHECKING:
    from hpo_mab.search._definition import StudySpec


#: Keys of a definition on which a choice depends.
_TASK = ("data.", "model.", *BUDGET_KEYS, "sampler.portfolio")

#: Of these, keys that do not change the data, or whose effect is in the digest of the data.
_NOT_COMPARED = ("data.root", "data.download", "data.exclude")

#: Longest value that a message shows, in characters.
_LONGEST_SHOWN = 30


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RaceOutcome:
    """Outcome of a race, which evidence passes on to later studies.

    Attributes:
        study: Name of the study that held it.
        choice: The choice.
        task: What the choice depends on: values of the study's definition by dotted key.
    """

    study: str
    choice: Choice
    task: Mapping[str, Any]

    @classmethod
    def of(cls, study: optuna.Study) -> Self:
        """The outcome of a study's race."""
        choice, definition = stored_choice(study), StoredDefinition.load(study)
        if choice is None:
            why = "its race is not over"
        elif choice.source:
            why = f"it took the choice of study '{choice.source}'; name that one"
        elif not choice.standings:
            why = f"it held no race: {choice.why}"
        elif not choice.data:
            why = "data sets that a program has made have no digest"
        else:
            return cls(study=study.study_name, choice=choice, task=_task_of(definition.spec))
        raise ArgumentError(f"'{study.study_name}' has no choice for later studies: {why}.")

    def to_json(self) -> dict[str, Any]:
        """The outcome as JSON values."""
        return {"study": self.study, "choice": self.choice.to_json(), "task": dict(self.task)}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        """The outcome that `to_json` wrote."""
        try:
            return cls(
                study=str(stored["study"]),
                choice=Choice.from_json(stored["choice"]),
                task=dict(stored["task"]),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ArgumentError(f"evidence: its race cannot be read: {error!r}.") from error

    def difference(self, spec: Mapping[str, Any], *, data: str) -> str:
        """How another study differs in what the choice depends on; empty if it does not.

        ``spec`` is that study's definition as JSON values, ``data`` the digest of its data.
        """
        there, here = self.task, _task_of(spec)
        for key in sorted(there.keys() | here.keys()):
            one, other = there.get(key), here.get(key)
            if one != other:
                short = max(len(repr(one)), len(repr(other))) <= _LONGEST_SHOWN
                values = f"is {one!r} there and {other!r} here" if short else "differs"
                return f"{key} {values}"
        if self.choice.data != data:
            return "its data have other images, labels or sizes"
        judged = race_unit(StudySettings.of(spec).total)
        if self.choice.judged != judged:
            return (
                f"it was made at equal {self.choice.judged}, samplers race at equal {judged} here"
            )
        return ""

    def taken(self) -> Choice:
        """The choice as a later study takes it."""
        why = f"chosen by study '{self.study}': {self.choice.why}"
        return dataclasses.replace(self.choice, why=why, source=self.study, evidence=None)


def _task_of(spec: Mapping[str, Any]) -> dict[str, Any]:
    """What a choice depends on, of a definition, by dotted key."""
    found = {
        key: value
        for key, value in flat_spec(spec)
        if key.startswith(_TASK) and key not in _NOT_COMPARED and value is not None
    }
    # As JSON has them: a file must compare equal.
    return dict(json.loads(json.dumps(found)))


def is_its_evidence(study: optuna.Study, path: Any) -> bool:
    """Whether a file holds the evidence that the study was made with; it may have been moved."""
    try:
        found = Evidence.load(path)
    except (ArgumentError, TypeError):
        return False
    attrs = study.user_attrs
    given = attrs.get(GIVEN_KEY, {}).get("digest")
    return found.digest == given or found.to_json() == attrs.get(EVIDENCE_KEY)


def store_evidence(study: optuna.Study, spec: StudySpec, data_digest: str) -> None:
    """Store what a study uses of its evidence, because the file may be moved afterwards."""
    attr: dict[str, Any] = {"digest": "", "pruner": False, "unused": ""}
    if "evidence" in spec.given_evidence:
        evidence = read_evidence(spec.given_evidence["evidence"])
        attr["digest"] = evidence.digest
        if not evidence.pairs and spec.sampler.kind != AUTO:
            warnings.warn(
                "pruner.evidence holds no pairs, so the pruner decides as successive halving.",
                HpoMabWarning,
                stacklevel=4,
            )
        of_task = not difference_of_task(evidence, spec.data.name, spec.model.name)
        # Without pairs the race of "auto" measures what the file lacks.
        attr["pruner"] = of_task and evidence.pairs > 0
        if attr["pruner"]:
            study.set_user_attr(EVIDENCE_KEY, evidence.to_json())
    given = race_in_file(spec)
    if given is not None:
        attr["digest"], raced = given
        why = _why_unused(raced, spec, data_digest)
        if why:
            attr["unused"] = f"the choice of study '{raced.study}' is not used: {why}"
            warnings.warn(f"auto: {attr['unused']}.", HpoMabWarning, stacklevel=4)
        else:
            study.set_user_attr(CHOICE_KEY, raced.taken().to_json())
    if attr["digest"]:
        study.set_user_attr(GIVEN_KEY, attr)


def race_in_file(spec: StudySpec) -> tuple[str, RaceOutcome] | None:
    """Digest of the evidence that ``auto`` is given, and the race in it; None if there is none."""
    if spec.sampler.kind != AUTO:
        return None
    named = spec.sampler.evidence
    given = spec.given_evidence.get("evidence") if named is None else named
    if given is None:
        return None
    evidence = read_evidence(given)
    if evidence.race is not None:
        return evidence.digest, RaceOutcome.from_json(evidence.race)
    if named is None:
        return None
    raise ArgumentError(
        f"sampler.evidence must hold the choice of a study whose sampler was auto, got '{named}'; "
        "'hpo-mab evidence' of such a study writes it."
    )


def _why_unused(raced: RaceOutcome, spec: StudySpec, data_digest: str) -> str:
    """Why the choice of another study does not apply to this one; empty if it does."""
    different = raced.difference(spec.model_dump(mode="json"), data=data_digest)
    if different:
        return different
    samplers = parse_portfolio(spec.sampler.portfolio or [])
    chosen = samplers.get(raced.choice.sampler)
    if chosen is None:
        return f"it is '{raced.choice.sampler}', which the portfolio lacks"
    if uses_record(chosen) and not spec.training.examples:
        return f"'{raced.choice.sampler}' needs training.examples, which is off"
    return ""
