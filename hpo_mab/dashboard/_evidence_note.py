"""The part of a study's note on its evidence: what was measured, and what was made of it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import optuna

from hpo_mab._attributes import EVIDENCE_KEY
from hpo_mab.advantage import Evidence, Rung
from hpo_mab.compare._words import coefficient, points, ratio
from hpo_mab.pruners import AdvantagePruner
from hpo_mab.pruners._placement import Placement, place
from hpo_mab.search import create_pruner
from hpo_mab.search._components import always_averages
from hpo_mab.search._pilot import AUTO, Choice, stored_choice


def evidence_note(study: optuna.Study, spec: Mapping[str, Any]) -> str:
    """What a study's evidence says and what the pruner and ``auto`` made of it, in Markdown.

    Args:
        study: The study.
        spec: Its definition.

    Returns:
        The section; empty for a study that does not ask for evidence and has none.
    """
    stored = study.user_attrs.get(EVIDENCE_KEY)
    evidence = None if stored is None else Evidence.from_json(stored)
    parts = []
    if spec.get("sampler", {}).get("kind") == AUTO:
        parts.append(_choice(stored_choice(study), evidence))
    if _prunes_by_evidence(spec):
        parts.append(_pruning(evidence, spec))
    if evidence is not None:
        parts.append(_measured(evidence))
    return "\n\n".join(["## Evidence", *parts]) if parts else ""


def _prunes_by_evidence(spec: Mapping[str, Any]) -> bool:
    uniform = spec.get("sampler", {}).get("kind") == "uniform"
    return spec.get("pruner", {}).get("kind") == "advantage" and not uniform


def _choice(choice: Choice | None, evidence: Evidence | None) -> str:
    if choice is None:
        return "**`auto` has not chosen yet**: the pilot is not done."
    text = (
        f"**`auto` went on with `{choice.sampler}`** after the pilot, once and for all. "
        f"Why: {choice.why}."
    )
    if choice.evidence is not None:
        text += f" It rests on evidence `{choice.evidence}`"
        later = evidence is not None and evidence.digest != choice.evidence
        text += "; what is shown below was measured later, with more pairs." if later else "."
    return text


def _pruning(evidence: Evidence | None, spec: Mapping[str, Any]) -> str:
    if evidence is None:
        return (
            "**The pruner has no evidence yet**: it prunes as successive halving until enough "
            "configurations are complete under both samplers."
        )
    full = int(spec["budget"]["evaluations"])
    steps = itertools.takewhile(lambda step: step <= full, _uniform_steps(spec, full))
    rungs = [place(step, full=full, evidence=evidence) for step in steps]
    moved = sum(rung.step < rung.uniform for rung in rungs)
    made = (
        f"decides {moved} of {len(rungs)} rungs earlier than successive halving would"
        if moved
        else "moves no rung: it prunes as successive halving"
    )
    rows = [
        (
            str(number),
            str(rung.uniform),
            str(rung.step),
            _because(evidence.rung(rung.uniform / full), rung, evidence),
        )
        for number, rung in enumerate(rungs)
    ]
    head = ("rung", "lies at evaluation", "is decided at", "because")
    return f"**By its evidence the pruner {made}.**\n\n{_table(head, rows)}"


def _uniform_steps(spec: Mapping[str, Any], full: int) -> Iterator[int]:
    """Evaluations of the rungs under uniform training, endless, as the study's pruner has them."""
    # Where its evidence came from does not matter here, and need not be there any more.
    aside = ("kind", "evidence", "reference")
    options = {key: value for key, value in spec["pruner"].items() if key not in aside}
    averaged = always_averages(spec.get("training", {}))
    made = create_pruner("advantage", options, evaluations=full, averaged=averaged)
    pruner = cast(AdvantagePruner, made)
    steps = (pruner.uniform_step(rung, full=full) for rung in itertools.count())
    return (step for step in steps if step is not None)


def _because(known: Rung | None, placed: Placement, evidence: Evidence) -> str:
    need = f"its interval must not reach below {-evidence.margin:g}"
    if known is None or known.budget <= evidence.budgets[0]:
        return "nothing earlier was measured"
    if known.fidelity is None:
        return "at no earlier evaluation is the bandit shown to be as far as uniform is here"
    fidelity = coefficient(known.fidelity)
    if placed.step == placed.uniform:
        return f"the earlier ranking is not shown to be as good: tau {fidelity}, {need}"
    return (
        f"evaluation {placed.step} is worth {placed.equivalent:.1f} of uniform training and ranks "
        f"as well: tau {fidelity}, {need}"
    )


def _measured(evidence: Evidence) -> str:
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
        f"Measured on {evidence.pairs} pairs{_source(evidence)}, {confidence} intervals in "
        f"brackets (evidence `{evidence.digest}`):\n\n{_table(head, rows)}\n\n"
        "**D**: accuracy of the bandit minus uniform's. **k**: how many times the budget uniform "
        "needs for the same accuracy (>= where it never got there; inf: not seen). **f**: how well "
        "the bandit's early accuracies rank configurations as uniform's final ones do (Kendall's "
        "tau-b), minus how well uniform's early ones do."
    )


def _source(evidence: Evidence) -> str:
    if evidence.source == "pilot":
        return " of this study's pilot"
    return f" (from: {evidence.source})" if evidence.source else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    # The dashboard sets columns without a gap.
    gap = "\N{EN SPACE} | "
    lines = [f"| {gap.join(cells)} |" for cells in (head, *rows)]
    lines.insert(1, "|---" * len(head) + "|")
    return "\n".join(lines)
