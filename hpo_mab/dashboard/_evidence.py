"""The section of a study's note on its evidence: what its pruner and ``auto`` decided by it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any, cast

import optuna

from hpo_mab._attributes import (
    AUTO,
    CHOICE_KEY,
    EVIDENCE_KEY,
    FIDELITY_KEY,
    GIVEN_KEY,
    RACE_KEY,
    UNIFORM,
)
from hpo_mab._stored_settings import StudySettings
from hpo_mab.advantage import Evidence, Rung
from hpo_mab.compare._tables import coefficient, points, ratio
from hpo_mab.dashboard._notes import escaped, markdown_table
from hpo_mab.pruners import AdvantagePruner, RungFidelity
from hpo_mab.pruners._advantage_pruner import Placement, place
from hpo_mab.search._choice import Choice, stored_choice
from hpo_mab.search._pruners import always_averages, create_pruner


def evidence_note(study: optuna.Study, settings: StudySettings) -> str:
    """A study's evidence and what the pruner and ``auto`` decided by it, in Markdown.

    The fidelity that was measured in the study is part of it.

    Returns:
        The section; empty for a study that neither uses evidence nor has any.
    """
    stored = study.user_attrs.get(EVIDENCE_KEY)
    evidence = None if stored is None else Evidence.from_json(stored)
    parts = []
    choice = stored_choice(study)
    # A study of `TrainingObjective` has no definition.
    if settings.sampler.kind == AUTO or study.user_attrs.keys() & {CHOICE_KEY, RACE_KEY}:
        unused = study.user_attrs.get(GIVEN_KEY, {}).get("unused", "")
        parts.append(_choice_text(choice, evidence, unused))
    moved, text = _fidelity_text(study.user_attrs.get(FIDELITY_KEY), settings)
    # Evidence moves no rung that fidelity has moved, and none of uniform trials.
    uniform = choice is not None and choice.sampler == UNIFORM
    by_evidence = settings.pruner.kind == "advantage" and settings.sampler.kind != UNIFORM
    if by_evidence and not moved and not uniform:
        parts.append(_rungs_text(evidence, settings))
    if text:
        parts.append(text)
    if evidence is not None and evidence.pairs:
        parts.append(_measured_text(evidence))
    return "\n\n".join(["## Evidence", *parts]) if parts else ""


def _fidelity_text(stored: Any, settings: StudySettings) -> tuple[bool, str]:
    """Whether the study's fidelity has moved the first rung, and what was measured."""
    pruner = settings.pruner
    if stored is None or pruner.kind != "advantage" or not pruner.options.get("fidelity", True):
        return False, ""
    fidelity = RungFidelity.from_json(stored)
    placed = next(_uniform_steps(settings, fidelity.full))
    if placed not in fidelity.steps:
        where = f"**The first rung lies at evaluation {placed}**"
        return False, f"{where}: the ranking was not measured there."
    first = fidelity.first_rung(placed)
    made = (
        f"**The first rung lies at evaluation {placed}**"
        if first == placed
        else f"**The first rung was moved from evaluation {placed} to {first}**"
    )
    rows = [(str(step), coefficient(fidelity.at(step))) for step in fidelity.steps]
    return first != placed, (
        f"{made} by the ranking of the study's first {fidelity.trials} complete trials, which were "
        "never pruned. A rung moves later if the 80% interval of Kendall's tau-b between their "
        "values there and their final values reaches below 0.2.\n\n"
        + markdown_table(("evaluation", "tau-b with the final value"), rows)
    )


def _choice_text(choice: Choice | None, evidence: Evidence | None, unused: str) -> str:
    if choice is None:
        text = "**`auto` has not chosen yet**: the race is not over"
        return f"{text}. Its evidence: {escaped(unused)}." if unused else f"{text}."
    when = "from the start" if choice.source else "for the rest of the study"
    verb = "took" if choice.source else "chose"
    text = f"**`auto` {verb} `{choice.sampler}`** {when}. Why: {escaped(choice.why)}."
    if choice.evidence is not None:
        text += f" It rests on evidence `{choice.evidence}`"
        later = evidence is not None and evidence.digest != choice.evidence
        text += "; what is shown below was measured later, with more pairs." if later else "."
    if not choice.standings:
        return text
    rows = [
        (
            standing.name,
            str(standing.examples.n),
            points(standing.examples),
            points(standing.seconds),
            "" if math.isnan(standing.cost) else f"{standing.cost:.2f}",
        )
        for standing in choice.standings
    ]
    head = ("sampler", "pairs", "at equal examples", "at equal seconds", "seconds a trial")
    whose = "in that study, none in this one" if choice.source else "on top of the study's trials"
    return (
        f"{text} The race took {choice.twins} trainings {whose}: "
        f"{choice.examples:,} examples, {choice.seconds:,.1f} seconds.\n\n"
        f"{markdown_table(head, rows)}\n\n"
        "Points are the centre of the pairs' differences of accuracy from uniform sampling when a "
        f"sampler left the race, with the {100 * choice.standings[0].examples.confidence:.4g}% "
        "interval of the signed-rank test. Seconds are a multiple of those of uniform sampling."
    )


