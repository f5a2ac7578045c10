"""The pilot, and the study's own Optuna sampler.

The pilot trains the first configurations with both batch samplers. The sampler's suggestions follow
from the study's seed, slot and history alone.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState

from hpo_mab._attributes import (
    CHOICE_KEY,
    PAIRED_KEY,
    SAMPLER_KEY,
    SLOT_KEY,
    TWIN_KEY,
    UNIFORM,
)
from hpo_mab._errors import ArgumentError
from hpo_mab._plan import Plan, derive_seed, slot_of
from hpo_mab._registry import Named, Registry, bound_to, name_of
from hpo_mab.pruners import AdvantagePruner, EvidenceKeeper
from hpo_mab.storage._optuna import StudyView

# The pilot: the first configurations trained with both samplers, and what is made of it.
#
# After each complete trial of the first slots its *twin* is queued: an ordinary trial of the study
# with the same slot, parameters and seed, trained under uniform sampling and never pruned. It has
# the user attributes ``hpo_mab:twin_of`` (the slot) and ``hpo_mab:sampler = "uniform"``. What twins
# spend counts in the study's total budget; they do not count towards ``budget.trials``, so that a
# study has as many configurations with a pilot as without. Their results are results of the study
# like any other.

AUTO = "auto"
BANDIT = "mab"


def trained_kind(kind: Named) -> Named:
    """The batch sampler that a kind trains the first configurations with."""
    return BANDIT if kind == AUTO else kind


def queue_twin(study: optuna.Study, trial: optuna.trial.Trial) -> None:
    """Queue a trial's uniform twin, unless it has one.

    Args:
        study: The trial's study.
        trial: A trial all of whose parameters are known.
    """
    slot = slot_of(study, trial)
    if Plan(study.get_trials(deepcopy=False)).has_twin(slot):
        return
    study.add_trial(
        optuna.create_trial(
            state=TrialState.WAITING,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs={SLOT_KEY: slot, PAIRED_KEY: True, TWIN_KEY: slot, SAMPLER_KEY: UNIFORM},
        )
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The sampler that a study continues with after its pilot.

    Attributes:
        sampler: ``"mab"`` or ``"uniform"``.
        why: One sentence with the figures.
        pairs: Pairs that the choice rests on.
        evidence: Digest of the evidence, kept as ``hpo_mab:evidence``; None if there was none.
    """

    sampler: str
    why: str
    pairs: int
    evidence: str | None

    def to_json(self) -> dict[str, Any]:
        """The choice as JSON values."""
        return {"version": 1, **dataclasses.asdict(self)}


def stored_choice(study: optuna.Study) -> Choice | None:
    """What the study's pilot led to, if it has been decided."""
    stored = dict(study.user_attrs.get(CHOICE_KEY, {}))
    stored.pop("version", None)
    return Choice(**stored) if stored else None


def choose_sampler(study: optuna.Study, *, initial: int) -> Choice | None:
    """The choice between bandit and uniform sampling, made and stored when the pilot is done.

    The bandit is chosen where the interval of the advantage at the full budget lies above 0 and
    fidelity is at no earlier budget shown to be worse by more than the evidence's margin.

    Args:
        study: The study.
        initial: Slots of the pilot.

    Returns:
        The choice; None while trials of the pilot are waiting or running (other workers').
    """
    known = stored_choice(study)
    if known is not None:
        return known
    trials = study.get_trials(deepcopy=False)
    if Plan(trials).is_open_below(initial):
        return None
    pruner = study.pruner
    keeper = pruner.keeper(study) if isinstance(pruner, AdvantagePruner) else EvidenceKeeper()
    keeper.read_trials(study, trials)
    choice = _choose(keeper)
    study.set_user_attr(CHOICE_KEY, choice.to_json())
    return choice


