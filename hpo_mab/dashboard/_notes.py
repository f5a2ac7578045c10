"""The notes that the dashboard shows: of a study, its evidence, and its trials.

The note on suspicious labels is with its pictures in `hpo_mab.dashboard._files`.
"""

from __future__ import annotations

import bisect
import collections
import itertools
import math
import re
import shlex
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import optuna

from hpo_mab._attributes import (
    EVIDENCE_KEY,
    FIDELITY_KEY,
    GIVEN_KEY,
    PRUNED_KEY,
    REASON_KEY,
    UNIFORM,
    StudySettings,
)
from hpo_mab._plan import Plan
from hpo_mab.advantage import Evidence, Rung
from hpo_mab.compare._tables import coefficient, points, ratio
from hpo_mab.compare._text import parameter, search_space, study_facts
from hpo_mab.pruners import AdvantagePruner, RungFidelity, why_pruned
from hpo_mab.pruners._advantage_pruner import Placement, place
from hpo_mab.search import create_pruner
from hpo_mab.search._choice import Choice, stored_choice
from hpo_mab.search._components import AUTO, always_averages

if TYPE_CHECKING:
    from hpo_mab.storage import Storage, StudyRun, TrialRun
    from hpo_mab.training import Evaluation

#: Separates our part of a note from the user's.
SEPARATOR = "*Regenerated after each run; your text below this line is kept.*"
#: That of earlier versions.
_EARLIER = "*hpo-mab writes this note anew after each run and keeps what is below this line.*"
#: Evaluations in a trial's note.
_ROWS = 10


def study_note(
    run: StudyRun,
    storage: Storage,
    *,
    test_accuracy: float | None = None,
    verdict: str = "",
    compared: str = "",
    evidence: str = "",
    examples: str = "",
) -> str:
    """A study's note, in Markdown.

    Args:
        run: The study.
        storage: Where it is stored, for the commands that continue it.
        test_accuracy: Of the best trial's network; None if it was not scored.
        verdict: Of the comparison it belongs to, a line per answer; empty if there is none.
        compared: Path of the page that compares its studies, likewise.
        evidence: From `evidence_note`; empty if there is none.
        examples: From `examples_note`, likewise.
    """
    parts = [f"# {_escaped(run.name)}", _best_line(run, test_accuracy)]
    if verdict:
        lines = "\n".join(f"- {line}" for line in verdict.splitlines())
        parts.append(f"## Verdict\n\n{lines}\n\n[Report of the comparison]({compared})")
    if evidence:
        parts.append(evidence)
    if examples:
        parts.append(examples)
    searched = _search_table(run)
    if searched:
        parts.append(f"## What was searched\n\n{searched}")
    parts += [
        f"## What ran\n\n{_fact_table(_fact_rows(run))}",
        _reading_hints(),
        _next_commands(run, storage),
    ]
    return "\n\n".join(parts)


def _escaped(text: str) -> str:
    """A text that Markdown shows as it is."""
    return re.sub(r"([\\`*\[\]<>#])", r"\\\1", text)


def keep_users_part(ours: str, existing: str) -> str:
    """Our new note above what the user has written.

    Args:
        ours: The new note.
        existing: The note as it is: an earlier one of ours with or without additions, or a user's.
    """
    _, found, below = existing.replace(_EARLIER, SEPARATOR).partition(SEPARATOR)
    users = below.strip() if found else existing.strip()
    return f"{ours}\n\n---\n\n{SEPARATOR}\n\n{users}".rstrip() + "\n"


def _best_line(run: StudyRun, test_accuracy: float | None) -> str:
    best = run.best
    if best is None:
        return "No trial is complete yet."
    scored = "" if test_accuracy is None else f", {test_accuracy:.2%} on the test set"
    return f"**Best: {best.value:.2%} validation accuracy** in trial {best.number}{scored}."


def _search_table(run: StudyRun) -> str:
    """Every searched parameter with its range and its best value; empty if there is none."""
    best = {} if run.best is None else run.best.params
    ranges = search_space(run.settings)
    rows = [
        (f"`{name}`", ranges.get(name, "-"), parameter(best[name]) if name in best else "-")
        for name in [*ranges, *sorted(best.keys() - ranges.keys())]
    ]
    return markdown_table(("parameter", "range", "best trial's"), rows) if rows else ""


def _fact_rows(run: StudyRun) -> list[tuple[str, str]]:
    counts = Plan(run.trials).states(twins=True)
    states = ("complete", "pruned", "fail", "running")
    shown = ", ".join(f"{counts[state]} {state}" for state in states if counts[state])
    facts = [(label, _escaped(text)) for label, text in study_facts(run)]
    return [*facts, ("trials", shown or "none"), *_cost_rows(run)]


def _cost_rows(run: StudyRun) -> list[tuple[str, str]]:
    examples, seconds, saved = run.examples, run.seconds, run.saved_examples
    if examples is None or seconds is None or saved is None:
        return [("spent", f"not known: the curves of {run.missing_curves} trials are missing")]
    share = saved / max(saved + examples, 1)
    return [
        ("spent", f"{examples:,} training examples, {seconds:,.0f} s of training"),
        ("saved by pruning", f"{saved:,} training examples, {share:.0%} of an unpruned study"),
    ]


