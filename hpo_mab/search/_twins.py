"""Queue twins: trials that repeat a slot under another batch sampler.

A twin has the parameters and seed of the slot's trial, and is never pruned. Its result is a result
of the study like any other. Twins count in the study's total budget, but not in ``budget.trials``:
a study has as many configurations with twins as without.

In a pilot each of the first configurations gets a twin under uniform sampling once it is complete.
`hpo_mab.search._race` queues the twins of ``"auto"``.
"""

from __future__ import annotations

import optuna
from optuna.trial import FrozenTrial, TrialState

from hpo_mab._attributes import SAMPLER_KEY, SLOT_KEY, TWIN_KEY, UNIFORM
from hpo_mab._plan import Plan, slot_of
from hpo_mab.storage._optuna import GRID_KEYS, add_copy, id_of, storage_of, unchecked_trial


def queue_twin(
    study: optuna.Study, trial: optuna.trial.Trial | FrozenTrial, sampler: str = UNIFORM
) -> None:
    """Queue the twin of a trial, all of whose parameters are known, unless it has one."""
    slot = slot_of(study, trial)
    if (slot, sampler) in Plan.of(study).places:
        return
    attrs = {SLOT_KEY: slot, TWIN_KEY: slot, SAMPLER_KEY: sampler}
    system = storage_of(study).get_trial(id_of(trial)).system_attrs
    twin = unchecked_trial(
        state=TrialState.WAITING,
        params=trial.params,
        distributions=trial.distributions,
        user_attrs=attrs,
        # Without them, Optuna's grid search would assign another point to the twin.
        system_attrs={key: system[key] for key in GRID_KEYS if key in system},
    )
    add_copy(study, twin)
