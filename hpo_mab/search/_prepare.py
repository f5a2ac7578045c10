"""From a study definition to an objective: what it names is checked, its data are loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from hpo_mab import data
from hpo_mab._attributes import AUTO, UNIFORM
from hpo_mab._errors import (
    ArgumentError,
    HpoMabError,
    SpecError,
    failure_reason,
    memory_reason,
    require,
)
from hpo_mab._interrupts import deferred_interrupts, interruptible
from hpo_mab._registry import Named, Registry
from hpo_mab.advantage._evidence import FEWEST_PAIRS
from hpo_mab.bandits._settings import REWARDS
from hpo_mab.data import Augmentation, DatasetSplits, ImageSplits
from hpo_mab.data._load import DATA_SETS, default_augmentation
from hpo_mab.models import NETWORKS, network_maker
from hpo_mab.pruners import PromotionPruner, TopKPruner
from hpo_mab.samplers._registry import SAMPLERS, record_column, sampler_maker
from hpo_mab.search._definition import StudySpec
from hpo_mab.search._objective import TrainingObjective
from hpo_mab.search._portfolio import PORTFOLIO, initial_kind, parse_portfolio, uses_record
from hpo_mab.search._pruners import PRUNERS, create_pruner, is_continuable
from hpo_mab.search._ranges import extremes, integers, parse_value
from hpo_mab.search._searchers import SEARCHERS, searcher_maker
from hpo_mab.search._space import LOOP_TYPES, SearchSpace, check_options
from hpo_mab.training import Budget
from hpo_mab.training._optimizers import OPTIMIZERS

#: The names that each section may hold.
NAMED: Mapping[str, Registry] = {
    "data": DATA_SETS,
    "model": NETWORKS,
    "optimizer": OPTIMIZERS,
    "sampler": SAMPLERS,
    "search": SEARCHERS,
    "pruner": PRUNERS,
}


def takes(section: str, name: str, key: str) -> bool:
    """Whether a section that names ``name`` may hold a key.

    Raises:
        UnknownNameError: Nothing of that name.
        ArgumentError: It cannot be imported.
    """
    if section == "sampler" and key in ("portfolio", "evidence"):
        return name == AUTO
    own: Any = StudySpec.model_fields[section].annotation
    return key in own.model_fields or NAMED[section].takes(_initial_name(section, name), key)


def check_names(spec: StudySpec) -> None:
    """Check every name in a definition, the arms of its comparison included.

    Raises:
        UnknownNameError: An unknown name or option; the message offers the nearest.
        ArgumentError: A name that cannot be imported, or an option of another type.
    """
    _check_section("data", spec.data.name, spec.data.options)
    _check_section("model", spec.model.name, spec.model.parsed_options("model"))
    searcher_maker(spec.search.sampler, spec.search.options)
    SearchSpace(
        optimizer={"name": spec.optimizer.name, **spec.optimizer.options},
        sampler={"kind": UNIFORM},
        model={},
        loop={key: getattr(spec.training, key) for key in LOOP_TYPES},
    )
    _check_arm(spec)
    for name, arm in spec.compare.arms.items():
        try:
            _check_arm(spec.as_arm(arm))
        except HpoMabError as error:
            raise SpecError(f"compare.arms.{name}: {error}") from None


def _check_arm(spec: StudySpec) -> None:
    _check_section("sampler", spec.sampler.kind, spec.sampler.parsed_options("sampler"))
    pruner = create_pruner(
        spec.pruner.kind,
        # Evidence is read only where trials are run.
        {
            key: value
            for key, value in spec.pruner.options.items()
            if key != "evidence" or spec.pruner.kind != "advantage"
        },
        evaluations=spec.budget.evaluations,
    )
    if isinstance(pruner, TopKPruner):
        _check_top_k(spec, pruner)
    if isinstance(pruner, PromotionPruner) and pruner.unlimited and not is_continuable(spec):
        raise SpecError(
            "pruner.unlimited needs training.schedule = 'constant', a sampler other than "
            f"'{AUTO}', and max_resource = {spec.budget.evaluations}; got "
            f"'{spec.training.schedule}', '{spec.sampler.kind}' and {pruner.max_resource}."
        )
    kind, portfolio = initial_kind(spec.sampler.kind), spec.sampler.portfolio
    if kind == "mab":
        options = spec.sampler.parsed_options("sampler")
        for reward in extremes(options.get("reward", "above_average")):
            REWARDS.load(reward)
    # Of the default portfolio, samplers that use the record are left out where there is none.
    raced = {} if portfolio in (None, list(PORTFOLIO)) else parse_portfolio(portfolio)
    needs = record_column(sampler_maker(kind)) is not None or any(map(uses_record, raced.values()))
    if needs and not spec.training.examples:
        raise SpecError(
            f"training.examples must be on for sampler '{spec.sampler.kind}', which uses the "
            "study's record of examples."
        )
    if spec.has_pilot and spec.search.initial < FEWEST_PAIRS:
        raise SpecError(
            f"search.initial must be at least {FEWEST_PAIRS} for the pilot that pruner 'advantage' "
            f"needs, got {spec.search.initial}."
        )


def _check_section(section: str, name: str, values: Mapping[str, Any]) -> None:
    named = _initial_name(section, name)
    check_options(NAMED[section], named, values, section=section, shown=name)


def _initial_name(section: str, name: str) -> Named:
    return initial_kind(name) if section == "sampler" else name


def _check_top_k(spec: StudySpec, pruner: TopKPruner) -> None:
    """Refuse a definition under which the best could not be found or trained in full."""
    fewest = spec.search.initial + 2 * pruner.k
    if spec.budget.trials < fewest:
        raise SpecError(
            f"budget.trials must be at least {fewest} for pruner 'top_k': search.initial = "
            f"{spec.search.initial} are never stopped, at least {pruner.k} must be stopped, and "
            f"{pruner.k} of these are trained in full; got {spec.budget.trials}."
        )
    if spec.budget.total is not None:
        raise SpecError(
            "budget.total cannot be used with pruner 'top_k', which must know from budget.trials "
            f"when to train the best in full; got {spec.budget.total!r}."
        )


#: Fewest epochs of a trial for which ``data.augment = "auto"`` augments. One epoch of Fashion-MNIST
#: ends at 83.2% with crops and flips and at 88.7% without.
_AUGMENTED_EPOCHS = 10

#: What the evaluations of a trial may cost with "auto", as a share of its training.
EVALUATION_SHARE = 0.1
#: Cost of an evaluated example over that of a trained one: there is no backward pass.
_FORWARD = 1 / 3
#: Fewest validation examples that "auto" takes. Fewer rank trials so badly that a study costs more,
#: in the simulations of ``studies/rungs/promotion.py``. All validation examples would cost a third
#: of the training or more.
FEWEST_EARLY = 2_000


def early_part(
    wanted: int | Literal["auto", "all"], *, trial_examples: int, evaluations: int, validation: int
) -> int | None:
    """Validation examples of the evaluations before the last; None for all.

    With ``"auto"`` all evaluations of a trial together cost about a tenth of its training. An
    evaluated example counts as a third of a trained one. There are at least 2,000, or all if
    there are fewer. Nothing is timed: the number follows from the definition and the data.

    ``wanted`` is ``budget.early_validation`` of the definition.
    """
    if wanted == "auto":
        paid_for = EVALUATION_SHARE * trial_examples / _FORWARD
        # The last evaluation takes all validation examples; the others share the rest.
        count = max(FEWEST_EARLY, int((paid_for - validation) / max(evaluations - 1, 1)))
    else:
        count = validation if wanted == "all" else wanted
    return None if count >= validation else count


def load_splits(spec: StudySpec) -> ImageSplits | DatasetSplits:
    """Load the definition's data set in three parts; what was taken is logged.

    Raises:
        DataError: The data are not there and cannot be fetched.
        ArgumentError: A data set that cannot be split by the definition.
    """
    return data.load_splits(
        spec.data.name,
        validation=spec.data.validation,
        seed=spec.seed,
        root=spec.data.root,
        download=spec.data.download,
        exclude=spec.data.exclude,
        **spec.data.options,
    )


def make_objective(spec: StudySpec, splits: ImageSplits | DatasetSplits) -> TrainingObjective:
    """The objective that a definition describes, checked at both ends of each of its ranges.

    Args:
        spec: The definition.
        splits: Its data, see `load_splits`.

    Raises:
        ArgumentError: A value outside its bound.
        UnknownNameError: An unknown network, optimiser, sampler or option.
    """
    budget = spec.budget
    # An objective takes the other keys as arguments.
    loop = {
        key: one for key, one in spec.training if key not in ("slots", "checkpoint", "examples")
    }
    per_trial = Budget(epochs=budget.epochs, steps=budget.steps, examples=budget.examples)
    objective = TrainingObjective(
        model=network_maker(
            spec.model.name, input_shape=splits.input_shape, num_classes=splits.num_classes
        ),
        data=splits,
        budget=per_trial,
        optimizer={"name": spec.optimizer.name, **spec.optimizer.options},
        sampler={"kind": spec.sampler.kind, **spec.sampler.options},
        portfolio=spec.sampler.portfolio,
        model_options=spec.model.options,
        evaluations=budget.evaluations,
        early_validation=early_part(
            budget.early_validation,
            trial_examples=_trial_examples(spec, per_trial, splits.sizes[0]),
            evaluations=budget.evaluations,
            validation=splits.sizes[1],
        ),
        augmentation=_augmentation(spec, splits, per_trial),
        seed=spec.seed,
        initial=spec.search.initial,
        pilot=spec.has_pilot,
        trials=budget.trials,
        total=budget.total,
        **loop,
    )
    check_corners(objective)
    return objective


def check_corners(objective: TrainingObjective) -> None:
    """Make a network, a sampler and an optimiser at both ends of every range, training none."""
    low, high = objective.space.corners()
    raced = [
        dataclasses.replace(low, sampler=part) for part in objective.samplers.portfolio.values()
    ]
    for configuration in (low, high, *raced):
        try:
            # A user's network may catch what is raised in it, Ctrl-C too, which must not be lost.
            with (
                deferred_interrupts(),
                interruptible(),
                objective.workload.training(configuration, seed=objective.seed),
            ):
                pass
        except (Exception, SystemExit) as error:
            fits = memory_reason(error) is None
            if fits and isinstance(error, HpoMabError):
                raise
            options = ", ".join(f"{k} = {v}" for k, v in configuration.model.items())
            raise ArgumentError(
                f"A training{f' with {options}' if options else ''} "
                f"{'cannot begin' if fits else 'does not fit'}: {failure_reason(error)}"
            ) from error


def _trial_examples(spec: StudySpec, budget: Budget, num_examples: int) -> int:
    """Training examples of a trial with the largest batch size that the definition has."""
    sizes = integers(parse_value("training.batch_size", spec.training.batch_size))
    # Checked first: to go through all sizes of a wide range could take hours.
    bound = f"in [1, {num_examples}], the number of training examples"
    require(len(sizes) <= num_examples, "training.batch_size", bound, spec.training.batch_size)
    return max(budget.num_steps(num_examples=num_examples, batch_size=b) * b for b in sizes)


def _augmentation(
    spec: StudySpec, splits: ImageSplits | DatasetSplits, budget: Budget
) -> Augmentation | None:
    wanted = spec.data.augment
    if wanted == "auto":
        examples = splits.sizes[0]
        epochs = budget.epochs or _trial_examples(spec, budget, examples) / examples
        wanted = epochs >= _AUGMENTED_EPOCHS and isinstance(splits, ImageSplits)
    if not wanted:
        return None
    if not isinstance(splits, ImageSplits):
        raise SpecError(
            f"data.augment must be false for data set '{spec.data.name}', whose examples have "
            "transforms of their own; got true."
        )
    return default_augmentation(spec.data.name, image_size=splits.train.image_size)
