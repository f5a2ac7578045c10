"""The evidence of one study, measured on pairs and rankings of its trials.

It is read once, stored with the study and rarely refreshed.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import numpy as np
import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hpo_mab._attributes import (
    BUDGET_KEY,
    CHOICE_KEY,
    EVIDENCE_KEY,
    FIDELITY_KEY,
    PAIRED_KEY,
    RACE_KEY,
    TWIN_KEY,
    UNIFORM,
    has_spent_budget,
)
from hpo_mab._errors import ArgumentError, HpoMabWarning
from hpo_mab._plan import Attempt
from hpo_mab._stored_settings import StudySettings
from hpo_mab.advantage import Estimate, Evidence, PairedCurves, fidelity, measure_evidence
from hpo_mab.advantage._evidence import DEFAULT_MARGIN, FEWEST_PAIRS, difference_of_task
from hpo_mab.advantage._pairs import same_configuration
from hpo_mab.storage._optuna import storage_of

#: Trials that must finish before evidence is measured again: a measurement takes a bootstrap.
_TRIALS_BETWEEN_UPDATES = 10


def pairs_of_trials(
    trials: Sequence[FrozenTrial],
    reference: Iterable[FrozenTrial] = (),
    *,
    full: int,
    direction: StudyDirection = StudyDirection.MAXIMIZE,
    sampler: str | None = None,
) -> PairedCurves:
    """Pair finished trials of a slot that agree in every parameter that both have.

    The sampler's parameters do not count.

    Args:
        trials: A study's trials: bandit-trained ones, and uniform twins of some of them.
        reference: Trials of a uniform study.
        full: Step that a full trial reports last.
        direction: Of the study. Where it minimizes, the sign of the values is changed. If any is
            then negative, all are raised so that the smallest is 0.
        sampler: Sampler whose trials are paired with the uniform ones; None: every other sampler.

    Returns:
        Curves over the steps up to ``full`` that every complete uniform trial of the pairs has
        reported; NaN from where a trial was stopped.
    """
    uniform = {_slot(t): t for t in reference if _has_curve(t)}
    # A study's own twins count before the trials of the reference.
    uniform.update({_slot(t): t for t in trials if _has_curve(t) and Attempt.of(t).uniform})
    own = [
        t
        for t in trials
        if _has_curve(t)
        and _is_trained_by(t, sampler)
        and _slot(t) in uniform
        and same_configuration(t.params, uniform[_slot(t)].params)
    ]
    # A pruner selects trials by their early values. So those that it cannot stop are taken, if
    # there are enough.
    safe = [t for t in own if t.user_attrs.get(PAIRED_KEY) or TWIN_KEY in t.user_attrs]
    # Reversed: of several trials of one slot the first counts.
    bandit = {_slot(t): t for t in reversed(safe if len(safe) >= FEWEST_PAIRS else own)}
    keys = sorted(bandit)
    steps = _common_steps([uniform[key] for key in keys], full)
    shape = (len(keys), len(steps))
    curves = [
        np.reshape([_values_at(side[key], steps) for key in keys], shape)
        for side in (bandit, uniform)
    ]
    if direction == StudyDirection.MINIMIZE:
        # Differences of pairs and ranks need only an order in which higher is better.
        curves = [-curve for curve in curves]
    # The fit of `acceleration` begins at 0.
    bottom = np.nanmin(np.append(curves, 0.0))
    curves = [curve - bottom for curve in curves]
    return PairedCurves(
        budgets=np.asarray(steps, dtype=np.float64), arm=curves[0], reference=curves[1]
    )


def _is_trained_by(trial: FrozenTrial, sampler: str | None) -> bool:
    attempt = Attempt.of(trial)
    return not attempt.uniform if sampler is None else attempt.sampler == sampler


def _has_curve(trial: FrozenTrial) -> bool:
    return Attempt.of(trial).finished and bool(trial.intermediate_values)


def _slot(trial: FrozenTrial) -> int:
    slot = Attempt.of(trial).slot
    return trial.number if slot is None else slot


def _common_steps(trials: Sequence[FrozenTrial], full: int) -> list[int]:
    """Steps in [1, full] that all trials which reached ``full`` have reported."""
    complete = [set(t.intermediate_values) for t in trials if full in t.intermediate_values]
    shared = set.intersection(*complete) if complete else set()
    return sorted(step for step in shared if 1 <= step <= full)


def _values_at(trial: FrozenTrial, steps: Sequence[int]) -> list[float]:
    """Finite values reported at these steps; NaN where none was."""
    reported = (trial.intermediate_values.get(step, math.nan) for step in steps)
    return [value if math.isfinite(value) else math.nan for value in reported]


#: With fewer trials no ranking is measured. The default of ``search.initial`` is 10.
FEWEST_RANKED = 8
#: A rung may decide where the interval of tau-b lies above this. This bound and the confidence
#: were chosen by replays in ``studies/rungs``.
_TRUSTED = 0.2
_CONFIDENCE = 0.8
#: Fewer than in a report: trials wait while the interval is computed.
_RESAMPLES = 500


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RungFidelity:
    """How well early values of a study's first trials rank them: Kendall's tau-b with final values.

    Only trials that no pruner could stop count: the first ``search.initial`` configurations, a
    random sample of the search space. All finished trials would be a biased sample: the pruner has
    stopped those that were low at a rung. Configurations that start slowly are then missing, which
    raises tau-b; the remaining ones resemble each other, which lowers it. Trials that diverged
    have no final value and do not count either.

    Tau-b is measured over random configurations, most of which are far from the best. It does not
    measure the ranking of good ones, so a high tau-b moves no rung earlier. In the replays of
    ``studies/rungs`` such moves lost accuracy on CIFAR-10. A tau-b that is not shown to be above
    0.2 moves rungs later. A study has 10 such trials by default, so the interval is wide. A rung
    that stays is not shown to be good.

    Attributes:
        full: Step that a full trial reports last.
        steps: Steps in [1, ``full / 2``] that all of the trials have reported.
        tau: Tau-b at each step, with an 80% interval over the trials.
        trials: Number of trials ranked.
    """

    full: int
    steps: tuple[int, ...]
    tau: tuple[Estimate, ...]
    trials: int

    @classmethod
    def measure(
        cls, trials: Sequence[FrozenTrial], *, full: int, known: Self | None = None
    ) -> Self | None:
        """The fidelity in a study; None while fewer than 8 of its first trials have finished.

        Args:
            trials: The study's trials.
            full: Step that a full trial reports last.
            known: The last measurement; it is returned while no further trial has finished.
        """
        unstoppable = (trial for trial in trials if Attempt.of(trial).unstoppable)
        # The interval depends on the order; that of numbers is another after an interruption.
        ranked = sorted((t for t in unstoppable if full in t.intermediate_values), key=_slot)
        if len(ranked) < FEWEST_RANKED or (known is not None and len(ranked) <= known.trials):
            return known
        steps = [step for step in _common_steps(ranked, full) if 2 * step <= full]
        values = np.asarray([_values_at(trial, [*steps, full]) for trial in ranked])
        return cls(
            full=full,
            steps=tuple(steps),
            tau=tuple(
                fidelity(early, values[:, -1], confidence=_CONFIDENCE, resamples=_RESAMPLES)
                for early in values.T[:-1]
            ),
            trials=len(ranked),
        )

    def first_rung(self, placed: int) -> int:
        """The step where the first rung is decided: ``placed``, or later.

        Args:
            placed: Step where the pruner's settings place it.

        Returns:
            ``placed`` unless tau-b was measured there and the interval reaches below 0.2; then the
            earliest later step where it does not, else the last one measured.
        """
        known = {s: tau for s, tau in zip(self.steps, self.tau, strict=True) if s >= placed}
        if placed not in known:
            return placed
        trusted = (step for step, tau in known.items() if tau.above(_TRUSTED))
        return next(trusted, max(known))

    def at(self, step: int) -> Estimate:
        """Tau-b at a step of `steps`."""
        return self.tau[self.steps.index(step)]

    def to_json(self) -> dict[str, Any]:
        """The measurement as JSON values."""
        tau = [estimate.to_json() for estimate in self.tau]
        return {"full": self.full, "steps": list(self.steps), "tau": tau, "trials": self.trials}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """The fidelity that `to_json` wrote."""
        return cls(
            full=fields["full"],
            steps=tuple(fields["steps"]),
            tau=tuple(map(Estimate.from_json, fields["tau"])),
            trials=fields["trials"],
        )


def _count_ended(trials: Sequence[FrozenTrial]) -> int:
    return sum(trial.state.is_finished() for trial in trials)


class EvidenceKeeper:
    """Keeps a study's evidence in memory, so that a decision does not query the database.

    Args:
        given: Evidence saved earlier; it is not measured again, unless it has no pairs.
        reference: Name of a uniform study in the same storage.
        full: Step that a full trial reports last; None reads it from the study's definition, else
            takes the largest step of a complete trial that has spent its budget.
        margin: See `hpo_mab.advantage.measure_evidence`.
    """

    def __init__(
        self,
        *,
        given: Evidence | None = None,
        reference: str | None = None,
        full: int | None = None,
        margin: float = DEFAULT_MARGIN,
    ) -> None:
        # A file that holds only the choice of a race has no pairs: the study measures its own.
        self.evidence = given if given is not None and given.pairs else None
        self.fidelity: RungFidelity | None = None
        self.full = full
        self._given = self.evidence is not None
        self._reference = reference
        #: See `hpo_mab.advantage.measure_evidence`.
        self.margin = margin
        self._seen: int | None = None
        self._names = ("", "")
        self._warned = False
        #: Whether ``auto`` uses uniform sampling, before or after its choice: no warning then.
        self._uniform = False

    def read_once(self, study: optuna.Study) -> None:
        """Read the study's evidence; later calls do nothing."""
        if self._seen is None:
            self.read_trials(study, study.get_trials(deepcopy=False))

    def refresh_if_due(self, study: optuna.Study, trials: Sequence[FrozenTrial]) -> bool:
        """Refresh the evidence if enough trials have finished since the last update.

        Returns:
            Whether evidence, fidelity or the length of a trial became known or changed.
        """
        if _count_ended(trials) < (self._seen or 0) + _TRIALS_BETWEEN_UPDATES:
            return False
        before = (self.evidence, self.fidelity, self.full)
        self.read_trials(study, trials)
        return before != (self.evidence, self.fidelity, self.full)

    def read_trials(self, study: optuna.Study, trials: Sequence[FrozenTrial]) -> None:
        """Read the study's evidence, measure again if trials were added, and store the result."""
        attrs = study.user_attrs
        first, self._seen = self._seen is None, _count_ended(trials)
        if first:
            self._read_definition(StudySettings.stored_in(attrs))
        if self.full is None:
            self.full = _longest_trial(trials)
        if self.full is not None:
            self.fidelity = RungFidelity.measure(trials, full=self.full, known=self.fidelity)
        if not self._given:
            self.evidence = self._stored(attrs)
            self._measure(study, trials)
        self._store(study, attrs)

    def _stored(self, attrs: Mapping[str, Any]) -> Evidence | None:
        """The study's evidence; None if its margin, or the reference if given, is another one."""
        if EVIDENCE_KEY not in attrs:
            return None
        stored = Evidence.from_json(attrs[EVIDENCE_KEY])
        source = self._reference is None or stored.source == f"study {self._reference}"
        return stored if source and stored.margin == self.margin else None

    def warn_once(self) -> None:
        """Warn once if no rung is moved."""
        evidence = self.evidence
        if self._warned or self._uniform or (evidence is not None and evidence.moves):
            return
        self._warned = True
        why = (
            "there is no evidence of an early-accuracy advantage yet"
            if evidence is None
            else f"the evidence ({evidence.pairs} pairs) moves no rung"
        )
        warnings.warn(
            f"AdvantagePruner decides no rung earlier than successive halving: {why}.",
            HpoMabWarning,
            stacklevel=3,
        )

    def _read_definition(self, settings: StudySettings) -> None:
        self._names = (settings.data.kind, settings.model.kind)
        # A uniform study cannot have evidence, so it gets no warning.
        self._warned = settings.sampler.kind == UNIFORM
        if self.full is None:
            self.full = settings.evaluations
        if self.evidence is not None:
            self.evidence = self._unless_of_another_task(self.evidence)

    def _measure(self, study: optuna.Study, trials: Sequence[FrozenTrial]) -> None:
        attrs = study.user_attrs
        races = RACE_KEY in attrs or CHOICE_KEY in attrs
        # Sampler whose trials are paired with the uniform ones; None pairs any other's.
        arm = attrs.get(CHOICE_KEY, {}).get("sampler")
        # Before a race is decided, and after uniform sampling has won it, no rung moves.
        self._uniform = races and arm in (None, UNIFORM)
        if self.full is None or self._uniform:
            return
        own = "race" if races else "pilot"
        found = self.measure(
            trials,
            self._reference_trials(study),
            direction=study.direction,
            sampler=arm,
            source=f"study {self._reference}" if self._reference else own,
            known=0 if self.evidence is None else self.evidence.pairs,
        )
        self.evidence = found or self.evidence

    def measure(
        self,
        trials: Sequence[FrozenTrial],
        reference: Iterable[FrozenTrial] = (),
        *,
        direction: StudyDirection,
        sampler: str | None,
        source: str,
        known: int = 0,
    ) -> Evidence | None:
        """Evidence from `pairs_of_trials` of a sampler; the study must have been read.

        ``source`` says where the pairs come from; the present evidence has ``known`` pairs.

        Returns:
            None with fewer than 4 pairs, with no more than ``known``, and while the length of a
            trial is not known.
        """
        if self.full is None:
            return None
        pairs = pairs_of_trials(
            trials, reference, full=self.full, direction=direction, sampler=sampler
        )
        if pairs.ended < max(FEWEST_PAIRS, known + 1):
            return None
        data, model = self._names
        return measure_evidence(pairs, margin=self.margin, source=source, data=data, model=model)

    def _reference_trials(self, study: optuna.Study) -> list[FrozenTrial]:
        if self._reference is None:
            return []
        try:
            other = optuna.load_study(study_name=self._reference, storage=storage_of(study))
        except KeyError:
            if self.evidence is not None:
                # It was deleted, and what was measured is stored.
                return []
            raise ArgumentError(
                f"reference must name a study in the same storage, got '{self._reference}'."
            ) from None
        return other.get_trials(deepcopy=False)

    def _store(self, study: optuna.Study, attrs: Mapping[str, Any]) -> None:
        if self.evidence is not None and attrs.get(EVIDENCE_KEY) != self.evidence.to_json():
            study.set_user_attr(EVIDENCE_KEY, self.evidence.to_json())
        stored = attrs.get(FIDELITY_KEY, {"trials": 0})
        if self.fidelity is not None and self.fidelity.trials > stored["trials"]:
            study.set_user_attr(FIDELITY_KEY, self.fidelity.to_json())

    def _unless_of_another_task(self, evidence: Evidence) -> Evidence | None:
        different = difference_of_task(evidence, *self._names)
        if not different:
            return evidence
        warnings.warn(
            f"The evidence given is of {different}: it is not used, and trials are pruned as by "
            "successive halving.",
            HpoMabWarning,
            stacklevel=2,
        )
        self._given = False
        return None


def _longest_trial(trials: Sequence[FrozenTrial]) -> int | None:
    """The largest last step of a complete trial that has spent its budget; None without one."""
    lengths = [
        trial.last_step
        for trial in trials
        if trial.state == TrialState.COMPLETE
        and trial.last_step is not None
        # A loop that a reporter follows may have ended early.
        and (BUDGET_KEY not in trial.user_attrs or has_spent_budget(trial.user_attrs))
    ]
    return max(lengths, default=None)
