"""Studies in words: their facts, their parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import PureWindowsPath
from typing import TYPE_CHECKING, Any

from hpo_mab._attributes import SAMPLER_KEY
from hpo_mab._stored_settings import Section, StudySettings, is_range

if TYPE_CHECKING:
    from hpo_mab.storage import StudyRun, TrialRun

#: Settings of the loop that are facts of a study, by their keys in the definition.
_TRAINING = ("batch_size", "warmup", "label_smoothing", "average")
#: Options that are files. A page that can be sent has no path of the machine.
FILES = ("exclude", "evidence")
#: What an option of a data set is called where its name alone is not clear.
_OPTION_NAMES = {"validation": "validation share"}


def parameter(value: Any) -> str:
    """A parameter's value, to four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def parameters(params: Mapping[str, Any]) -> str:
    """Parameters with their values, in one line."""
    return ", ".join(f"{name} = {parameter(value)}" for name, value in params.items())


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
    # The usual case: averaged weights until the last evaluation.
    if max(averaged) < min(trained):
        return f"averaged weights up to evaluation {max(averaged)}, trained weights after it"
    return (
        f"averaged weights at {len(averaged):,} of {len(points):,} evaluations, "
        "trained weights at the others"
    )


def study_facts(run: StudyRun) -> list[tuple[str, str]]:
    """Label and text of each fact of a study, from its definition and its trials.

    Of a study without a definition only the budget and the weights are known.
    """
    settings = run.settings
    if not run.spec:
        return [
            ("budget per trial", _budget_text(run)),
            ("weights evaluated", weights_evaluated([run])),
        ]
    return [
        ("network", _section_text(settings.model)),
        ("data", _section_text(settings.data, hide=("root", "download"))),
        ("optimiser", _section_text(settings.optimizer)),
        ("training", _training_text(settings)),
        ("batch sampler", _section_text(settings.sampler)),
        ("budget per trial", _budget_text(run)),
        ("pruner", _section_text(settings.pruner)),
        (
            "search",
            f"{settings.search.kind}, seed {run.seed}"
            + (
                f"; the seed fixes the first {settings.initial} configurations, which are never "
                "pruned"
                if settings.initial
                else ""
            ),
        ),
        ("weights evaluated", weights_evaluated([run])),
    ]


def _section_text(section: Section, *, hide: Sequence[str] = ()) -> str:
    """A section of a definition: its kind, then its options and ranges but the hidden ones."""
    shown = [
        f"{_OPTION_NAMES.get(key, key)} "
        + value_in_words(
            PureWindowsPath(value).name if key in FILES and isinstance(value, str) else value
        )
        for key, value in section.options.items()
        if value is not None and key not in hide
    ]
    return ", ".join([section.kind, *shown])


def value_in_words(value: Any) -> str:
    """A constant or a range of a definition, in words."""
    if is_range(value) and "choices" in value:
        return "one of " + ", ".join(map(str, value["choices"]))
    if is_range(value):
        scale = " (log)" if value.get("log") else ""
        return f"{parameter(value['low'])} to {parameter(value['high'])}{scale}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(value_in_words, value))}]"
    return parameter(value)


def _training_text(settings: StudySettings) -> str:
    options = settings.training
    shown = [f"{key} {value_in_words(options[key])}" for key in _TRAINING if key in options]
    return ", ".join([*shown, f"schedule {settings.schedule}"])


def _budget_text(run: StudyRun) -> str:
    epochs, evaluations = run.settings.epochs, run.settings.evaluations
    parts = [f"{run.trial_examples:,} training examples"]
    if epochs:
        parts.append(f"{parameter(epochs)} epoch{'' if epochs == 1 else 's'}")
    if evaluations:
        parts.append(f"{evaluations} evaluation{'' if evaluations == 1 else 's'}")
    return ", ".join(parts)


def repeats_text(repeats: Sequence[float]) -> str:
    """Accuracies of trainings with other seeds; 0 is one that diverged."""
    return ", ".join(f"{value:.2%}" if value else "diverged" for value in repeats)


def trial_text(trial: TrialRun) -> str:
    """A trial's number, and what `details_text` says of it."""
    return f"{trial.number}{details_text(trial.budgets, trial.attrs.get(SAMPLER_KEY))}"


def details_text(budgets: int, sampler: str | None) -> str:
    """What follows a trial's number: its length beyond one budget, its batch sampler if stored."""
    length = f", {budgets} budgets long" if budgets > 1 else ""
    return f"{length}, batch sampler {sampler}" if sampler else length


def twins_text(twins: int) -> str:
    """What follows a count of trials, ``twins`` of which repeat others under another sampler."""
    verb = "repeats" if twins == 1 else "repeat"
    return f"; {twins} of them {verb} a configuration under another sampler" if twins else ""


def parameter_rows(run: StudyRun) -> list[tuple[str, str, str]]:
    """Name, best trial's value and searched range of each parameter; "-" for what there is not."""
    best = {} if run.best is None else run.best.params
    ranges = {name: value_in_words(value) for name, value in run.settings.ranges.items()}
    return [
        (name, parameter(best[name]) if name in best else "-", ranges.get(name, "-"))
        for name in [*ranges, *sorted(best.keys() - ranges.keys())]
    ]
