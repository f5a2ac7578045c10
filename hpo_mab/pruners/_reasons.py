"""Why a trial was pruned: stored with it as numbers, and shown as a sentence.

Optuna's pruners give no reason. It is computed after such a pruner has returned True, from the
study's trials and by the pruner's documented rule. The decision itself costs no more. The reason is
the trial's user attribute ``hpo_mab:pruned_because``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import optuna
from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    PercentilePruner,
    SuccessiveHalvingPruner,
)
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hpo_mab._attributes import PRUNED_KEY, REASON_KEY
from hpo_mab.advantage import Estimate
from hpo_mab.pruners._evidence import RungFidelity
from hpo_mab.pruners._promotion import PromotionPruner, TopKPruner
from hpo_mab.storage._optuna import (
    completed_rungs,
    hyperband_bracket,
    needed_at_rung,
    settings_of,
    values_at_rung,
)

Reason = dict[str, Any]


def reason_of(pruner: BasePruner, study: optuna.Study, trial: FrozenTrial) -> Reason:
    """Why a pruner has stopped a trial.

    ``pruner`` (its class), ``step``, ``value``, ``threshold`` (the value it needed; None if there
    was none) and ``competitors``; further keys depend on the pruner. Trials that other workers have
    ended since the decision count in the threshold.

    Args:
        pruner: Any pruner. Of a class that is not in `_RULES`, only ``pruner``, ``step`` and
            ``value`` are known.
        study: The trial's study.
        trial: A trial for which ``prune`` was true; none of its values is NaN.
    """
    step = trial.last_step or 0
    because: Reason = {
        "pruner": type(pruner).__name__,
        "step": step,
        "value": float(trial.intermediate_values[step]),
        "threshold": None,
        "competitors": None,
    }
    # A subclass may have another rule, so the class must match exactly.
    rule = _RULES.get(type(pruner))
    return because if rule is None else because | rule(pruner, study, trial)


# The rules of each pruner: what decided, in numbers.


def _percentile(pruner: BasePruner, study: optuna.Study, trial: FrozenTrial) -> Reason:
    """The best value so far against complete trials' values at the same step."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    step = trial.last_step
    others = [t.intermediate_values[step] for t in complete if step in t.intermediate_values]
    maximize = study.direction == StudyDirection.MAXIMIZE
    percentile = settings_of(pruner)["percentile"]
    # NumPy counts from the lowest value. Where higher is better, the best begin at 100 less the
    # pruner's percentile.
    share = 100 - percentile if maximize else percentile
    best = max if maximize else min
    return {
        "value": float(best(trial.intermediate_values.values())),
        "threshold": float(np.nanpercentile(others, share)) if others else None,
        "competitors": len(others),
        "percentile": float(percentile),
    }


def _halving(pruner: BasePruner, study: optuna.Study, trial: FrozenTrial) -> Reason:
    """The value at a rung against those of all trials that have reached it."""
    rung = completed_rungs(trial) - 1
    values = values_at_rung(study.get_trials(deepcopy=False), rung)
    settings = settings_of(pruner)
    factor = settings["reduction_factor"]
    judged = len(values) > settings["bootstrap_count"]
    return {
        "rung": rung,
        "step": _halving_step(settings, rung),
        "threshold": (
            needed_at_rung(values, reduction_factor=factor, direction=study.direction)
            if judged
            else None
        ),
        "competitors": len(values),
    }


def _halving_step(settings: Mapping[str, Any], rung: int = 0) -> int:
    """The step at which successive halving decides a rung."""
    power = settings["min_early_stopping_rate"] + rung
    return int(settings["min_resource"] * settings["reduction_factor"] ** power)


def _hyperband(pruner: HyperbandPruner, study: optuna.Study, trial: FrozenTrial) -> Reason:
    """Successive halving among the trials of one bracket."""
    bracket, halving, among = hyperband_bracket(pruner, study, trial)
    return {**_halving(halving, among, trial), "bracket": bracket}


def _top_k(pruner: TopKPruner, study: optuna.Study, trial: FrozenTrial) -> Reason:
    return {"top_k": pruner.k}


def _promotion(pruner: PromotionPruner, study: optuna.Study, trial: FrozenTrial) -> Reason:
    return {**pruner.judge(study, trial), "paused": True}