def _reading_hints() -> str:
    return (
        "Figures are on the study's first page. A complete trial's note has its learning curve, a "
        "pruned trial's the reason. A trial's attribute `hpo_mab:slot` is its place in the plan. "
        "`hpo_mab:paired` says whether every arm of a comparison trains its configuration."
    )


def _next_commands(run: StudyRun, storage: Storage) -> str:
    from hpo_mab.search import builtin_names
    from hpo_mab.storage import DEFAULT_URL

    url = str(storage.shown_url)
    where = "" if url == DEFAULT_URL else f" --storage {shlex.quote(url)}"
    name = run.settings.name
    # The path of a user's own definition is not stored.
    name = name if name in builtin_names() else f"{name}.toml"
    more = 2 * max(len(run.trials), 1)
    commands = [f"hpo-mab report {shlex.quote(run.name)}{where}   # one HTML file"]
    if run.spec:
        commands = [
            f"hpo-mab run {shlex.quote(name)}{where} --trials {more}   # continue",
            f"hpo-mab compare {shlex.quote(name)}{where}   # against uniform sampling",
            *commands,
        ]
    return "## Next\n\n```bash\n" + "\n".join(commands) + "\n```"


def _fact_table(rows: Sequence[tuple[str, str]]) -> str:
    escaped = [(label, text.replace("|", "\\|")) for label, text in rows]
    body = "\n".join(f"| {label} | {text} |" for label, text in escaped)
    return f"| | |\n|---|---|\n{body}"


def evidence_note(study: optuna.Study, settings: StudySettings) -> str:
    """A study's evidence and what the pruner and ``auto`` decided by it, in Markdown.

    The fidelity that was measured in the study is part of it.

    Args:
        study: The study.
        settings: Its definition.

    Returns:
        The section; empty for a study that neither uses evidence nor has any.
    """
    stored = study.user_attrs.get(EVIDENCE_KEY)
    evidence = None if stored is None else Evidence.from_json(stored)
    parts = []
    if settings.sampler.kind == AUTO:
        unused = study.user_attrs.get(GIVEN_KEY, {}).get("unused", "")
        parts.append(_choice_text(stored_choice(study), evidence, unused))
    moved, text = _fidelity_text(study.user_attrs.get(FIDELITY_KEY), settings)
    # Evidence moves no rung that fidelity has moved.
    if _prunes_by_evidence(settings) and not moved:
        parts.append(_rungs_text(evidence, settings))
    if text:
        parts.append(text)
    if evidence is not None and evidence.pairs:
        parts.append(_measured_text(evidence))
    return "\n\n".join(["## Evidence", *parts]) if parts else ""


def _prunes_by_evidence(settings: StudySettings) -> bool:
    return settings.pruner.kind == "advantage" and settings.sampler.kind != UNIFORM


def _fidelity_text(stored: Any, settings: StudySettings) -> tuple[bool, str]:
    """Whether the study's fidelity has moved the first rung, and what was measured."""
    pruner = settings.pruner
    if stored is None or pruner.kind != "advantage" or not pruner.options.get("fidelity", True):
        return False, ""
    found = RungFidelity.from_json(stored)
    placed = next(_uniform_steps(settings, found.full))
    first = found.first_rung(placed)
    made = (
        f"**The first rung lies at evaluation {placed}**"
        if first == placed
        else f"**The first rung was moved from evaluation {placed} to {first}**"
    )
    rows = [(str(step), coefficient(tau)) for step, tau in zip(found.steps, found.tau, strict=True)]
    return first != placed, (
        f"{made} by the ranking of the study's first {found.trials} complete trials, which were "
        "never pruned. A rung moves later if the interval of Kendall's tau-b between their values "
        "there and their final values reaches below 0.2.\n\n"
        + markdown_table(("evaluation", "tau-b with the final value"), rows)
    )


