"""What a study was, in words: arm, network, data, search space, budget, best configuration."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from hpo_mab._attributes import Section, StudySettings, is_range

if TYPE_CHECKING:
    from hpo_mab.storage import StudyRun

_TRAINING = ("batch_size", "warmup", "label_smoothing", "average")
#: What an option of a data set is called where its name alone is not clear.
_NAMED = {"validation": "validation share"}


def parameter(value: Any) -> str:
    """A parameter's value, to four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


_WORDS = {
    "mab": "bandit",
    "psgd": "p-SGD",
    "csgd": "c-SGD",
    "pvar": "prediction variance",
    "gradnorm": "gradient norm",
    "adambs": "AdamBS",
    "impon": "IMPON",
    "infobatch": "InfoBatch",
    "hyperband": "Hyperband",
    "topk": "top k",
}
#: Pruners are set apart from the sampler by a comma.
_PRUNERS = (
    "hyperband",
    "median",
    "percentile",
    "advantage",
    "successive_halving",
    "promotion",
    "top_k",
    "none",
)


def arm_words(arm: str) -> str:
    """An arm's name in words: ``"uniform, Hyperband"`` for ``"uniform_hyperband"``."""
    pruner = next((name for name in _PRUNERS if arm.endswith(f"_{name}")), "")
    sampler = arm.removesuffix(f"_{pruner}") if pruner else arm
    parts = [_words(sampler), "no pruner" if pruner == "none" else _words(pruner)]
    return ", ".join(part for part in parts if part)


def _words(name: str) -> str:
    return " ".join(_WORDS.get(word, word) for word in name.split("_"))


def weights_evaluated(runs: Iterable[StudyRun]) -> str:
    """Which weights the accuracies along the curves of studies are of."""
    points = [point for run in runs for trial in run.trials for point in trial.curve]
    averaged = [point.index for point in points if point.averaged]
    trained = [point.index for point in points if not point.averaged]
    if not points:
        return "no weights yet"
    if not averaged:
        return "trained weights"
    if not trained:
        return "averaged weights"
    if max(averaged) < min(trained):
        return f"averaged weights up to evaluation {max(averaged)}, trained weights after it"
    return (
        f"averaged weights at {len(averaged):,} of {len(points):,} evaluations, "
        "trained weights at the others"
    )


def study_facts(run: StudyRun) -> list[tuple[str, str]]:
    """Label and text of each fact of a study, from its definition and its trials.

    Args:
        run: The study. Of one without a definition only the budget and the weights are known.
    """
    settings = run.settings
    if not run.spec:
        return [("budget per trial", _budget(run)), ("weights evaluated", weights_evaluated([run]))]
    return [
        ("network", _section(settings.model)),
        ("data", _section(settings.data, hide=("root", "download"))),
        ("optimiser", _section(settings.optimizer)),
        ("training", _training(settings)),
        ("batch sampler", _section(settings.sampler)),
        ("budget per trial", _budget(run)),
        ("pruner", _section(settings.pruner)),
        (
            "search",
            f"{settings.search.kind}, seed {run.seed}; the seed fixes the first "
            f"{settings.initial} configurations, which are never pruned",
        ),
        ("weights evaluated", weights_evaluated([run])),
    ]


def _section(section: Section, *, hide: Sequence[str] = ()) -> str:
    """A section of a definition: its kind, then its options and ranges but the hidden ones."""
    shown = [
        f"{_NAMED.get(key, key)} {in_words(value)}"
        for key, value in section.options.items()
        if value is not None and key not in hide
    ]
    return ", ".join([section.kind, *shown])


def in_words(value: Any) -> str:
    """A constant or a range of a definition, in words."""
    if is_range(value) and "choices" in value:
        return "one of " + ", ".join(map(str, value["choices"]))
    if is_range(value):
        scale = " (log)" if value.get("log") else ""
        return f"{parameter(value['low'])} to {parameter(value['high'])}{scale}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(in_words, value))}]"
    return parameter(value)


def search_space(settings: StudySettings) -> dict[str, str]:
    """Every searched parameter with its range in words, by the name that trials have it under.

    Args:
        settings: Of the study.
    """
    return {name: in_words(value) for name, value in settings.ranges.items()}


def _training(settings: StudySettings) -> str:
    options = settings.training
    shown = [f"{key} {in_words(options[key])}" for key in _TRAINING if key in options]
    return ", ".join([*shown, f"schedule {settings.schedule}"])


def _budget(run: StudyRun) -> str:
    epochs, evaluations = run.settings.epochs, run.settings.evaluations
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
    ranges = search_space(run.settings)
    params = run.best.params
    names = [name for name in ranges if name in params]
    names += sorted(params.keys() - ranges.keys())
    return [(name, parameter(params[name]), ranges.get(name, "-")) for name in names]
