"""The verdict of a comparison: one interval answers each question."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from hpo_mab.advantage import Estimate
from hpo_mab.compare._records import ArmSummary, ComparisonSummary, Contrast, Currency

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

_NO_PAIRS = (
    "there are no pairs: no configuration with a learning curve was trained by both arms under "
    "their own samplers"
)
_OTHER_SLOTS = "the arms' trials were trained in different numbers of slots or processes"
_OTHER_HARDWARE = "the arms' studies began on different processors or numbers of threads"
_MID_SCHEDULE = "at equal seconds the slower arm is read before the end of its trials"
_CUT_OFF = "its trials take fewer seconds, and what longer ones would reach is not known"

#: Below this ratio of the pairs' seconds an arm is cheaper than the reference.
_CHEAPER = 0.95

#: No sampler makes a step take this many times as long: above it, the machine was busy.
_SUSPECT_PACE = 3.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The answer to one question about an arm.

    The reply is ``"yes"`` if the whole interval lies above zero, and ``"no"`` if it lies below. It
    is ``"cannot tell"`` otherwise, or if something that the interval leaves out may explain the
    difference, see ``reason``. Each question has a difference, the arm's minus the reference's:

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
    """

    arm: str
    reference: str
    question: Question
    currency: Currency | None
    reply: Reply
    estimate: Estimate | None
    reason: str = ""

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
        why = "; ".join(part for part in (self.reason, self._estimate_text()) if part)
        return f"{self.arm}: {self.statement}{at}? {self.shown_reply} ({why})."

    def _estimate_text(self) -> str:
        gain = self.estimate
        if gain is None or math.isnan(gain.value):
            return "" if self.reason else "not measured"
        unit = "pair" if self.question == "learns" else "seed"
        counted = f"{gain.n} {unit}{'' if gain.n == 1 else 's'}"
        interval = (
            f"{gain.confidence:.0%} interval {100 * gain.low:+.2f} to {100 * gain.high:+.2f}"
            if gain.bounded
            else "no interval"
        )
        return f"{100 * gain.value:+.2f} points, {interval}, n = {counted}"

    def to_json(self) -> dict[str, Any]:
        """The answer as JSON values."""
        plain = dataclasses.asdict(self)
        plain["estimate"] = None if self.estimate is None else self.estimate.to_json()
        return {**plain, "text": str(self)}


def answers(contrast: Contrast) -> tuple[Answer, ...]:
    """The answers about one arm: each question with each of its currencies.

    One seed gives no answer about searches. Seconds give none if the arms were trained in different
    numbers of slots or processes or on different hardware, or if both arms of all pairs are the
    same trainings. For pairs, a yes or no at equal seconds must also be the reply at equal
    examples. At equal seconds the slower arm's learning rate has not decayed yet, and its accuracy
    may be measured on fewer validation images.
    """
    return tuple(_answer(contrast, question, currency) for question, currency in _QUESTIONS)


def _answer(contrast: Contrast, question: Question, currency: Currency | None) -> Answer:
    estimate = _estimate_of(contrast, question, currency)
    reason = _why_no_answer(contrast, question, currency, estimate)
    return Answer(
        arm=contrast.arm,
        reference=contrast.reference,
        question=question,
        currency=currency,
        reply="cannot tell" if reason else _reply(estimate),
        estimate=estimate,
        reason=reason,
    )


def _why_no_answer(
    contrast: Contrast, question: Question, currency: Currency | None, estimate: Estimate | None
) -> str:
    """Why a question has no answer, whatever the interval; empty if it may have one."""
    if currency == "seconds" and (why := _why_no_seconds(contrast)):
        return why
    if _all_zero(estimate):
        return "all differences are 0"
    if question == "learns":
        return _why_not_by_pairs(contrast, _reply(estimate), at_seconds=currency == "seconds")
    # Seeds in which the arms cannot be compared would be left out.
    of = len(contrast.seeds)
    if estimate is not None and 0 < estimate.n < of:
        return f"not measured in {of - estimate.n} of {of} seeds"
    return ""


