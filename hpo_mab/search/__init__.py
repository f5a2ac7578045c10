"""Hyperparameter search: definitions, the objective, and running studies.

Names are imported when first used: a definition is read and refused without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpo_mab._registry import lazy_names

if TYPE_CHECKING:
    from hpo_mab.search._claim import StudyFailedError
    from hpo_mab.search._confirm import Candidate, Confirmation, confirm
    from hpo_mab.search._copy import Copied, copy_study
    from hpo_mab.search._definition import StudySpec
    from hpo_mab.search._load import builtin_names, load_spec, make_spec
    from hpo_mab.search._objective import TrainingObjective
    from hpo_mab.search._prepare import load_splits, make_objective
    from hpo_mab.search._pruners import create_pruner
    from hpo_mab.search._recorded import recorded_trial
    from hpo_mab.search._replay import Replay, load_network, replay
    from hpo_mab.search._reporter import ShortTrialWarning, TrialReporter
    from hpo_mab.search._runner import RunOutcome, StudyRunner, join_study

__all__ = [
    "Candidate",
    "Confirmation",
    "Copied",
    "Replay",
    "RunOutcome",
    "ShortTrialWarning",
    "StudyFailedError",
    "StudyRunner",
    "StudySpec",
    "TrainingObjective",
    "TrialReporter",
    "builtin_names",
    "confirm",
    "copy_study",
    "create_pruner",
    "join_study",
    "load_network",
    "load_spec",
    "load_splits",
    "make_objective",
    "make_spec",
    "recorded_trial",
    "replay",
]

__getattr__, __dir__ = lazy_names(__name__)
