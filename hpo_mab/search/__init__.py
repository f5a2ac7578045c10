"""Hyperparameter search: definitions, the objective, and running studies.

Names are imported when first used: a definition is read and refused without torch.

The modules, first those that ``hpo-mab run`` uses, in its order:

Definition
    ``_load`` reads TOML and overrides into the sections of ``_definition``. ``_ranges`` turns
    values into Optuna distributions. ``_space`` has the search space and its `Configuration`.
    ``_prepare`` checks all names, loads the data and makes the objective.
Study
    ``_study`` makes or continues the study in the database. ``_target`` is how many trials it
    shall have and what they have spent, ``_evidence_file`` what it takes from a file of evidence.
    ``_pruners`` and ``_searchers`` make Optuna's pruner and sampler.
Next trial
    `hpo_mab._plan` says what is next, `hpo_mab._results` which trials count. ``_claim`` begins the
    next trial with the study's lock held. ``_retries`` queues lost trials again,
    ``_twins`` twins. ``_race``, ``_choice`` and ``_portfolio`` are ``sampler.kind = "auto"``.
Worker
    ``_runner`` runs a study; an ``_observer`` is called meanwhile. ``_trial_loop`` trains one trial
    at a time, ``_stack_loop`` with ``_stacks`` many. ``_slots`` chooses how many.
Trial
    ``_objective`` gives a trial its slot and configuration, ``_trial_samplers`` its batch sampler.
    ``_workload`` makes its training. ``_trial_record`` trains it, reports it and stores its curve.
    ``_checkpoint`` saves it.
Loops of users
    ``_reporter`` reports their evaluations. ``_imported_trials`` makes trials from another tuner's.
Stored studies
    ``_stored`` opens one, for ``_replay``, ``_confirm`` and ``_examples``. ``_copy``
    copies or moves one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpo_mab._registry import lazy_names

if TYPE_CHECKING:
    from hpo_mab.search._claim import StudyFailedError
    from hpo_mab.search._confirm import Confirmation, confirm
    from hpo_mab.search._copy import copy_study
    from hpo_mab.search._definition import StudySpec
    from hpo_mab.search._imported_trials import recorded_trial
    from hpo_mab.search._load import load_spec, make_spec
    from hpo_mab.search._objective import TrainingObjective
    from hpo_mab.search._observer import Observer
    from hpo_mab.search._replay import Replay, load_network, replay
    from hpo_mab.search._reporter import TrialReporter
    from hpo_mab.search._runner import RunOutcome, StudyRunner

__all__ = [
    "Confirmation",
    "Observer",
    "Replay",
    "RunOutcome",
    "StudyFailedError",
    "StudyRunner",
    "StudySpec",
    "TrainingObjective",
    "TrialReporter",
    "confirm",
    "copy_study",
    "load_network",
    "load_spec",
    "make_spec",
    "recorded_trial",
    "replay",
]

__getattr__, __dir__ = lazy_names(__name__)
