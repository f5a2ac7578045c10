"""A comparison in words: the facts of its studies, names of arms, and the verdict.

The verdict has one answer per question, with the figures it rests on.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from hpo_mab._attributes import Section, StudySettings, is_range
from hpo_mab.advantage import Estimate
from hpo_mab.compare._records import ArmSummary, ComparisonSummary, Contrast, Currency

if TYPE_CHECKING:
    from hpo_mab.storage import StudyRun

#: Settings of the loop that are facts of a study, by their keys in the definition.
_TRAINING = ("batch_size", "warmup", "label_smoothing", "average")
#: What an option of a data set is called where its name alone is not clear.
_OPTION_NAMES = {"validation": "validation share"}


def parameter(value: Any) -> str:
    """A parameter's value, to four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def parameters(params: Mapping[str, Any]) -> str:
    """Parameters with their values, in one line."""
    return ", ".join(f"{name} = {parameter(value)}" for name, value in params.items())


#: Words for parts of the names of arms.
_ARM_WORDS = {
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
    # Names of samplers contain underscores, too, so only known pruners are split off.
    pruner = next((name for name in _PRUNERS if arm.endswith(f"_{name}")), "")
    sampler = arm.removesuffix(f"_{pruner}") if pruner else arm
    parts = [_name_in_words(sampler), "no pruner" if pruner == "none" else _name_in_words(pruner)]
    return ", ".join(part for part in parts if part)


def _name_in_words(name: str) -> str:
    return " ".join(_ARM_WORDS.get(word, word) for word in name.split("_"))


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

    Args:
        run: The study. Of one without a definition only the budget and the weights are known.
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
            f"{settings.search.kind}, seed {run.seed}; the seed fixes the first "
            f"{settings.initial} configurations, which are never pruned",
        ),
        ("weights evaluated", weights_evaluated([run])),
    ]