_RULES: Mapping[type[BasePruner], Callable[[Any, optuna.Study, FrozenTrial], Reason]] = {
    PromotionPruner: _promotion,
    TopKPruner: _top_k,
    HyperbandPruner: _hyperband,
    MedianPruner: _percentile,
    PercentilePruner: _percentile,
    SuccessiveHalvingPruner: _halving,
}


# The numbers as a sentence.


def why_pruned(attrs: Mapping[str, Any], *, form: str = ".2%") -> str:
    """Why a pruned trial was pruned, as plain text that ends with a full stop.

    Args:
        attrs: Its user attributes.
        form: Format of a value.
    """
    because = attrs.get(PRUNED_KEY)
    if isinstance(because, Mapping) and "step" in because:
        return _sentence(because, form)
    reason = attrs.get(REASON_KEY)
    if reason:
        return f"{str(reason).rstrip('.')}."
    return "the pruner stopped it; no reason is stored."


def _sentence(because: Mapping[str, Any], form: str) -> str:
    value, threshold = because.get("value"), because.get("threshold")
    where = _rung_text(because)
    if value is None:
        return f"its value at {where} was not a number."
    own = f"{value:{form}}"
    needed = None if threshold is None else f"{threshold:{form}}"
    others = because.get("competitors")
    if "rung" in because:
        entered = "" if others is None else f", as one of {others} trials judged there so far"
        missed = f"{needed} was needed to continue" if needed else "too few for one to continue"
        later = " It may continue later." if because.get("paused") else ""
        return f"{own} at {where}{entered}; {missed}.{later}{_move_text(because)}"
    if "percentile" in because:
        return (
            f"{own} was its best value up to {where}; {needed} was needed, which the best "
            f"{because['percentile']:g}% of {others} complete trials had there."
        )
    if "top_k" in because:
        return (
            f"trials stop at {where}, where this one had {own}; the best {because['top_k']} "
            "are trained in full."
        )
    if needed is not None:
        return f"{own} at {where}; {needed} was needed."
    return f"{because['pruner']} stopped it at {where}, where it had {own}."


def _rung_text(because: Mapping[str, Any]) -> str:
    bracket = "" if because.get("bracket") is None else f" of bracket {because['bracket']}"
    rung = "" if because.get("rung") is None else f"rung {because['rung']}{bracket} at "
    return f"{rung}evaluation {because['step']}"


def _move_text(because: Mapping[str, Any]) -> str:
    """Why a rung of `hpo_mab.AdvantagePruner` was moved, as a sentence; empty if it was not."""
    later = because.get("fidelity")
    if later:
        low, high = later["tau"]
        return (
            f" The first rung was moved later from evaluation {later['step']}: Kendall's tau "
            f"between values there and final values of the first {later['trials']} complete trials "
            f"is {low:.2f} to {high:.2f} (80% interval)."
        )
    if not because.get("evidence"):
        return ""
    return (
        f" Evidence {because['evidence']} moved this rung: without it, it would lie at "
        f"evaluation {because.get('uniform_step')}. Evaluation {because['step']} is worth "
        f"evaluation {float(because.get('equivalent_step') or 0.0):.1f} of uniform training."
    )


class WeakRung(NamedTuple):
    """The first evaluation that stops trials, where it is not shown to rank them.

    Attributes:
        step: The evaluation, from 1.
        full: Evaluations of a full trial.
        tau: Kendall's tau-b of its values with the final ones, with an 80% interval.
        trials: Number of trials ranked.
    """

    step: int
    full: int
    tau: Estimate
    trials: int

    @classmethod
    def find(
        cls, pruner: BasePruner, trials: Sequence[FrozenTrial], *, full: int
    ) -> WeakRung | None:
        """The first evaluation that stops trials, if its tau-b may be below 0.2; else None.

        Median, percentile and successive halving are checked. Hyperband has late brackets, a paused
        trial can continue, and `AdvantagePruner` moves such a rung by itself.

        A full trial has ``full`` evaluations.
        """
        settings = settings_of(pruner)
        if type(pruner) in (MedianPruner, PercentilePruner):
            step = max(1, settings["n_warmup_steps"])
        elif type(pruner) is SuccessiveHalvingPruner and settings["min_resource"] is not None:
            step = _halving_step(settings)
        else:
            return None
        found = RungFidelity.measure(trials, full=full)
        if found is None or found.first_rung(step) == step:
            return None
        tau = found.at(step)
        # There is no tau-b of equal values.
        known = all(map(math.isfinite, (tau.value, tau.low, tau.high)))
        return cls(step, full, tau, found.trials) if known else None
