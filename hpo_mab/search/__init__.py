"""Hyperparameter search: definitions, the objective, and running studies.

Names are imported when first used: a definition is read and refused without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpo_mab._registry import lazy_names

if TYPE_CHECKING:
    from hpo_mab._attributes import TotalBudget
    from hpo_mab._plan import StudyFailedError, derive_seed, trial_seed
    from hpo_mab.search._confirm import Candidate, Confirmation, confirm
    from hpo_mab.search._copy import Copied, copy_study
    from hpo_mab.search._definition import (
        ArmSection,
        PrunerSection,
        SamplerSection,
        StudySpec,
    )
    from hpo_mab.search._load import builtin_names, load_spec, make_spec
    from hpo_mab.search._objective import TrainingObjective
    from hpo_mab.search._prepare import load_splits, make_objective
    from hpo_mab.search._pruners import create_pruner
    from hpo_mab.search._recorded import recorded_trial
    from hpo_mab.search._replay import Replay, load_network, replay
    from hpo_mab.search._reporter import ShortTrialWarning, TrialReporter
    from hpo_mab.search._runner import Launch, RunHere, RunOutcome, StudyRunner, join_study
    from hpo_mab.search._searchers import PlannedSampler
    from hpo_mab.search._space import Configuration, SearchSpace
    from hpo_mab.search._stored import stored_spec
    from hpo_mab.search._target import Target
    from hpo_mab.search._trial_loop import TrialCallback, TrialLoop
    from hpo_mab.search._workload import Workload

__all__ = [
    "ArmSection",
    "Candidate",
    "Configuration",
    "Confirmation",
    "Copied",
    "Launch",
    "PlannedSampler",
    "PrunerSection",
    "Replay",
    "RunHere",
    "RunOutcome",
    "SamplerSection",
    "SearchSpace",
    "ShortTrialWarning",
    "StudyFailedError",
    "StudyRunner",
    "StudySpec",
    "Target",
    "TotalBudget",
    "TrainingObjective",
    "TrialCallback",
    "TrialLoop",
    "TrialReporter",
    "Workload",
    "builtin_names",
    "confirm",
    "copy_study",
    "create_pruner",
    "derive_seed",
    "join_study",
    "load_network",
    "load_spec",
    "load_splits",
    "make_objective",
    "make_spec",
    "recorded_trial",
    "replay",
    "stored_spec",
    "trial_seed",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Candidate Confirmation confirm": "._confirm",
        "Copied copy_study": "._copy",
        "ArmSection PrunerSection SamplerSection StudySpec": "._definition",
        "builtin_names load_spec make_spec": "._load",
        "TrainingObjective": "._objective",
        "load_splits make_objective": "._prepare",
        "create_pruner": "._pruners",
        "Replay load_network replay": "._replay",
        "recorded_trial": "._recorded",
        "ShortTrialWarning TrialReporter": "._reporter",
        "Launch RunHere RunOutcome StudyRunner join_study": "._runner",
        "PlannedSampler": "._searchers",
        "Configuration SearchSpace": "._space",
        "stored_spec": "._stored",
        "Target": "._target",
        "TrialCallback TrialLoop": "._trial_loop",
        "Workload": "._workload",
        "TotalBudget": "hpo_mab._attributes",
        "StudyFailedError derive_seed trial_seed": "hpo_mab._plan",
    },
)
