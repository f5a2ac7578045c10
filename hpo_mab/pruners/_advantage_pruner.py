"""Asynchronous successive halving with rungs placed by measured advantage and fidelity."""

from __future__ import annotations

import dataclasses
import functools
import math
import weakref
from collections.abc import Mapping, MutableMapping
from typing import Any

import optuna
from optuna.pruners import BasePruner
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from hpo_mab._attributes import PRUNED_KEY, RUNG_KEY
from hpo_mab._errors import ArgumentError, check_integer, plain_arguments, require
from hpo_mab._plan import Attempt
from hpo_mab.advantage import Evidence
from hpo_mab.advantage._evidence import DEFAULT_MARGIN, EvidenceLike, read_evidence
from hpo_mab.pruners._evidence import EvidenceKeeper, RungFidelity
from hpo_mab.storage._optuna import id_of, needed_at_rung, storage_of


def next_rung(trial: FrozenTrial) -> int:
    """Number of the first rung that a trial has not reached."""
    rung = 0
    while f"{RUNG_KEY}{rung}" in trial.system_attrs:
        rung += 1
    return rung


def _value_at(trial: FrozenTrial, *, rung: int, step: int, worst: float) -> float | None:
    """Value at ``step`` of a trial that has reached the rung; None if it is not compared.

    Values of different budgets must not be mixed. If the rung lay at another step for that trial,
    its report at ``step`` counts. A trial that was stopped before ``step`` counts as ``worst``.
    """
    taken = trial.system_attrs.get(f"{RUNG_KEY}{rung}")
    # A retry counts in place of an attempt that was cut off.
    if taken is None or Attempt.of(trial).cut_off:
        return None
    if taken[0] == step:
        return float(taken[1])
    value = trial.intermediate_values.get(step)
    if value is not None and not math.isnan(value):
        return float(value)
    last = trial.last_step
    stopped = trial.state.is_finished() and last is not None and last < step
    return worst if stopped else None


@dataclasses.dataclass(frozen=True, slots=True)
class Placement:
    """The step at which a rung is decided for a trial, and why.

    Attributes:
        step: Step at which it is decided.
        uniform_step: Step at which it lies under uniform training.
        equivalent: Uniform-equivalent budget of ``step``, in steps.
        evidence: Digest of the evidence that moved it; None if none did.
        fidelity: Why it lies later than the settings place it: ``step`` of the first rung by the
            settings, the interval of ``tau`` there and the number of ``trials`` ranked; None if it
            does not.
    """

    step: int
    uniform_step: int
    equivalent: float
    evidence: str | None
    fidelity: Mapping[str, Any] | None = None


