"""Hyperparameter search: definitions, the objective, and running studies."""

from hpo_mab.search._components import create_pruner
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
