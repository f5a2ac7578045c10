"""The note of a study: what ran, what came out, how to go on."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hpo_mab.compare._words import parameter, weights_evaluated

if TYPE_CHECKING:
    from hpo_mab.storage import Storage, StudyRun

#: Separates our part of a note, which every run writes anew, from the user's.
SEPARATOR = "*hpo-mab writes this note anew after each run and keeps what is below this line.*"


def study_note(
    run: StudyRun,
    storage: Storage,
    *,
    test_accuracy: float | None = None,
    verdict: str = "",
    compared: str = "",
    evidence: str = "",
) -> str:
    """A study's note, in Markdown.

    Args:
        run: The study.
        storage: Where it is stored, for the commands that go on with it.
        test_accuracy: Of the best trial's network; None if it was not scored.
        verdict: Of the comparison it belongs to, a line an arm; empty if there is none.
        compared: Path of the dashboard's page that compares its studies, likewise.
        evidence: From `evidence_note`; empty if there is none.
    """
    parts = [f"# {_plain(run.name)}", _headline(run, test_accuracy)]
    if verdict:
        lines = "\n".join(f"- {line}" for line in verdict.splitlines())
        parts.append(f"## Verdict\n\n{lines}\n\n[The studies side by side]({compared})")
    if evidence:
        parts.append(evidence)
    parts += [f"## What ran\n\n{_table(_facts(run))}", _how_to_read(), _next(run, storage)]
    return "\n\n".join(parts)


def _plain(text: str) -> str:
    """A text that Markdown shows as it is."""
    return re.sub(r"([\\`*\[\]<>#])", r"\\\1", text)


def keep_users_part(ours: str, existing: str) -> str:
    """Our new note above what the user has written.

    Args:
        ours: The new note.
        existing: The note as it is: an earlier one of ours with or without additions, or a user's.
    """
    _, found, below = existing.partition(SEPARATOR)
    users = below.strip() if found else existing.strip()
    return f"{ours}\n\n---\n\n{SEPARATOR}\n\n{users}".rstrip() + "\n"


def _headline(run: StudyRun, test_accuracy: float | None) -> str:
    best = run.best
    if best is None:
        return "No trial is complete yet."
    scored = "" if test_accuracy is None else f", {test_accuracy:.2%} on the test set"
    params = ", ".join(f"`{name} = {parameter(value)}`" for name, value in best.params.items())
    return f"**Best: {best.value:.2%} validation accuracy** in trial {best.number}{scored}" + (
        f", with {params}." if params else "."
    )


def _facts(run: StudyRun) -> list[tuple[str, str]]:
    spec = run.spec
    states = ("complete", "pruned", "fail", "running")
    counts = {state: sum(trial.state == state for trial in run.trials) for state in states}
    search = spec.get("search", {})
    return [
        ("data", _section(spec, "data", hide=("root", "download"))),
        ("network", _section(spec, "model")),
        ("batch sampler", _section(spec, "sampler")),
        ("optimiser", _section(spec, "optimizer")),
        ("budget of a trial", f"{run.trial_examples:,} training examples"),
        ("weights evaluated", weights_evaluated([run])),
        (
            "search",
            f"{search.get('sampler', '')}, seed {run.seed}; the first {search.get('initial', 0)} "
            "configurations are fixed by the seed and never pruned",
        ),
        ("pruner", _section(spec, "pruner")),
        (
            "trials",
            ", ".join(f"{count} {state}" for state, count in counts.items() if count) or "none",
        ),
        *_cost(run),
    ]


def _cost(run: StudyRun) -> list[tuple[str, str]]:
    examples, seconds, saved = run.examples, run.seconds, run.saved_examples
    if examples is None or seconds is None or saved is None:
        return [("spent", f"not known: the curves of {run.missing_curves} trials are missing")]
    share = saved / max(saved + examples, 1)
    return [
        ("spent", f"{examples:,} training examples, {seconds:,.0f} s of training"),
        ("saved by pruning", f"{saved:,} training examples, {share:.0%} of an unpruned study"),
    ]


def _section(spec: Mapping[str, Any], name: str, *, hide: Sequence[str] = ()) -> str:
    options = {key: value for key, value in spec.get(name, {}).items() if key not in hide}
    kind = options.pop("kind", None) or options.pop("name", "")
    shown = [f"{key} {_range(value)}" for key, value in options.items()]
    return ", ".join([f"`{kind}`", *shown])


def _range(value: Any) -> str:
    if isinstance(value, Mapping) and "choices" in value:
        return "one of " + ", ".join(map(str, value["choices"]))
    if isinstance(value, Mapping) and {"low", "high"} <= value.keys():
        scale = " (log)" if value.get("log") else ""
        return f"{parameter(value['low'])} to {parameter(value['high'])}{scale}"
    return parameter(value)


def _how_to_read() -> str:
    return (
        "Figures are on the study's first page, below the history. A pruned trial's note says why "
        "it was pruned. A trial's attributes `hpo_mab:slot` and `hpo_mab:paired` are its place in "
        "the plan and whether every arm of a comparison trains its configuration."
    )


def _next(run: StudyRun, storage: Storage) -> str:
    from hpo_mab.search import builtin_names
    from hpo_mab.storage import DEFAULT_URL

    url = str(storage.shown_url)
    where = "" if url == DEFAULT_URL else f" --storage {shlex.quote(url)}"
    name = str(run.spec.get("name"))
    # A definition of the user's own is a file whose place is not on record.
    name = name if name in builtin_names() else f"{name}.toml"
    commands = (
        f"hpo-mab run {shlex.quote(name)}{where} --trials {2 * max(len(run.trials), 1)}   # go on",
        f"hpo-mab compare {shlex.quote(name)}{where}   # against uniform sampling",
        f"hpo-mab report {shlex.quote(run.name)}{where}   # one HTML file",
    )
    return "## How to go on\n\n```bash\n" + "\n".join(commands) + "\n```"


def _table(rows: Sequence[tuple[str, str]]) -> str:
    escaped = [(label, text.replace("|", "\\|")) for label, text in rows]
    body = "\n".join(f"| {label} | {text} |" for label, text in escaped)
    return f"| | |\n|---|---|\n{body}"
