"""Asynchronous successive halving whose rungs lie where the measured advantage allows."""

from __future__ import annotations

import math
import warnings
from typing import Any

import optuna
from optuna.pruners import BasePruner
from optuna.trial import FrozenTrial

from hpo_mab._errors import ArgumentError
from hpo_mab.advantage import DEFAULT_MARGIN
from hpo_mab.pruners._keeper import AdvantageWarning, EvidenceKeeper, EvidenceLike
from hpo_mab.pruners._placement import Placement, place
from hpo_mab.pruners._rungs import Contest, contest, next_rung, rung_key
from hpo_mab.pruners._trial_pairs import is_uniform


class AdvantagePruner(BasePruner):
    """Prunes as asynchronous successive halving, at rungs placed by the early-accuracy advantage.

    A trial is judged at rungs, as by Optuna's ``SuccessiveHalvingPruner`` (Li et al. 2020,
    "A System for Massively Parallel Hyperparameter Tuning"). A rung that lies at step ``r`` under
    uniform training is decided at the earliest step ``t`` where a bandit-trained network is known
    to be as far (uniform-equivalent budget ``e(t) >= r``) and to rank configurations no worse
    (fidelity, see `hpo_mab.advantage.measure_evidence`). Trials are always compared at one step:
    when evidence moves a rung, earlier trials take part with what they had reported there.

    What is known comes from evidence that was saved earlier, from a uniform study, or from the
    study itself: trials with the user attribute ``sampler = "uniform"`` that repeat the slot and
    parameters of others, as the pilot of ``hpo-mab run`` makes them. It is kept as the study's
    user attribute ``hpo_mab:evidence``, shared by all workers. Without evidence, with evidence
    that moves nothing, and for uniform trials, every decision is that of
    ``SuccessiveHalvingPruner`` with the same settings; an `AdvantageWarning` says so once.

    Why a trial was pruned is its user attribute ``pruned_because``: ``rung``, ``step``, ``value``,
    ``threshold``, ``competitors``, ``uniform_step`` (where the rung lies without evidence),
    ``equivalent_step`` (``e`` at the step) and ``evidence`` (its digest, None if it had no part).

    .. code-block:: python

        study = optuna.create_study(direction="maximize", pruner=AdvantagePruner())

    Args:
        evidence: Evidence of this data set and network: an `hpo_mab.advantage.Evidence`, its JSON
            mapping, or the path of its JSON file. It is used as it is.
        reference: Name of a uniform study in the same storage, some of whose trials have the
            parameters of this study's trials with the same slot (or number).
        min_resource: Step of the first rung under uniform training, at least 1.
        reduction_factor: One in this many trials is promoted, and the next rung lies this many
            times later; at least 2.
        min_early_stopping_rate: Rungs left out at the start, at least 0.
        bootstrap_count: Trials that a rung must have seen before one is promoted, at least 0.
        max_resource: Step that a full trial reports last; None takes it from the study's
            definition, else from its longest complete trial.
        margin: Loss of fidelity (Kendall tau) that is put up with, in [0, 1].
        confidence: Coverage of the evidence's intervals, in (0, 1).
        refresh: Trials that must finish before evidence is looked at again, at least 1.

    Raises:
        ArgumentError: An argument outside its bound, or both ``evidence`` and ``reference``.
    """

    def __init__(
        self,
        *,
        evidence: EvidenceLike | None = None,
        reference: str | None = None,
        min_resource: int = 1,
        reduction_factor: int = 2,
        min_early_stopping_rate: int = 0,
        bootstrap_count: int = 0,
        max_resource: int | None = None,
        margin: float = DEFAULT_MARGIN,
        confidence: float = 0.95,
        refresh: int = 10,
    ) -> None:
        _at_least("min_resource", min_resource, 1)
        _at_least("reduction_factor", reduction_factor, 2)
        _at_least("min_early_stopping_rate", min_early_stopping_rate, 0)
        _at_least("bootstrap_count", bootstrap_count, 0)
        _at_least("refresh", refresh, 1)
        if max_resource is not None:
            _at_least("max_resource", max_resource, 1)
        if not 0.0 <= margin <= 1.0:
            raise ArgumentError(f"margin must be in [0, 1], got {margin}.")
        if not 0.0 < confidence < 1.0:
            raise ArgumentError(f"confidence must be in (0, 1), got {confidence}.")
        if evidence is not None and reference is not None:
            raise ArgumentError("give evidence or reference, not both.")
        self._first_step = min_resource * reduction_factor**min_early_stopping_rate
        self._reduction_factor = reduction_factor
        self._bootstrap_count = bootstrap_count
        self.keeper = EvidenceKeeper(
            given=evidence,
            reference=reference,
            full=max_resource,
            margin=margin,
            confidence=confidence,
            every=refresh,
        )
        self._warned = False

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """See `optuna.pruners.BasePruner`."""
        step = trial.last_step
        if step is None:
            return False
        self.keeper.first_look(study)
        value = trial.intermediate_values[step]
        rung = next_rung(trial)
        trials: list[FrozenTrial] | None = None
        while True:
            placed = self._place(rung, trial)
            if step < placed.step:
                return False
            if trials is None:
                trials = study.get_trials(deepcopy=False)
                if self.keeper.look_again(study, trials):
                    continue
            self._warn_once()
            if math.isnan(value):
                return True
            study._storage.set_trial_system_attr(
                trial._trial_id, rung_key(rung), [placed.step, float(value)]
            )
            standing = contest(
                trials,
                trial,
                value,
                rung=rung,
                step=placed.step,
                reduction_factor=self._reduction_factor,
                direction=study.direction,
            )
            if standing.competitors <= self._bootstrap_count or not standing.promoted:
                because = _because(rung, placed, float(value), standing)
                study._storage.set_trial_user_attr(trial._trial_id, "pruned_because", because)
                return True
            rung += 1

    def uniform_step(self, rung: int) -> int:
        """Step at which a rung, counted from 0, lies under uniform training."""
        return int(self._first_step * self._reduction_factor**rung)

    def _place(self, rung: int, trial: FrozenTrial) -> Placement:
        evidence = None if is_uniform(trial) else self.keeper.evidence
        return place(self.uniform_step(rung), full=self.keeper.full, evidence=evidence)

    def _warn_once(self) -> None:
        evidence = self.keeper.evidence
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


def _because(rung: int, placed: Placement, value: float, standing: Contest) -> dict[str, Any]:
    return {
        "rung": rung,
        "step": placed.step,
        "value": value,
        "threshold": float(standing.threshold),
        "competitors": standing.competitors,
        "uniform_step": placed.uniform,
        "equivalent_step": placed.equivalent,
        "evidence": placed.evidence,
    }


def _at_least(name: str, value: int, bound: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < bound:
        raise ArgumentError(f"{name} must be an integer of at least {bound}, got {value!r}.")
