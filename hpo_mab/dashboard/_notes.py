"""The notes that the dashboard shows, of a study and of its pruned trials.

The sections of a study's note on evidence and on suspicious labels have files of their own,
`hpo_mab.dashboard._evidence` and, with its pictures, `hpo_mab.dashboard._files`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hpo_mab._attributes import PRUNED_KEY, REASON_KEY
from hpo_mab._results import Results
from hpo_mab.compare._text import parameter_rows, repeats_text, study_facts, trial_text, twins_text
from hpo_mab.pruners import why_pruned
from hpo_mab.search._confirm import best_first

if TYPE_CHECKING:
    from hpo_mab.storage import Storage, StudyRun

#: Separates our part of a note from the user's.
SEPARATOR = "*Regenerated after each run; your text below this line is kept.*"
_HINTS = (
    "Figures are on the study's first page. In `hpo-mab dashboard` a pruned trial's note has the "
    "reason. A trial's attribute `hpo_mab:slot` is the number of its configuration, which repeated "
    "trials keep. `hpo_mab:paired` says whether the trial may be in a pair of a comparison."
)


def study_note(
    run: StudyRun,
    storage: Storage,
    *,
    test_accuracy: float | None = None,
    confirmed: str = "",
    verdict: str = "",
    compared: str = "",
    is_old: bool = False,
    evidence: str = "",
    examples: str = "",
) -> str:
    """A study's note, in Markdown.

    Args:
        run: The study.
        storage: Where it is stored, for the commands that continue it.
        test_accuracy: Of the best trial's network; None if it was not scored.
        confirmed: From `confirmed_note`; empty if there is none.
        verdict: Of the comparison it belongs to, a line per answer; empty if there is none.
        compared: Path of the page that compares its studies, likewise.
        is_old: Whether trials have ended since the verdict.
        evidence: From `evidence_note`, likewise.
        examples: From `examples_note`, likewise.
    """
    parts = [f"# {escaped(run.name)}", _best_line(run, test_accuracy)]
    if confirmed:
        parts.append(confirmed)
    if verdict:
        lines = "\n".join(f"- {escaped(line)}" for line in verdict.splitlines())
        link = f"[Report of the comparison]({compared}), up to date"
        if is_old:
            link = (
                "Trials have ended since: the verdict and the figures of pairs lack them. The "
                f"[report of the comparison]({compared}) has them."
            )
        parts.append(f"## Verdict\n\n{lines}\n\n{link}")
    if evidence:
        parts.append(evidence)
    if examples:
        parts.append(examples)
    if searched := [(f"`{name}`", *map(escaped, cells)) for name, *cells in parameter_rows(run)]:
        head = ("parameter", "best trial's", "range")
        parts.append(f"## What was searched\n\n{markdown_table(head, searched)}")
    parts += [
        f"## What ran\n\n{markdown_table(('', ''), _fact_rows(run))}",
        _HINTS,
        _next_steps(run, storage),
    ]
    return "\n\n".join(parts)


def escaped(text: str) -> str:
    """A text that Markdown shows as it is."""
    return re.sub(r"([\\`*\[\]<>#$~&])", r"\\\1", text)


def keep_users_part(ours: str, existing: str) -> str:
    """Our new note above the user's text.

    ``existing`` is that text, alone or below an earlier note.
    """
    _, separator, below = existing.partition(SEPARATOR)
    users = below.strip() if separator else existing.strip()
    return f"{ours}\n\n---\n\n{SEPARATOR}\n\n{users}".rstrip() + "\n"


def _best_line(run: StudyRun, test_accuracy: float | None) -> str:
    best = run.best
    if best is None:
        return "No trial is complete yet."
    scored = "" if test_accuracy is None else f", {test_accuracy:.2%} on the test set"
    return f"**Best: {best.value:.2%} validation accuracy** in trial {trial_text(best)}{scored}."


def confirmed_note(run: StudyRun, repeats: Mapping[int, Sequence[float]]) -> str:
    """The configurations that ``hpo-mab confirm`` has trained again, in Markdown.

    ``repeats`` holds their validation accuracies by number of the trial.

    Returns:
        The section; empty if there is no such training.
    """
    candidates = best_first(run.trials, repeats)
    repeated = [candidate for candidate in candidates if candidate.repeats]
    if not repeated:
        return ""
    best = f"Of these, **trial {repeated[0].trial.number}** has the highest mean"
    if not candidates[0].repeats:
        best += f"; trial {candidates[0].trial.number}, which was trained once, may be better"
    rows = [
        (
            trial_text(candidate.trial),
            f"{candidate.trial.value:.2%}",
            repeats_text(candidate.repeats),
            f"{candidate.accuracy:.2%}",
        )
        for candidate in repeated
    ]
    return (
        "## Trained again with other seeds\n\n"
        f"{best}. The best of several means is still a little too high.\n\n"
        + markdown_table(("trial", "value", "trained again", "mean"), rows)
    )


def _fact_rows(run: StudyRun) -> list[tuple[str, str]]:
    results = Results(run.trials)
    counts, without_twins = results.states(twins=True), results.states()
    states = ("complete", "pruned", "fail", "running")
    names = {"fail": "failed"}
    shown = ", ".join(f"{counts[s]} {names.get(s, s)}" for s in states if counts[s])
    shown += twins_text(sum(counts[s] - without_twins[s] for s in states))
    facts = [(label, escaped(text)) for label, text in study_facts(run)]
    return [*facts, ("trials", shown or "none"), *_cost_rows(run)]


def _cost_rows(run: StudyRun) -> list[tuple[str, str]]:
    examples, seconds, saved = run.examples, run.seconds, run.saved_examples
    if examples is None or seconds is None or saved is None:
        return [("spent", f"not known: the curves of {run.missing_curves} trials are missing")]
    share = f"{saved / max(saved + examples, 1):.0%} of what the same trials would have spent"
    return [
        ("spent", f"{examples:,} training examples, {seconds:,.0f} s of training"),
        ("saved by pruning", f"{saved:,} training examples, {share} unpruned"),
    ]


def storage_option(storage: Storage) -> str:
    """``--storage`` of a command, with a space before it; empty where it needs none."""
    from hpo_mab.storage import DEFAULT_URL

    url = str(storage.shown_url)
    # A URL with a password is in HPO_MAB_STORAGE; the option would replace it by one without.
    return "" if url == DEFAULT_URL or "***" in url else f" --storage {shlex.quote(url)}"


def _next_steps(run: StudyRun, storage: Storage) -> str:
    # In a pattern of `hpo-mab report`, these would mean an arm, a database, a set of characters, or
    # a record.
    pattern = re.sub(r"[=#\[]|(?<=\.jso)n$", "?", run.name)
    report = f"hpo-mab report {shlex.quote(pattern)}{storage_option(storage)}"
    text = f"## Next\n\n```bash\n{report}   # one HTML file\n```"
    if run.spec:
        more = f"`--trials {2 * max(len(run.trials), 1)}`"
        more += " and a larger `--budget`" if run.settings.total else ""
        text += f"\n\nTo continue the study, repeat the command that made it with {more}."
    return text


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    # The dashboard sets columns without a gap.
    gap = "\N{EN SPACE} | "
    escaped = [[cell.replace("|", "\\|") for cell in cells] for cells in (head, *rows)]
    lines = [f"| {gap.join(cells)} |" for cells in escaped]
    lines.insert(1, "|---" * len(head) + "|")
    return "\n".join(lines)


def pruning_note(attrs: Mapping[str, Any]) -> str:
    """Why a pruned trial with these user attributes ended, in Markdown; empty if that is not known.

    It is not stored: the dashboard searches all attributes of a study for the note of each trial.
    """
    known = PRUNED_KEY in attrs or REASON_KEY in attrs
    return f"**Pruned**: {escaped(why_pruned(attrs))}" if known else ""
