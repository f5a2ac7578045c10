"""The studies of a comparison, and their JSON record."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any

from hpo_mab._errors import ArgumentError, json_values
from hpo_mab.compare._answers import answers, verdict
from hpo_mab.compare._records import ComparisonSummary
from hpo_mab.compare._summary import summarise
from hpo_mab.compare._text import FILES

if TYPE_CHECKING:
    from hpo_mab.storage import StudyRun, TrialRun


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonRuns:
    """The studies of a comparison, and what was trained again.

    Attributes:
        reference: The arm the others are compared with.
        runs: The studies, arm by arm within each seed. Where their best configurations were trained
            again, under uniform sampling on fresh seeds, their ``retrained`` has the test
            accuracies.
        interrupted: Whether Ctrl-C ended it early.

    Examples:
        >>> from pathlib import Path
        >>> from hpo_mab.compare import read_record
        >>> comparison = read_record(Path("studies/fashion_mnist/pairs.json"))
        >>> [run.arm for run in comparison.runs]
        ['uniform', 'mab']
    """

    reference: str
    runs: tuple[StudyRun, ...]
    interrupted: bool = False

    @property
    def title(self) -> str:
        """Names of the definitions of the studies."""
        return ", ".join(dict.fromkeys(run.title for run in self.runs))

    @property
    def environment(self) -> dict[str, Any]:
        """Versions and hardware at the start of the first study; empty if not known."""
        return dict(self.runs[0].environment) if self.runs else {}

    def summarise(self) -> ComparisonSummary:
        """The statistics of the studies, see `hpo_mab.compare.summarise`."""
        return summarise(self.runs, reference=self.reference)


def read_record(path: str | Path) -> ComparisonRuns:
    """Read the studies in a record file.

    Raises:
        ArgumentError: It cannot be read or is no record of a comparison.
    """
    try:
        raw = json.loads(Path(path).read_text(encoding="utf-8"))
        retrained = {(one["arm"], one["seed"]): one["test_accuracies"] for one in raw["retrained"]}
        environments = {
            (study["arm"], study["seed"]): entry["environment"]
            for entry in raw.get("environments", ())
            for study in entry["studies"]
        }
        runs = []
        for study in raw["studies"]:
            key = (study["arm"], study["seed"])
            # Earlier records have only the environment of the first study.
            environment = environments.get(key, {}) if environments else raw["environment"]
            scores = tuple(retrained.get(key, ()))
            runs.append(_run_from_json({**study, "environment": environment, "retrained": scores}))
        return ComparisonRuns(reference=raw["summary"]["reference"], runs=tuple(runs))
    except OSError as error:
        raise ArgumentError(
            f"{path} cannot be read: {error.strerror}; 'hpo-mab compare --record FILE' writes one."
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArgumentError(
            f"{path} is no record of a comparison ({type(error).__name__}: {error}); "
            "'hpo-mab compare --record FILE' writes one."
        ) from None


def comparison_record(comparison: ComparisonRuns, summary: ComparisonSummary) -> str:
    """The whole comparison as JSON: environments, summary and every run's values."""
    record = {
        "environment": comparison.environment,
        "environments": _environments(comparison.runs),
        "verdict": verdict(summary).splitlines(),
        "answers": [a.to_json() for contrast in summary.contrasts for a in answers(contrast)],
        "summary": summary.to_json(),
        "retrained": [
            {"arm": run.arm, "seed": run.seed, "test_accuracies": list(run.retrained)}
            for run in comparison.runs
            if run.retrained
        ],
        "studies": [_run_to_json(run) for run in comparison.runs],
    }
    return json.dumps(json_values(record), separators=(",", ":"))


def _run_from_json(raw: Mapping[str, Any]) -> StudyRun:
    from hpo_mab.storage import StudyRun

    return StudyRun(**{**raw, "trials": tuple(_trial_from_json(trial) for trial in raw["trials"])})


def _trial_from_json(raw: Mapping[str, Any]) -> TrialRun:
    from hpo_mab.storage import TrialRun
    from hpo_mab.training._schedule import stored_evaluation

    columns = raw["curve"]
    points = zip(*columns.values(), strict=True)
    curve = tuple(stored_evaluation(zip(columns, point, strict=True)) for point in points)
    return TrialRun(**{**raw, "curve": curve})


def _environments(runs: Sequence[StudyRun]) -> list[dict[str, Any]]:
    """Every machine that began a study, with the arms and seeds of its studies."""
    # Mostly one machine began all studies: its environment is listed once.
    grouped: dict[str, dict[str, Any]] = {}
    for run in runs:
        key = json.dumps(run.environment, sort_keys=True)
        entry = grouped.setdefault(key, {"environment": dict(run.environment), "studies": []})
        entry["studies"].append({"arm": run.arm, "seed": run.seed})
    return list(grouped.values())


def _run_to_json(run: StudyRun) -> dict[str, Any]:
    plain = dataclasses.asdict(run)
    # These are elsewhere in the record.
    del plain["environment"], plain["retrained"]
    for trial in plain["trials"]:
        curve = trial.pop("curve")
        # One list a column takes a tenth of the size of one object an evaluation.
        trial["curve"] = {key: [e[key] for e in curve] for key in (curve[0] if curve else ())}
    # Paths of the machine that ran the study: they may hold the name of a user.
    whole = plain["spec"]
    whole.get("data", {}).pop("root", None)
    for sections in (whole, *whole.get("compare", {}).get("arms", {}).values()):
        for name, key in itertools.product(("data", "sampler", "pruner"), FILES):
            options = sections.get(name) or {}
            if isinstance(options.get(key), str):
                options[key] = PureWindowsPath(options[key]).name
    return plain
