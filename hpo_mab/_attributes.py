"""The attributes of Optuna's studies and trials that this package uses.

Every name but Optuna's own `RETRY_KEY` begins with ``hpo_mab:``, so that none equals a user's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
#: Number of its learning curve, see `CurveStore`.
CURVE_KEY = "hpo_mab:curve"
#: Name of the process that trains it, see `hpo_mab.storage._process.this_process`.
WORKER_KEY = "hpo_mab:worker"
#: ``[step, value]`` of a rung of `AdvantagePruner` that it has reached; the rung's number follows.
RUNG_KEY = "hpo_mab:rung_"
#: Optuna's own: number of the failed trial that it tries again.
RETRY_KEY = "failed_trial"

# User attributes of a study.
#: The definition that it was made from, see `StoredDefinition`.
DEFINITION_KEY = "hpo_mab:definition"
#: Seed of a study whose trials a `TrialReporter` follows; the user sets it.
SEED_KEY = "hpo_mab:seed"
#: The goal of its trials, see `hpo_mab.search._target.StudyTarget`.
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
