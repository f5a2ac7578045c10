"""Hyperparameter search: definitions, the objective, and running studies.

Names are imported when first used: a definition is read and refused without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpo_mab._lazy import lazy_names

if TYPE_CHECKING:
    from hpo_mab.search._components import create_pruner
    from hpo_mab.search._copy import Copied, copy_study
    from hpo_mab.search._join import join_study, stored_objective, stored_spec
    from hpo_mab.search._load import builtin_names, load_spec, make_spec
    from hpo_mab.search._objective import TrainingObjective, trial_seed
    from hpo_mab.search._planned_sampler import PlannedSampler
    from hpo_mab.search._prepare import load_splits, make_objective
    from hpo_mab.search._replay import Replay, replay
    from hpo_mab.search._reporter import TrialReporter
    from hpo_mab.search._runner import Launch, RunOutcome, StudyRunner
    from hpo_mab.search._seeding import derive_seed
    from hpo_mab.search._space import Configuration, SearchSpace
    from hpo_mab.search._spec import ArmSection, PrunerSection, SamplerSection, StudySpec
    from hpo_mab.search._stopping import StudyFailedError, Target
    from hpo_mab.search._total import TotalBudget
    from hpo_mab.search._trial_loop import TrialCallback, TrialLoop
    from hpo_mab.search._workload import Workload

__all__ = [
    "ArmSection",
    "Configuration",
    "Copied",
    "Launch",
    "PlannedSampler",
    "PrunerSection",
    "Replay",
    "RunOutcome",
    "SamplerSection",
    "SearchSpace",
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
    "copy_study",
    "create_pruner",
    "derive_seed",
    "join_study",
    "load_spec",
    "load_splits",
    "make_objective",
    "make_spec",
    "replay",
    "stored_objective",
    "stored_spec",
    "trial_seed",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "ArmSection": "._spec",
        "Configuration": "._space",
        "Copied": "._copy",
        "Launch": "._runner",
        "PlannedSampler": "._planned_sampler",
        "PrunerSection": "._spec",
        "Replay": "._replay",
        "RunOutcome": "._runner",
        "SamplerSection": "._spec",
        "SearchSpace": "._space",
        "StudyFailedError": "._stopping",
        "StudyRunner": "._runner",
        "StudySpec": "._spec",
        "Target": "._stopping",
        "TotalBudget": "._total",
        "TrainingObjective": "._objective",
        "TrialCallback": "._trial_loop",
        "TrialLoop": "._trial_loop",
        "TrialReporter": "._reporter",
        "Workload": "._workload",
        "builtin_names": "._load",
        "copy_study": "._copy",
        "create_pruner": "._components",
        "derive_seed": "._seeding",
        "join_study": "._join",
        "load_spec": "._load",
        "load_splits": "._prepare",
        "make_objective": "._prepare",
        "make_spec": "._load",
        "replay": "._replay",
        "stored_objective": "._join",
        "stored_spec": "._join",
        "trial_seed": "._objective",
    },
)
