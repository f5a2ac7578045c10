"""An Optuna sampler whose suggestions follow from the study's seed, slot and history alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState

from hpo_mab.search._pilot import OwnHistory
from hpo_mab.search._plan import slot_of
from hpo_mab.search._seeding import derive_seed


class PlannedSampler(BaseSampler):
    """Starts with configurations fixed by the seed, then asks a sampler re-seeded each trial.

    The first ``initial`` slots get random configurations that depend on ``(seed, slot, parameter
    name, range)`` only: studies of one seed start with equal values of the parameters they share.
    From then on every slot asks a fresh sampler seeded by ``(seed, slot)``, so that stopping and
    resuming changes nothing, nor do trials that run at the same time.

    Args:
        factory: Makes the underlying sampler from a keyword argument ``seed``.
        seed: The study's seed.
        initial: Number of fixed first configurations.
        twins: Whether the study has a pilot, whose twins the underlying sampler must not take for
            further configurations, see `hpo_mab.search._pilot.OwnHistory`.
    """

    def __init__(
        self,
        factory: Callable[..., BaseSampler],
        *,
        seed: int,
        initial: int = 10,
        twins: bool = False,
    ) -> None:
        self._factory = factory
        self._seed = seed
        self._initial = initial
        self._twins = twins
        #: By study and number: trials of one study may run in several threads.
        self._asked: dict[tuple[str, int], BaseSampler] = {}

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """See `optuna.samplers.BaseSampler`."""
        if slot_of(study, trial) < self._initial:
            return {}
        return self._sampler(study, trial).infer_relative_search_space(self._seen(study), trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """See `optuna.samplers.BaseSampler`."""
        if slot_of(study, trial) < self._initial:
            return {}
        seen = self._seen(study)
        return self._sampler(study, trial).sample_relative(seen, trial, search_space)

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """See `optuna.samplers.BaseSampler`."""
        slot = slot_of(study, trial)
        if slot >= self._initial:
            sampler = self._sampler(study, trial)
            seen = self._seen(study)
            return sampler.sample_independent(seen, trial, param_name, param_distribution)
        random = RandomSampler(seed=derive_seed(self._seed, "initial", slot, param_name))
        return random.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """See `optuna.samplers.BaseSampler`."""
        self._sampler(study, trial).before_trial(self._seen(study), trial)

    def after_trial(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """See `optuna.samplers.BaseSampler`."""
        self._sampler(study, trial).after_trial(self._seen(study), trial, state, values)
        self._asked.pop((study.study_name, trial.number), None)

    def _seen(self, study: optuna.Study) -> optuna.Study:
        return cast(optuna.Study, OwnHistory(study)) if self._twins else study

    def _sampler(self, study: optuna.Study, trial: FrozenTrial) -> BaseSampler:
        key = (study.study_name, trial.number)
        if key not in self._asked:
            seed = derive_seed(self._seed, "sampler", slot_of(study, trial))
            self._asked[key] = self._factory(seed=seed)
        return self._asked[key]
