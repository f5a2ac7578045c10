"""Seeds of trials, and the slot a trial holds in its study's plan.

Every random choice of a trial follows from the study's seed and the trial's slot, so that a study
resumed equals a study never stopped, and trials of two studies can be paired.
"""

from __future__ import annotations

import hashlib

import optuna
from optuna.trial import FrozenTrial

from hpo_mab._attributes import RETRY_KEY, SLOT_KEY
from hpo_mab.pruners._trial_pairs import is_twin


def derive_seed(*parts: int | str) -> int:
    """A seed in [0, 2**32) that depends on every part and on nothing else."""
    text = "\x1f".join(str(part) for part in parts).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=4).digest())


def slot_of(study: optuna.Study, trial: FrozenTrial | optuna.trial.Trial) -> int:
    """The trial's place in the study's plan, from 0.

    It is the trial's number less the retries and twins made before it; these hold the slot of the
    trial they repeat.
    """
    slot = trial.user_attrs.get(SLOT_KEY)
    if slot is not None:
        return int(slot)
    earlier = study.get_trials(deepcopy=False)[: trial.number]
    # Optuna's retry callback marks the trials it queues so; its own accessor is experimental.
    return trial.number - sum(
        RETRY_KEY in other.system_attrs or is_twin(other) for other in earlier
    )