def _choose(keeper: EvidenceKeeper) -> Choice:
    evidence = keeper.evidence
    if evidence is None:
        return Choice(sampler=UNIFORM, why="too few pairs for any evidence", pairs=0, evidence=None)
    final = evidence.advantage[-1]
    figures = (
        f"advantage at the full budget {100 * final.value:+.2f} points "
        f"({100 * final.low:+.2f} to {100 * final.high:+.2f}, {final.n} pairs)"
    )
    worse = [
        (share, difference)
        for share, difference in zip(evidence.budgets[:-1], evidence.fidelity[:-1], strict=True)
        if difference.below(-evidence.margin)
    ]
    if not final.above(0.0):
        sampler, why = UNIFORM, f"{figures}: not shown to be above 0"
    elif worse:
        share, difference = worse[0]
        sampler = UNIFORM
        why = f"{figures}, but fidelity at {share:.0%} is worse by {-difference.value:.2f}"
    else:
        sampler, why = BANDIT, f"{figures}, and fidelity is not shown to be worse"
    return Choice(sampler=sampler, why=why, pairs=evidence.pairs, evidence=evidence.digest)


class OwnHistory(StudyView):
    """A study as an Optuna sampler should see it: each configuration once.

    A twin's value differs from its original's by the batch sampler, which is no parameter. So the
    model is fitted to trials of one batch sampler: without the twins, or, where the study has gone
    on with uniform sampling, with the twins in place of their originals.

    Args:
        study: The study with all trials.
    """

    def shown(self, trials: list[FrozenTrial]) -> list[FrozenTrial]:
        """Those of the trials that the sampler should see."""
        numbers = Plan(self.study.get_trials(deepcopy=False)).once
        return [trial for trial in trials if trial.number in numbers]


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

    Examples:
        >>> import optuna
        >>> from hpo_mab.search import PlannedSampler
        >>> sampler = PlannedSampler(optuna.samplers.RandomSampler, seed=0, initial=2)
        >>> study = optuna.create_study(sampler=sampler)
        >>> study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
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


# Not CMA-ES: Optuna's keeps its state as a pickle in the database, and runs what it finds there.
#: Optuna's samplers. Another one is given ``seed`` where it takes it.
SEARCHERS = Registry(
    "search.sampler",
    {
        "gp": optuna.samplers.GPSampler,
        "qmc": optuna.samplers.QMCSampler,
        "random": optuna.samplers.RandomSampler,
        "tpe": optuna.samplers.TPESampler,
    },
    given=("seed",),
)

# Optuna's defaults may change between releases; a study's meaning must not.
_PINNED: Mapping[str, Mapping[str, Any]] = {
    "tpe": {"multivariate": True, "constant_liar": True, "n_startup_trials": 10},
}


def sampler_factory(kind: Named, options: Mapping[str, Any]) -> Callable[..., BaseSampler]:
    """A function that makes the named Optuna sampler from a keyword argument ``seed``.

    Args:
        kind: ``"tpe"``, ``"random"``, ``"gp"`` or ``"qmc"``; ``package.module:Name`` of another
            sampler for Optuna, or its class.
        options: Arguments of the Optuna class.

    Raises:
        UnknownNameError: No such sampler, or no such option of it.
        ArgumentError: An option's value that the sampler refuses.
    """
    SEARCHERS.check(kind, {key: [value] for key, value in options.items()}, section="search")
    pinned = {**_PINNED.get(name_of(kind), {}), **options}
    make = SEARCHERS.load(kind)
    # Read once: each trial makes a sampler, and reading a signature takes long.
    takes_seed = bound_to(make, {"seed": 0}) is not make

    def factory(*, seed: int) -> BaseSampler:
        given = {**pinned, "seed": seed} if takes_seed else pinned
        made: BaseSampler = quietly(make, given, BaseSampler)
        return made

    try:
        factory(seed=0)
    except Exception as error:
        raise ArgumentError(f"search.sampler '{name_of(kind)}': {error}") from error
    return factory


def quietly(make: Callable[..., Any], options: Mapping[str, Any], base: type) -> Any:
    """Make something of Optuna's, without its warnings of what is experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        made = make(**options)
    if not isinstance(made, base):
        raise TypeError(f"must be an optuna {base.__name__}, got {type(made).__name__}.")
    return made