def _choice_text(choice: Choice | None, evidence: Evidence | None, unused: str) -> str:
    if choice is None:
        text = "**`auto` has not chosen yet**: the race is not over"
        return f"{text}. Its evidence: {_escaped(unused)}." if unused else f"{text}."
    when = "from the start" if choice.source else "for the rest of the study"
    verb = "took" if choice.source else "chose"
    text = f"**`auto` {verb} `{choice.sampler}`** {when}. Why: {choice.why}."
    if choice.evidence is not None:
        text += f" It rests on evidence `{choice.evidence}`"
        later = evidence is not None and evidence.digest != choice.evidence
        text += "; what is shown below was measured later, with more pairs." if later else "."
    if not choice.standings:
        return text
    rows = [
        (
            one.name,
            str(one.examples.n),
            points(one.examples),
            points(one.seconds),
            "" if math.isnan(one.cost) else f"{one.cost:.2f}",
        )
        for one in choice.standings
    ]
    head = ("sampler", "pairs", "at equal examples", "at equal seconds", "seconds a trial")
    whose = "there, none here" if choice.source else "on top of the study's trials"
    return (
        f"{text} The race took {choice.twins} trainings {whose}: "
        f"{choice.examples:,} examples, {choice.seconds:,.1f} seconds.\n\n"
        f"{markdown_table(head, rows)}\n\n"
        "Points are accuracy minus that of uniform sampling when a sampler left the race, with the "
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
            _rung_reason(evidence.rung(rung.uniform / full), rung, evidence),
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
    steps = (pruner.uniform_step(rung, full=full) for rung in itertools.count())
    return (step for step in steps if step is not None)


def _rung_reason(known: Rung | None, placed: Placement, evidence: Evidence) -> str:
    need = f"its interval must not reach below {-evidence.margin:g}"
    if known is None or known.budget <= evidence.budgets[0]:
        return "nothing earlier was measured"
    if known.fidelity is None:
        return "no earlier evaluation of the bandit is shown to equal uniform's here"
    fidelity = coefficient(known.fidelity)
    if placed.step == placed.uniform:
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
        "**D**: accuracy of the sampler minus uniform's. **k**: how many times the budget uniform "
        "needs for the same accuracy (>=: it did not reach it; inf: not seen). **f**: Kendall's "
        "tau-b of the sampler's early accuracies with uniform's final ones, minus that of the "
        "early ones of uniform."
    )


def _source_text(evidence: Evidence) -> str:
    if evidence.source == "pilot":
        return " of this study's pilot"
    return f" (from: {evidence.source})" if evidence.source else ""


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    # The dashboard sets columns without a gap.
    gap = "\N{EN SPACE} | "
    lines = [f"| {gap.join(cells)} |" for cells in (head, *rows)]
    lines.insert(1, "|---" * len(head) + "|")
    return "\n".join(lines)


def curve_notes(run: StudyRun) -> dict[int, str]:
    """The learning curve of each complete trial of a study, in Markdown, by trial number.

    Args:
        run: The study.
    """
    return {
        trial.number: _curve_note(trial)
        for trial in run.trials
        if trial.state == "complete" and trial.curve
    }


def _curve_note(trial: TrialRun) -> str:
    places = np.linspace(0, len(trial.curve) - 1, min(len(trial.curve), _ROWS)).round().astype(int)
    rows = [
        (
            str(point.index),
            f"{point.examples:,}",
            f"{point.accuracy:.2%}",
            f"{point.train_loss:.4g}",
            "averaged" if point.averaged else "trained",
        )
        for point in (trial.curve[place] for place in places)
    ]
    head = ("evaluation", "training examples", "validation accuracy", "training loss", "weights")
    return (
        f"**Complete: {trial.value:.2%} validation accuracy** after {trial.examples:,} training "
        f"examples, {trial.seconds:,.1f} s of training.\n\n{markdown_table(head, rows)}"
    )


def pruning_notes(run: StudyRun) -> dict[int, str]:
    """Why each pruned trial of a study ended, in Markdown, by trial number.

    Args:
        run: The study.
    """
    earlier: dict[int, list[float]] = collections.defaultdict(list)
    notes = {}
    for trial in run.trials:
        if trial.state == "pruned":
            notes[trial.number] = _pruning_note(run, trial, earlier)
        # After its own note: a trial is compared with earlier ones only.
        for evaluation in trial.curve:
            bisect.insort(earlier[evaluation.index], evaluation.accuracy)
    return notes


def _pruning_note(run: StudyRun, trial: TrialRun, earlier: dict[int, list[float]]) -> str:
    reason = trial.attrs.get(REASON_KEY)
    if not trial.curve:
        return f"**Pruned before its first evaluation.**\n\n{reason or ''}".strip()
    last = trial.curve[-1]
    total = (run.settings.evaluations or 0) * trial.budgets or "?"
    whole = run.trial_examples * trial.budgets
    lines = [
        f"**Pruned at evaluation {last.index} of {total}**, after {last.examples:,} of "
        f"{whole:,} training examples ({last.examples / whole:.0%}).",
        f"Validation accuracy there{_weights_evaluated(last)}: {last.accuracy:.2%}. "
        + _rank_text(last.accuracy, earlier[last.index]),
    ]
    why = why_pruned(trial.attrs, pruner=run.settings.pruner.kind)
    lines.append(f"Why: {_escaped(why)}")
    if PRUNED_KEY in trial.attrs:
        lines.append("The first configurations of a study are never pruned, and are not judged.")
    return "\n\n".join(lines)


def _weights_evaluated(last: Evaluation) -> str:
    return " of averaged weights" if last.averaged else ""


def _rank_text(own: float, others: list[float]) -> str:
    """Where an accuracy stands among those of earlier trials at the same evaluation, sorted."""
    if not others:
        return "No earlier trial reached this evaluation."
    # `others` is sorted, so these are the places after all values up to its own.
    better = len(others) - bisect.bisect_right(others, own)
    return (
        f"Of the {len(others)} earlier trials that reached this evaluation, {better} were better "
        f"(median {np.median(others):.2%}, best {others[-1]:.2%})."
    )