def place_later(uniform: int, *, first: int, fidelity: RungFidelity | None) -> Placement | None:
    """The placement of a rung after fidelity has moved the first one; None if it has not.

    Args:
        uniform: Step of the rung by the settings.
        first: Step of the first rung by the settings.
        fidelity: The fidelity measured in the study; None if not measured.
    """
    later = first if fidelity is None else fidelity.first_rung(first)
    if fidelity is None or later == first:
        return None
    # Rung i lies at first * factor^i by the settings; all rungs move by the same ratio.
    step = later * (uniform // first)
    tau = fidelity.at(first)
    interval = [round(end, 3) for end in (tau.low, tau.high)]
    why = {"step": first, "tau": interval, "trials": fidelity.trials}
    return Placement(step=step, uniform_step=uniform, equivalent=step, evidence=None, fidelity=why)


def place(uniform: int, *, full: int | None, evidence: Evidence | None) -> Placement:
    """The placement of a rung for a trial of the bandit, by evidence of the advantage.

    Args:
        uniform: Step of the rung under uniform training.
        full: Step that a full trial reports last; None if it is not known.
        evidence: The evidence of the advantage; None without any.
    """
    unmoved = Placement(step=uniform, uniform_step=uniform, equivalent=uniform, evidence=None)
    if evidence is None or full is None or uniform > full:
        return unmoved
    known = evidence.rung(uniform / full)
    if known is None or not known.moved:
        return unmoved
    # Stored shares are rounded: without the slack, a share rounded up would give the next step.
    step = math.ceil(known.decided_at * full - 1e-3)
    if step >= uniform:
        return unmoved
    return Placement(
        step=step,
        uniform_step=uniform,
        equivalent=round(known.equivalent * full, 3),
        evidence=evidence.digest,
    )


class AdvantagePruner(BasePruner):
    """Prunes as asynchronous successive halving, at rungs placed by the early-accuracy advantage.

    A trial is compared at rungs, as by Optuna's ``SuccessiveHalvingPruner`` (Li et al. 2020,
    "A System for Massively Parallel Hyperparameter Tuning"). A rung at step ``r`` under uniform
    training is decided at the earliest step ``t`` that meets two measured conditions. First, the
    uniform-equivalent budget ``e(t)`` is at least ``r``. Second, bandit training at ``t`` ranks
    configurations no worse than uniform training at ``r`` (fidelity, see
    `hpo_mab.advantage.measure_evidence`). Trials are always compared at one step: when evidence
    moves a rung, earlier trials count with their report there.

    The evidence was saved earlier, or is measured on a uniform study or on the study itself. In the
    study itself, trials with the user attribute ``hpo_mab:sampler = "uniform"`` repeat the slot and
    parameters of others; the pilot of ``hpo-mab run`` makes them. The evidence is the study's user
    attribute ``hpo_mab:evidence``, shared by all workers; one pruner may serve several studies.
    Without evidence that moves a rung, and for uniform trials, every decision is that of
    ``SuccessiveHalvingPruner`` with the same settings, unless fidelity moves the first rung.
    Without such evidence an `HpoMabWarning` is issued once a study.

    The first rung lies later unless the ranking of the first trials there is shown to agree with
    their final one, see `RungFidelity`. Where it lies later, evidence moves no rung. Only trials
    that cannot be pruned are ranked: the first ``search.initial`` of ``hpo-mab run`` (user
    attribute ``hpo_mab:paired``). The result is the study's user attribute ``hpo_mab:fidelity``.

    The reason of a pruning is the trial's user attribute ``hpo_mab:pruned_because``: ``rung``,
    ``step``, ``value`` (None if it was NaN), ``threshold``, ``competitors``, ``uniform_step``
    (where the rung lies without evidence), ``equivalent_step`` (``e`` at the step) and ``evidence``
    (its digest; None if it did not move the rung). Where fidelity moved the rung, there is also
    ``fidelity``: ``step``, the interval of ``tau`` there and how many ``trials`` were ranked.

    Args:
        evidence: Evidence of this data set and network: an `hpo_mab.advantage.Evidence`, its JSON
            mapping, or the path of its JSON file. It is not measured again.
        reference: Name of a uniform study in the same storage. Its trials are paired with this
            study's of the same slot (or number) and parameters; if some are marked
            ``hpo_mab:paired``, only with these.
        min_resource: Step of the first rung under uniform training, at least 1. Study definitions
            take a quarter of a trial if all trials report averaged weights, else
            three eighths. The quarter saved budget on three data sets (``studies/rungs``).
        reduction_factor: One in this many trials is promoted, and the next rung lies this many
            times later; at least 2.
        max_resource: Step that a full trial reports last; None takes it from the study's
            definition, else from its longest complete trial. Give it where trials of a loop without
            `TrialReporter` may end early. Before a trial has spent its budget no rung moves.
        margin: Largest accepted loss of fidelity (Kendall tau), in [0, 1].
        fidelity: Whether the first rung may move later by the ranking of the first trials.

    Raises:
        ArgumentError: An argument outside its bound, or both ``evidence`` and ``reference``.

    Examples:
        >>> import optuna
        >>> from hpo_mab.pruners import AdvantagePruner
        >>> pruner = AdvantagePruner(max_resource=8)
        >>> study = optuna.create_study(direction="maximize", pruner=pruner)
    """

    @plain_arguments
    def __init__(
        self,
        *,
        evidence: EvidenceLike | None = None,
        reference: str | None = None,
        min_resource: int = 1,
        reduction_factor: int = 2,
        max_resource: int | None = None,
        margin: float = DEFAULT_MARGIN,
        fidelity: bool = True,
    ) -> None:
        check_integer("min_resource", min_resource, 1)
        check_integer("reduction_factor", reduction_factor, 2)
        if max_resource is not None:
            check_integer("max_resource", max_resource, 1)
        require(0.0 <= margin <= 1.0, "margin", "in [0, 1]", margin)
        if evidence is not None and reference is not None:
            raise ArgumentError("give evidence or reference, not both.")
        self._min_resource = min_resource
        self._reduction_factor = reduction_factor
        self._fidelity = fidelity
        self._new_keeper = functools.partial(
            EvidenceKeeper,
            given=None if evidence is None else read_evidence(evidence),
            reference=reference,
            full=max_resource,
            margin=margin,
        )
        self._keepers: MutableMapping[optuna.Study, EvidenceKeeper] = weakref.WeakKeyDictionary()

    def __getstate__(self) -> dict[str, Any]:
        """The state without evidence: another process reads it from its studies."""
        return {**self.__dict__, "_keepers": None}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `__getstate__` returned."""
        self.__dict__.update(state, _keepers=weakref.WeakKeyDictionary())

    def keeper(self, study: optuna.Study) -> EvidenceKeeper:
        """The evidence of one study; each study of a pruner has a separate one."""
        if study not in self._keepers:
            self._keepers[study] = self._new_keeper()
        return self._keepers[study]

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """See `optuna.pruners.BasePruner`."""
        step = trial.last_step
        if step is None:
            return False
        keeper = self.keeper(study)
        keeper.read_once(study)
        rung, trials = next_rung(trial), None
        # One report may reach several rungs, where evaluations are rarer than rungs.
        while step >= (placed := self._placement(rung, trial, keeper)).step:
            if trials is None:
                trials = study.get_trials(deepcopy=False)
                # New evidence may move this rung, so it is placed again.
                if keeper.refresh_if_due(study, trials):
                    continue
            keeper.warn_once()
            because = self._judge(study, trials, trial, rung=rung, placed=placed)
            if because is not None:
                storage_of(study).set_trial_user_attr(id_of(trial), PRUNED_KEY, because)
                return True
            rung += 1
        return False

    def uniform_step(self, rung: int) -> int:
        """Step at which a rung, counted from 0, lies under uniform training."""
        return self._min_resource * int(self._reduction_factor**rung)

    def _placement(self, rung: int, trial: FrozenTrial, keeper: EvidenceKeeper) -> Placement:
        step, first = self.uniform_step(rung), self.uniform_step(0)
        fidelity = keeper.fidelity if self._fidelity else None
        evidence = None if Attempt.of(trial).uniform else keeper.evidence
        later = place_later(step, first=first, fidelity=fidelity)
        return later or place(step, full=keeper.full, evidence=evidence)

    def _judge(
        self,
        study: optuna.Study,
        trials: list[FrozenTrial],
        trial: FrozenTrial,
        *,
        rung: int,
        placed: Placement,
    ) -> dict[str, Any] | None:
        """Store a trial's value at a rung; return why it is pruned there, None if it is not."""
        value = float(trial.intermediate_values[trial.last_step or 0])
        because: dict[str, Any] = {
            "rung": rung,
            "step": placed.step,
            "value": None,
            "threshold": None,
            "competitors": None,
            "uniform_step": placed.uniform_step,
            "equivalent_step": placed.equivalent,
            "evidence": placed.evidence,
        }
        if placed.fidelity is not None:
            because["fidelity"] = dict(placed.fidelity)
        # A trial without a value loses, and later trials are not compared with it.
        if math.isnan(value):
            return because
        # Stored also if the trial is pruned: later trials are compared with all that came here.
        at = [placed.step, value]
        storage_of(study).set_trial_system_attr(id_of(trial), f"{RUNG_KEY}{rung}", at)
        maximize = study.direction == StudyDirection.MAXIMIZE
        worst = -math.inf if maximize else math.inf
        others = (one for one in trials if one.number != trial.number)
        found = (_value_at(one, rung=rung, step=placed.step, worst=worst) for one in others)
        values = [value, *(one for one in found if one is not None)]
        because |= {"value": value, "competitors": len(values)}
        # As Optuna's SuccessiveHalvingPruner: the best 1 / reduction_factor of all continue,
        # rounded down, at least one.
        needed = needed_at_rung(
            values, reduction_factor=self._reduction_factor, direction=study.direction
        )
        promoted = value >= needed if maximize else value <= needed
        return None if promoted else because | {"threshold": float(needed)}
