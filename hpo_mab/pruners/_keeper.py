"""The evidence of one study: found once, stored with the study, refreshed at a low rate."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from hpo_mab._attributes import DEFINITION_KEY, EVIDENCE_KEY
from hpo_mab._errors import ArgumentError
from hpo_mab.advantage import DEFAULT_MARGIN, FEWEST_PAIRS, Evidence, measure_evidence
from hpo_mab.pruners._trial_pairs import pairs_of_trials

#: Evidence as users give it.
EvidenceLike = Evidence | Mapping[str, Any] | str | Path


class AdvantageWarning(UserWarning):
    """The advantage pruner has nothing to move rungs by, and decides as successive halving."""


class EvidenceKeeper:
    """Knows a study's evidence without asking the database at every decision.

    Args:
        given: Evidence saved earlier; it is used as it is.
        reference: Name of a uniform study in the same storage.
        full: Step that a full trial reports last; None reads it from the study's definition, else
            takes the largest step of a complete trial.
        margin: See `hpo_mab.advantage.measure_evidence`.
        confidence: Coverage of the intervals.
        every: Trials that must finish between two looks.
    """

    def __init__(
        self,
        *,
        given: Evidence | None = None,
        reference: str | None = None,
        full: int | None = None,
        margin: float = DEFAULT_MARGIN,
        confidence: float = 0.95,
        every: int = 10,
    ) -> None:
        self.evidence = given
        self.full = full
        self._given = given is not None
        self._reference = reference
        self._margin = margin
        self._confidence = confidence
        self._every = every
        self._seen: int | None = None
        self._names = ("", "")
        self._warned = False

    def first_look(self, study: optuna.Study) -> None:
        """Read what the study holds; later calls do nothing."""
        if self._seen is None:
            self.look(study, study.get_trials(deepcopy=False))

    def look_again(
        self, study: optuna.Study, trials: Sequence[FrozenTrial], *, now: bool = False
    ) -> bool:
        """Refresh the evidence if enough trials have finished since the last look.

        Args:
            study: The study.
            trials: Its trials as they are now.
            now: Whether to do it in any case.

        Returns:
            Whether the evidence or the length of a trial became known or changed.
        """
        if not now and self._seen is not None and _finished(trials) < self._seen + self._every:
            return False
        before = (self.evidence, self.full)
        self.look(study, trials)
        return before != (self.evidence, self.full)

    def look(self, study: optuna.Study, trials: Sequence[FrozenTrial]) -> None:
        """Read what the study holds, and measure and store what its trials newly tell.

        Args:
            study: The study.
            trials: Its trials as they are now.
        """
        attrs = study.user_attrs
        first, self._seen = self._seen is None, _finished(trials)
        if first:
            self._read_definition(attrs.get(DEFINITION_KEY, {}).get("spec", {}))
        if self.full is None:
            self.full = _longest(trials)
        if self._given:
            self._store(study, attrs)
            return
        if EVIDENCE_KEY in attrs:
            self.evidence = Evidence.from_json(attrs[EVIDENCE_KEY])
        self._measure(study, trials)
        self._store(study, attrs)

    def warn_once(self) -> None:
        """Warn, the first time, if rungs lie where successive halving has them."""
        evidence = self.evidence
        if self._warned or (evidence is not None and evidence.moves):
            return
        self._warned = True
        why = (
            "there is no evidence of an early-accuracy advantage yet"
            if evidence is None
            else f"the evidence ({evidence.pairs} pairs) moves no rung"
        )
        warnings.warn(
            f"AdvantagePruner prunes as successive halving: {why}.",
            AdvantageWarning,
            stacklevel=3,
        )

    def _read_definition(self, spec: Mapping[str, Any]) -> None:
        names = [str(spec.get(key, {}).get("name", "")) for key in ("data", "model")]
        self._names = (names[0], names[1])
        if self.full is None and spec:
            self.full = int(spec["budget"]["evaluations"])
        if self.evidence is not None:
            self.evidence = self._unless_of_another_task(self.evidence)

    def _measure(self, study: optuna.Study, trials: Sequence[FrozenTrial]) -> None:
        if self.full is None:
            return
        pairs = pairs_of_trials(
            trials, self._reference_trials(study), full=self.full, direction=study.direction
        )
        known = 0 if self.evidence is None else self.evidence.pairs
        complete = int(pairs.counts[-1:].sum())
        if complete < FEWEST_PAIRS or complete <= known:
            return
        self.evidence = measure_evidence(
            pairs,
            margin=self._margin,
            confidence=self._confidence,
            source=f"study {self._reference}" if self._reference else "pilot",
            data=self._names[0],
            model=self._names[1],
        )

    def _reference_trials(self, study: optuna.Study) -> list[FrozenTrial]:
        if self._reference is None:
            return []
        try:
            other = optuna.load_study(study_name=self._reference, storage=study._storage)
        except KeyError:
            raise ArgumentError(
                f"reference must name a study in the same storage, got '{self._reference}'."
            ) from None
        return other.get_trials(deepcopy=False)

    def _store(self, study: optuna.Study, attrs: Mapping[str, Any]) -> None:
        if self.evidence is not None and attrs.get(EVIDENCE_KEY) != self.evidence.to_json():
            study.set_user_attr(EVIDENCE_KEY, self.evidence.to_json())

    def _unless_of_another_task(self, evidence: Evidence) -> Evidence | None:
        theirs = (evidence.data, evidence.model)
        for what, one, other in zip(("data", "network"), theirs, self._names, strict=True):
            if one and other and one != other:
                warnings.warn(
                    f"The evidence given is of {what} '{one}', this study is of '{other}': "
                    "it is not used, and trials are pruned as by successive halving.",
                    AdvantageWarning,
                    stacklevel=2,
                )
                return None
        return evidence


def read_evidence(given: EvidenceLike) -> Evidence:
    """Evidence in whichever form it is given.

    Raises:
        ArgumentError: It is none, or its file cannot be read.
    """
    if isinstance(given, Evidence):
        return given
    if isinstance(given, Mapping):
        return Evidence.from_json(given)
    return Evidence.load(given)


def _finished(trials: Sequence[FrozenTrial]) -> int:
    return sum(trial.state.is_finished() for trial in trials)


def _longest(trials: Sequence[FrozenTrial]) -> int | None:
    lengths = [
        trial.last_step
        for trial in trials
        if trial.state == optuna.trial.TrialState.COMPLETE and trial.last_step is not None
    ]
    return max(lengths, default=None)
