"""What a study was, in words: network, data, search space, budget, and its best configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hpo_mab.compare._tables import parameter, weights_evaluated

if TYPE_CHECKING:
    from hpo_mab.storage import StudyRun

#: Sections whose options are parameters by their own name.
_BARE = ("optimizer", "training")
_TRAINING = ("batch_size", "warmup", "label_smoothing", "average")
#: What an option of a data set is called where its name alone is not clear.
_NAMED = {"validation": "validation share"}


def study_facts(run: StudyRun) -> list[tuple[str, str]]:
    """Label and text of each fact of a study, from its definition and its trials.

    Args:
        run: The study. Of one without a definition only the budget and the weights are known.
    """
    spec = run.spec
    if not spec:
        return [("budget per trial", _budget(run)), ("weights evaluated", weights_evaluated([run]))]
    search = spec.get("search", {})
    return [
        ("network", section(spec, "model")),
        ("data", section(spec, "data", hide=("root", "download"))),
        ("optimiser", section(spec, "optimizer")),
        ("training", _training(spec.get("training", {}))),
        ("batch sampler", section(spec, "sampler")),
        ("budget per trial", _budget(run)),
        ("pruner", section(spec, "pruner")),
        (
            "search",
            f"{search.get('sampler', '')}, seed {run.seed}; the seed fixes the first "
            f"{search.get('initial', 0)} configurations, which are never pruned",
        ),
        ("weights evaluated", weights_evaluated([run])),
    ]


def section(spec: Mapping[str, Any], name: str, *, hide: Sequence[str] = ()) -> str:
    """A section of a definition: its kind, then its options and ranges.

    Args:
        spec: The definition.
        name: Of the section.
        hide: Options to leave out.
    """
    options = {key: value for key, value in spec.get(name, {}).items() if key not in hide}
    kind = str(options.pop("kind", None) or options.pop("name", ""))
    options.pop("name", None)
    shown = [
        f"{_NAMED.get(key, key)} {in_words(value)}"
        for key, value in options.items()
        if value is not None
    ]
    return ", ".join([kind, *shown])


def in_words(value: Any) -> str:
    """A constant or a range of a definition, in words."""
    if isinstance(value, Mapping) and "choices" in value:
        return "one of " + ", ".join(map(str, value["choices"]))
    if isinstance(value, Mapping) and {"low", "high"} <= value.keys():
        scale = " (log)" if value.get("log") else ""
        return f"{parameter(value['low'])} to {parameter(value['high'])}{scale}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(in_words, value))}]"
    return parameter(value)


def search_space(spec: Mapping[str, Any]) -> dict[str, str]:
    """Every searched parameter with its range in words, by the name that trials have it under.

    Args:
        spec: A definition as JSON-like values.
    """
    return dict(_searched(spec))


def _searched(spec: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name in ("optimizer", "training", "model", "sampler"):
        for key, value in spec.get(name, {}).items():
            full = key if name in _BARE else f"{name}.{key}"
            if _is_range(value):
                yield full, in_words(value)
            elif isinstance(value, list):
                parts = ((_part(full, index), item) for index, item in enumerate(value))
                yield from ((part, in_words(item)) for part, item in parts if _is_range(item))


def _is_range(value: Any) -> bool:
    return isinstance(value, Mapping) and ("choices" in value or {"low", "high"} <= value.keys())


def _part(name: str, index: int) -> str:
    # As `hpo_mab.search` names the items of the prior, without importing it.
    if name == "sampler.prior" and index < 2:
        return f"{name}_{('alpha', 'beta')[index]}"
    return f"{name}.{index}"


def _training(options: Mapping[str, Any]) -> str:
    shown = [f"{key} {in_words(options[key])}" for key in _TRAINING if key in options]
    return ", ".join([*shown, f"schedule {options.get('schedule', 'linear')}"])


def _budget(run: StudyRun) -> str:
    budget = run.spec.get("budget", {})
    epochs, evaluations = budget.get("epochs"), budget.get("evaluations")
    parts = [f"{run.trial_examples:,} training examples"]
    if epochs:
        parts.append(f"{parameter(epochs)} epoch{'' if epochs == 1 else 's'}")
    if evaluations:
        parts.append(f"{evaluations} evaluations")
    return ", ".join(parts)


def winner(runs: Sequence[StudyRun]) -> StudyRun | None:
    """The study with the most accurate complete trial; None where no trial is complete.

    Args:
        runs: Studies of any arms and seeds.
    """
    complete = [run for run in runs if run.best is not None]
    return max(complete, key=_accuracy, default=None)


def _accuracy(run: StudyRun) -> float:
    return 0.0 if run.best is None else run.best.value or 0.0


def winning_parameters(run: StudyRun) -> list[tuple[str, str, str]]:
    """Name, value and searched range of each parameter of a study's best trial.

    Args:
        run: The study.
    """
    if run.best is None:
        return []
    ranges = search_space(run.spec)
    params = run.best.params
    names = [name for name in ranges if name in params]
    names += sorted(params.keys() - ranges.keys())
    return [(name, parameter(params[name]), ranges.get(name, "-")) for name in names]