def _why_no_seconds(contrast: Contrast) -> str:
    """Why the arms' seconds cannot be compared; empty if they can."""
    if not contrast.same_slots:
        return _OTHER_SLOTS
    return "" if contrast.same_hardware else _OTHER_HARDWARE


def _why_not_by_pairs(contrast: Contrast, reply: Reply, *, at_seconds: bool) -> str:
    """Why a reply of pairs does not count; empty if it does."""
    if contrast.seeds and not contrast.pairs:
        return _NO_PAIRS
    at_examples = _estimate_of(contrast, "learns")
    # At equal seconds, equal trainings differ by the noise of the clock alone.
    if _all_zero(at_examples):
        return "the same trainings in both arms"
    if reply == "cannot tell":
        return ""
    if contrast.stopped:
        return (
            f"a pruner stopped {contrast.stopped} of the pairs; those left are a biased selection"
        )
    in_arm, in_reference = contrast.diverged
    # The pairs leave out configurations that diverged, which would count against their arm.
    ahead, behind = (in_arm, in_reference) if reply == "yes" else (in_reference, in_arm)
    if ahead > behind:
        return (
            f"{in_arm} configurations diverged or failed in {contrast.arm}, {in_reference} in "
            f"{contrast.reference}"
        )
    if _reply(at_examples) != reply:
        return _MID_SCHEDULE
    cheaper = contrast.pair_cost < _CHEAPER
    return _CUT_OFF if at_seconds and reply == "no" and cheaper else ""


def _all_zero(estimate: Estimate | None) -> bool:
    """Whether all observations are zero, as they are if both arms train the same."""
    if estimate is None:
        return False
    return estimate.value == 0.0 and estimate.n > 1 and not estimate.bounded


def _estimate_of(
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
        yield "One seed cannot tell whether a search is better; more seeds may."
    replies = [one.reply for contrast in summary.contrasts for one in answers(contrast)]
    if len(summary.contrasts) > 1 and set(replies) != {"cannot tell"}:
        yield (
            f"There are {len(replies)} answers, each with a {summary.confidence:.0%} interval: "
            "some yes and no may be chance."
        )
    for arm in summary.arms:
        if arm.retrained_diverged:
            yield (
                f"Of the trainings of {arm.arm}'s best configurations {arm.retrained_diverged} "
                "diverged; each counts as a test accuracy of 0."
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
    in_arm, in_reference = (
        _finished_trials(arms[name], contrast.seeds) for name in (contrast.arm, contrast.reference)
    )
    if in_arm != in_reference:
        yield (
            f"Unequal studies; finished trials by seed: {in_arm} in {contrast.arm}, "
            f"{in_reference} in {contrast.reference}. Best validation accuracies are compared "
            "after what the cheaper study spent; hyperparameters as each study ended."
        )
    elif contrast.retrained_gain and abs(contrast.examples - 1) > 0.1:
        yield (
            f"{contrast.arm} spent {contrast.examples:.2f} times {contrast.reference}'s examples; "
            "hyperparameters are compared as each study ended."
        )
    if contrast.differs:
        yield (
            f"{contrast.arm} and {contrast.reference} also differ in "
            f"{', '.join(contrast.differs)}: the answers are about these, too."
        )
    if any(contrast.diverged):
        yield (
            f"Of the same configurations {contrast.diverged[0]} diverged or failed in "
            f"{contrast.arm} only and {contrast.diverged[1]} in {contrast.reference} only. They "
            "are in no pair at the end of a trial."
        )
    why = _why_no_seconds(contrast)
    if why:
        yield f"Seconds of {contrast.arm} and {contrast.reference} cannot be compared: {why}."
    pace = contrast.seconds_per_example.value
    if not why and max(pace, 1 / pace if pace else 0.0) > _SUSPECT_PACE:
        yield (
            f"{contrast.arm} took {pace:.2g} times {contrast.reference}'s seconds per example: "
            "if the machine did other work in the meantime, seconds do not compare the arms."
        )


def _finished_trials(arm: ArmSummary, seeds: tuple[int, ...]) -> str:
    """Finished trials of an arm's studies, by seed."""
    finished = dict(zip(arm.seeds, arm.finished_by_seed, strict=True))
    return ", ".join(str(finished[seed]) for seed in seeds)