def _section_text(section: Section, *, hide: Sequence[str] = ()) -> str:
    """A section of a definition: its kind, then its options and ranges but the hidden ones."""
    shown = [
        f"{_OPTION_NAMES.get(key, key)} {value_in_words(value)}"
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
        parts.append(f"{evaluations} evaluations")
    return ", ".join(parts)


def repeats_text(repeats: Sequence[float]) -> str:
    """Accuracies of trainings with other seeds; 0 is one that diverged."""
    return ", ".join(f"{value:.2%}" if value else "diverged" for value in repeats)


def length_text(budgets: int) -> str:
    """What follows the number of a trial that is longer than one budget; else empty."""
    return f", {budgets} budgets long" if budgets > 1 else ""


def parameter_rows(run: StudyRun) -> list[tuple[str, str, str]]:
    """Name, best trial's value and searched range of each parameter; "-" for what there is not.

    Args:
        run: The study.
    """
    best = {} if run.best is None else run.best.params
    ranges = {name: value_in_words(value) for name, value in run.settings.ranges.items()}
    return [
        (name, parameter(best[name]) if name in best else "-", ranges.get(name, "-"))
        for name in [*ranges, *sorted(best.keys() - ranges.keys())]
    ]


# The verdict. One interval answers each question, so no answer is read out of several figures.

#: Whether the same configuration learns more, and whether the search ends with a higher best
#: validation accuracy or with better hyperparameters.
Question = Literal["learns", "model", "hyperparameters"]
Reply = Literal["yes", "no", "cannot tell"]

#: Each question with its currencies; None compares the studies as they ended.
_QUESTIONS: tuple[tuple[Question, Currency | None], ...] = (
    ("learns", "examples"),
    ("learns", "seconds"),
    ("model", "examples"),
    ("model", "seconds"),
    ("hyperparameters", None),
)
#: Each question as a statement about the arm, and the reply "no" in words.
_STATEMENTS: dict[Question, tuple[str, str]] = {
    "learns": ("same configuration learns more", "no, less"),
    "model": ("higher best validation accuracy", "no, lower"),
    "hyperparameters": ("better hyperparameters", "no, worse"),
}
_OTHER_SLOTS = "the arms' trials were trained in different numbers of slots"
_MID_SCHEDULE = "at equal seconds the slower arm is read before the end of its trials"
_CUT_OFF = "its trials take fewer seconds, and what longer ones would reach is not known"
#: Below this ratio of seconds an arm is cheaper than the reference.
_CHEAPER = 0.95
#: No sampler makes a step take this many times as long: above it, the machine was busy.
_SUSPECT_PACE = 3.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The answer to one question about an arm.

    The reply is ``"yes"`` if the whole interval lies above zero, and ``"no"`` if it lies below. It
    is ``"cannot tell"`` otherwise, and where the interval leaves something out that could explain
    it, see ``reason``. The measures, each minus the reference's:

    - ``"learns"``: validation accuracy of the same configuration at the end of a trial, over pairs;
    - ``"model"``: validation accuracy of the best configuration after what the cheaper study spent
      in all, over seeds;
    - ``"hyperparameters"``: test accuracy of the best configuration, trained again under uniform
      sampling, over seeds.

    Attributes:
        arm: Name of the arm.
        reference: Name of the reference.
        question: What is asked.
        currency: What both arms spend equally; None: the studies as they ended.
        reply: The answer.
        estimate: The difference of accuracies that it rests on; None if it was not measured.
        reason: Why the reply is ``"cannot tell"``, if not because of the interval.

    Examples:
        >>> from pathlib import Path
        >>> from hpo_mab.compare import answers, read_record
        >>> record = read_record(Path("studies/fashion_mnist/pairs.json"))
        >>> [contrast] = record.summarise().contrasts
        >>> [answer.reply for answer in answers(contrast)]
        ['yes', 'yes', 'cannot tell', 'cannot tell', 'cannot tell']
    """

    arm: str
    reference: str
    question: Question
    currency: Currency | None
    reply: Reply
    estimate: Estimate | None
    reason: str = ""

    @property
    def unit(self) -> str:
        """What is counted: ``"pair"`` or ``"seed"``."""
        return "pair" if self.question == "learns" else "seed"

    @property
    def statement(self) -> str:
        """The question as a statement about the arm, e.g. ``"better hyperparameters"``."""
        return _STATEMENTS[self.question][0]

    @property
    def shown_reply(self) -> str:
        """The reply in words, e.g. ``"no, less"``."""
        return _STATEMENTS[self.question][1] if self.reply == "no" else self.reply

    def __str__(self) -> str:
        """The answer as one line."""
        at = "" if self.currency is None else f" at equal {self.currency}"
        why = "; ".join(part for part in (self.reason, self._figures_text()) if part)
        return f"{self.arm}: {self.statement}{at}? {self.shown_reply} ({why})."

    def _figures_text(self) -> str:
        found = self.estimate
        if found is None or math.isnan(found.value):
            return "" if self.reason else "not measured"
        counted = f"{found.n} {self.unit}{'' if found.n == 1 else 's'}"
        interval = (
            f"{found.confidence:.0%} interval {100 * found.low:+.2f} to {100 * found.high:+.2f}"
            if found.bounded
            else "no interval"
        )
        return f"{100 * found.value:+.2f} points, {interval}, n = {counted}"

    def to_json(self) -> dict[str, Any]:
        """The answer as JSON values."""
        plain = dataclasses.asdict(self)
        plain["estimate"] = None if self.estimate is None else self.estimate.to_json()
        return {**plain, "text": str(self)}


def answers(contrast: Contrast) -> tuple[Answer, ...]:
    """The answers about one arm: each question at equal examples and at equal seconds.

    One seed cannot compare searches. Seconds cannot be compared where arms were trained in
    different numbers of slots, nor those of pairs that are the same trainings. Pairs get a reply
    at equal seconds only where it is also that at equal examples: the slower arm's learning rate
    has not decayed at that time, and its accuracy may be that of fewer validation images.
    """
    return tuple(_answer(contrast, question, currency) for question, currency in _QUESTIONS)


def _answer(contrast: Contrast, question: Question, currency: Currency | None) -> Answer:
    estimate = _measure(contrast, question, currency)
    reason = _reason(contrast, question, currency)
    return Answer(
        arm=contrast.arm,
        reference=contrast.reference,
        question=question,
        currency=currency,
        reply="cannot tell" if reason else _reply(estimate),
        estimate=estimate,
        reason=reason,
    )


def _reason(contrast: Contrast, question: Question, currency: Currency | None) -> str:
    """Why a question has no answer, whatever the interval; empty if it may have one."""
    estimate = _measure(contrast, question, currency)
    if currency == "seconds" and not contrast.same_slots:
        return _OTHER_SLOTS
    if _is_equal(estimate):
        return "no difference in any of them"
    if question == "learns":
        return _reason_of_pairs(contrast, _reply(estimate), at_seconds=currency == "seconds")
    # Seeds in which an arm has found nothing would be left out.
    of = len(contrast.seeds)
    if estimate is not None and 0 < estimate.n < of:
        return f"nothing to compare in {of - estimate.n} of {of} seeds"
    return ""


def _reason_of_pairs(contrast: Contrast, reply: Reply, *, at_seconds: bool) -> str:
    """Why a reply of pairs does not count; empty if it does."""
    at_examples = _measure(contrast, "learns")
    # At equal seconds, equal trainings differ by the noise of the clock alone.
    if _is_equal(at_examples):
        return "the same trainings in both arms"
    if reply == "cannot tell":
        return ""
    if contrast.stopped:
        return f"a pruner stopped {contrast.stopped} of the pairs, and chose those that are left"
    # What diverged is not among the pairs, and would have lost.
    own, other = contrast.diverged
    if own > other if reply == "yes" else own < other:
        return (
            f"{own} configurations diverged or failed in {contrast.arm}, {other} in "
            f"{contrast.reference}"
        )
    if _reply(at_examples) != reply:
        return _MID_SCHEDULE
    cheaper = contrast.seconds_per_example.value < _CHEAPER
    return _CUT_OFF if at_seconds and reply == "no" and cheaper else ""


def _is_equal(estimate: Estimate | None) -> bool:
    """Whether all observations are zero, as they are if both arms train the same."""
    if estimate is None:
        return False
    return estimate.value == 0.0 and estimate.n > 1 and not estimate.bounded


def _measure(
    contrast: Contrast, question: Question, currency: Currency | None = None
) -> Estimate | None:
    if question == "hyperparameters":
        return contrast.retrained_gain
    if question == "model":
        return contrast.gain[currency or "examples"]
    if not contrast.paired:
        return None
    last = contrast.paired[-1]
    return last.advantage_seconds if currency == "seconds" else last.advantage


def _reply(estimate: Estimate | None) -> Reply:
    if estimate is None or not estimate.bounded:
        return "cannot tell"
    if estimate.above(0.0):
        return "yes"
    return "no" if estimate.below(0.0) else "cannot tell"


def verdict(summary: ComparisonSummary) -> str:
    """All answers in plain words, one per line, then what limits them."""
    if not summary.contrasts:
        return f"Only the arm '{summary.reference}' has been run: there is nothing to compare."
    lines = [str(one) for contrast in summary.contrasts for one in answers(contrast)]
    return "\n".join([*lines, *caveats(summary)])


def caveats(summary: ComparisonSummary) -> Iterator[str]:
    """What limits the answers, a sentence each."""
    arms = {arm.arm: arm for arm in summary.arms}
    if any(len(contrast.seeds) == 1 for contrast in summary.contrasts):
        yield "One seed cannot tell whether a search is better; more seeds can."
    replies = [one.reply for contrast in summary.contrasts for one in answers(contrast)]
    if len(summary.contrasts) > 1 and set(replies) != {"cannot tell"}:
        yield (
            f"There are {len(replies)} answers, each at {summary.confidence:.0%}: some of the "
            "yes and no may be chance."
        )
    for contrast in summary.contrasts:
        yield from _caveats_of(contrast, arms)


def _caveats_of(contrast: Contrast, arms: Mapping[str, ArmSummary]) -> Iterator[str]:
    """What limits the answers about one arm."""
    if not contrast.seeds:
        yield (
            f"{contrast.arm} and {contrast.reference} have no seed in common: nothing can be "
            "compared."
        )
        return
    lengths = [
        _finished_trials(arms[one], contrast.seeds) for one in (contrast.arm, contrast.reference)
    ]
    if lengths[0] != lengths[1]:
        own, other = (", ".join(map(str, each)) for each in lengths)
        yield (
            f"Unequal studies; finished trials by seed: {own} in {contrast.arm}, {other} in "
            f"{contrast.reference}. Equal spend is what the cheaper study spent."
        )
    if any(contrast.diverged):
        yield (
            f"Of the same configurations {contrast.diverged[0]} diverged or failed in "
            f"{contrast.arm} only "
            f"and {contrast.diverged[1]} in {contrast.reference} only: no pair has their ends."
        )
    if not contrast.same_slots:
        yield (
            f"Seconds of {contrast.arm} and {contrast.reference} cannot be compared: "
            f"{_OTHER_SLOTS}."
        )
    pace = contrast.seconds_per_example.value
    if contrast.same_slots and max(pace, 1 / pace if pace else 0.0) > _SUSPECT_PACE:
        yield (
            f"{contrast.arm} took {pace:.2g} times {contrast.reference}'s seconds per example: "
            "if the machine did other work in the meantime, seconds do not compare the arms."
        )


def _finished_trials(arm: ArmSummary, seeds: tuple[int, ...]) -> list[int]:
    """Finished trials of an arm's studies."""
    known = dict(zip(arm.seeds, arm.finished_by_seed, strict=True))
    return [known[seed] for seed in seeds]
