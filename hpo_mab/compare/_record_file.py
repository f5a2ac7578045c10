"""The JSON record of a comparison, as ``hpo-mab compare --record`` writes it: written, read."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpo_mab._errors import ArgumentError
from hpo_mab.compare._verdict import verdict

if TYPE_CHECKING:
    from hpo_mab.compare._records import ComparisonSummary
    from hpo_mab.compare._runner import ComparisonRuns
    from hpo_mab.storage import StudyRun, TrialRun


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonRecord:
    """A comparison as it was recorded.

    Attributes:
        runs: Its studies, without the user attributes of studies.
        summary: What was concluded.
        environment: Versions and hardware of the machine that ran it.
    """

    runs: tuple[StudyRun, ...]
    summary: ComparisonSummary
    environment: Mapping[str, Any]


def read_record(path: Path) -> ComparisonRecord:
    """Read a record file.

    Raises:
        ArgumentError: It cannot be read or is no record of a comparison.
    """
    from hpo_mab.compare._records import ComparisonSummary

    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        return ComparisonRecord(
            runs=tuple(_run(study) for study in raw["studies"]),
            summary=ComparisonSummary.from_json(raw["summary"]),
            environment=raw["environment"],
        )
    except OSError as error:
        raise ArgumentError(
            f"{path} cannot be read: {error.strerror}; 'hpo-mab compare --record FILE' writes one."
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise ArgumentError(
            f"{path} is no record of a comparison ({type(error).__name__}: {error}); "
            "'hpo-mab compare --record FILE' writes one."
        ) from None


def comparison_record(found: ComparisonRuns, summary: ComparisonSummary) -> str:
    """The whole comparison as JSON: environments, summary and every run's values."""
    record = {
        "environment": found.environment,
        "environments": _environments(found),
        "verdict": verdict(summary).splitlines(),
        "summary": summary.to_json(),
        "retrained": [
            {"arm": arm, "seed": seed, "test_accuracies": list(scores)}
            for (arm, seed), scores in found.retrained.items()
        ],
        "studies": [_plain_run(run) for run in found.runs],
    }
    return json.dumps(record, separators=(",", ":"))


def _run(raw: Mapping[str, Any]) -> StudyRun:
    from hpo_mab.storage import StudyRun

    return StudyRun(**{**raw, "trials": tuple(_trial(trial) for trial in raw["trials"])})


def _trial(raw: Mapping[str, Any]) -> TrialRun:
    from hpo_mab.storage import TrialRun
    from hpo_mab.training import Evaluation

    columns = raw["curve"]
    points = zip(*columns.values(), strict=True)
    curve = tuple(Evaluation(**dict(zip(columns, point, strict=True))) for point in points)
    return TrialRun(**{**raw, "curve": curve})


def _environments(found: ComparisonRuns) -> list[dict[str, Any]]:
    """Every machine that began a study, with the arms and seeds of its studies."""
    told: dict[str, dict[str, Any]] = {}
    for (arm, seed), environment in found.environments.items():
        key = json.dumps(environment, sort_keys=True)
        entry = told.setdefault(key, {"environment": dict(environment), "studies": []})
        entry["studies"].append({"arm": arm, "seed": seed})
    return list(told.values())


def _plain_run(run: StudyRun) -> dict[str, Any]:
    plain = dataclasses.asdict(run)
    for trial in plain["trials"]:
        curve = trial.pop("curve")
        # A column an entry: a tenth of the size of one object an evaluation.
        trial["curve"] = {
            key: [_rounded(e[key]) for e in curve] for key in (curve[0] if curve else ())
        }
    plain["spec"]["data"].pop("root", None)
    return plain


def _rounded(value: Any) -> Any:
    return round(value, 6) if isinstance(value, float) else value