def _rungs_text(evidence: Evidence | None, settings: StudySettings) -> str:
    full = settings.evaluations
    if evidence is None or full is None:
        return (
            "**The pruner has no evidence yet**: it prunes as successive halving until enough "
            "configurations are complete under both samplers."
        )
    # Rungs after the last evaluation are never reached.
    steps = itertools.takewhile(lambda step: step <= full, _uniform_steps(settings, full))
    rungs = [place(step, full=full, evidence=evidence) for step in steps]
    moved = sum(rung.step < rung.uniform_step for rung in rungs)
    made = (
        f"decides {moved} of {len(rungs)} rungs earlier than successive halving would"
        if moved
        else "moves no rung: it prunes as successive halving"
    )
    rows = [
        (
            str(number),
            str(rung.uniform_step),
            str(rung.step),
            _rung_reason(evidence.rung(rung.uniform_step / full), rung, evidence),
        )
        for number, rung in enumerate(rungs)
    ]
    head = ("rung", "lies at evaluation", "is decided at", "because")
    return f"**By its evidence the pruner {made}.**\n\n{markdown_table(head, rows)}"


def _uniform_steps(settings: StudySettings, full: int) -> Iterator[int]:
    """Evaluations of the rungs under uniform training, endless, as the study's pruner has them."""
    # Where the evidence came from does not matter here; its file may be missing.
    aside = ("evidence", "reference")
    options = {key: value for key, value in settings.pruner.options.items() if key not in aside}
    averaged = always_averages(settings.average)
    made = create_pruner("advantage", options, evaluations=full, averaged=averaged)
    pruner = cast(AdvantagePruner, made)
    return map(pruner.uniform_step, itertools.count())


def _rung_reason(rung: Rung | None, placed: Placement, evidence: Evidence) -> str:
    need = f"its interval must not reach below {-evidence.margin:g}"
    if rung is None or rung.budget <= evidence.budgets[0]:
        return "nothing earlier was measured"
    if rung.fidelity is None:
        return "no earlier evaluation of the bandit is shown to equal uniform's here"
    fidelity = coefficient(rung.fidelity)
    if rung.moved and placed.step == placed.uniform_step:
        return "a trial of this study is not evaluated earlier"
    if placed.step == placed.uniform_step:
        return f"the earlier ranking is not shown to be as good: tau {fidelity}, {need}"
    return (
        f"evaluation {placed.step} is worth {placed.equivalent:.1f} of uniform training and ranks "
        f"as well: tau {fidelity}, {need}"
    )


def _measured_text(evidence: Evidence) -> str:
    rows = [
        (f"{100 * share:.3g}%", points(ahead), ratio(faster), coefficient(agreement), str(ahead.n))
        for share, ahead, faster, agreement in zip(
            evidence.budgets,
            evidence.advantage,
            evidence.acceleration,
            evidence.fidelity,
            strict=True,
        )
    ]
    head = ("share of a trial", "D, points", "k", "f, difference of tau", "pairs")
    confidence = f"{evidence.advantage[0].confidence:.0%}"
    return (
        f"Measured on {evidence.pairs} pairs{_source_text(evidence)}, {confidence} intervals in "
        f"brackets (evidence `{evidence.digest}`):\n\n{markdown_table(head, rows)}\n\n"
        "**D**: accuracy of the sampler minus uniform's. **k**: uniform's budget for the same "
        "accuracy, divided by the sampler's (>=: uniform did not reach it; inf: no upper bound). "
        "**f**: Kendall's tau-b of the sampler's early accuracies with its final ones, minus "
        "uniform's."
    )


def _source_text(evidence: Evidence) -> str:
    if evidence.source in ("pilot", "race"):
        return f" of this study's {evidence.source}"
    return f" (from: {escaped(evidence.source)})" if evidence.source else ""
