"""The tables of a comparison: numbers as text, cells for any medium, tables of the terminal."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hpo_mab._errors import printable
from hpo_mab.advantage import Estimate
from hpo_mab.advantage._signed_rank import FEWEST_FOR_TEST
from hpo_mab.compare._answers import answers
from hpo_mab.compare._records import ComparisonSummary, Contrast, PairedRow

if TYPE_CHECKING:
    from rich.table import Table


def percent(estimate: Estimate, *, interval: bool = True) -> str:
    """A share in percent, as ``value [low, high]`` with an interval within 0 and 1, or alone."""
    # The interval of a mean may exceed the range of shares.
    low, high = (
        min(max(end, 0.0), 1.0) if math.isfinite(end) else end
        for end in (estimate.low, estimate.high)
    )
    within = dataclasses.replace(estimate, low=low, high=high)
    return _estimate_text(within, 100.0, ".1f", interval=interval)


def points(estimate: Estimate, *, digits: int = 1) -> str:
    """A difference of shares as signed points."""
    return _estimate_text(estimate, 100.0, f"+.{digits}f")


def ratio(estimate: Estimate) -> str:
    """A ratio, marked where it is a lower bound; without an interval that is too wide."""
    return _estimate_text(estimate, 1.0, ".2f", interval=not too_wide(estimate))


def coefficient(estimate: Estimate, *, interval: bool = True) -> str:
    """A coefficient in [-1, 1], with its interval or without."""
    return _estimate_text(estimate, 1.0, ".2f", interval=interval)


def too_wide(estimate: Estimate) -> bool:
    """Whether the interval of a ratio is too wide: its ends differ by more than a factor of 100.

    One without an upper end is not: its lower end may be informative.
    """
    return math.isfinite(estimate.high) and estimate.high > 100 * max(estimate.low, 0.0)


def unbounded(estimate: Estimate) -> bool:
    """Whether the interval is uninformative: no upper end, and a lower end of -inf or 0."""
    return estimate.low in (-math.inf, 0.0) and math.isinf(estimate.high)


def p_value(value: float | None) -> str:
    """A p-value; a dash where there are too few observations for one."""
    if value is None:
        return "-"
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _estimate_text(estimate: Estimate, scale: float, form: str, *, interval: bool = True) -> str:
    # The minus of a rounded 0 stays: it says on which side of 0 an interval ends.
    if math.isnan(estimate.value):
        return "-"
    value = f"{'>= ' if estimate.censored else ''}{estimate.value * scale:{form}}"
    if not interval or unbounded(estimate):
        return value
    low, high = (
        # Without a plus sign: tables must fit 80 columns.
        f"{end * scale:{form.removeprefix('+')}}" if math.isfinite(end) else f"{end}"
        for end in (estimate.low, estimate.high)
    )
    return f"{value} [{low}, {high}]"


#: The accuracies whose cost is compared, in words.
TARGETS = {
    "reference": "the reference's best",
    "common": "what both reach",
    "retrained": "re-trained accuracy",
}


# Cells are text: the terminal, the page and the notes then show the same figures.


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """One table.

    Attributes:
        title: What it shows.
        columns: Headings.
        rows: Cells, as many a row as there are columns.
        caption: How to read it.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""


def answer_grid(summary: ComparisonSummary, contrast: Contrast) -> Grid:
    """The answers about one arm, a row each."""
    where = f" on {summary.data}" if summary.data else ""
    seeds = len(contrast.seeds)
    rows = []
    for one in (given := answers(contrast)):
        # Seconds that cannot be compared are left out: they would mislead.
        found = None if one.reason and one.currency == "seconds" else one.estimate
        rows.append(
            (
                one.statement,
                one.currency or "-",
                one.shown_reply,
                # As in the verdict: an end that is rounded to 0 would contradict the answer.
                "-" if found is None else points(found, digits=2),
                "-" if found is None else str(found.n),
            )
        )
    reasons = {
        f"{one.statement}{f' at equal {one.currency}' if one.currency else ''}: {one.reason}."
        for one in given
        if one.reason
    }
    return Grid(
        title=f"{contrast.arm} against {contrast.reference}{where}, {seeds} "
        f"seed{'' if seeds == 1 else 's'}, {summary.trial_examples:,} examples per full trial",
        columns=("question", "at equal", "answer", "points", "n"),
        rows=tuple(rows),
        caption=f"points: accuracy of {contrast.arm} minus {contrast.reference} "
        f"[{summary.confidence:.0%} interval]. "
        + " ".join(["n: pairs for the first question, seeds for the others.", *sorted(reasons)]),
    )


def essential_grids(summary: ComparisonSummary) -> list[Grid]:
    """The tables above the answers: what each arm found, and what it spent."""
    return [_arms(summary), _spend(summary)]


def grids(summary: ComparisonSummary) -> list[Grid]:
    """All tables of a comparison: the essential ones, then each arm's gains, costs and pairs."""
    tables = essential_grids(summary)
    if summary.contrasts:
        tables.extend([_gains(summary), _costs(summary)])
    for contrast in summary.contrasts:
        if contrast.pairs:
            tables.extend([_advantages(summary, contrast), _accelerations(contrast)])
            tables.extend([_fidelities(contrast), _other_fidelities(contrast)])
    return tables


def _arms(summary: ComparisonSummary) -> Grid:
    return Grid(
        title="Best configuration of each arm",
        columns=("arm", "seeds", "median %", "validation accuracy %", "re-trained, test %"),
        rows=tuple(
            (
                arm.arm,
                str(len(arm.seeds)),
                "-" if arm.best_median is None else f"{100 * arm.best_median:.1f}",
                _of_seeds(arm.best, len(arm.seeds)),
                "-" if arm.retrained is None else _of_seeds(arm.retrained, len(arm.seeds)),
            )
            for arm in summary.arms
        ),
        caption=(
            f"Mean over seeds [{summary.confidence:.0%} interval]. Re-trained: each study's best "
            "configuration, trained again under uniform sampling on fresh seeds."
        ),
    )


def _of_seeds(mean: Estimate, seeds: int) -> str:
    """A mean in percent; with its number of seeds where it is not of all."""
    return percent(mean) + (f" (n = {mean.n})" if 0 < mean.n < seeds else "")


def _spend(summary: ComparisonSummary) -> Grid:
    return Grid(
        title=f"Spend, all seeds together; {summary.trial_examples:,} examples per full trial",
        columns=("arm", "done/pruned/failed", "examples", "seconds", "saved %", "sampler %"),
        rows=tuple(
            (
                arm.arm,
                "/".join(str(arm.trials.get(s, 0)) for s in ("complete", "pruned", "fail")),
                "-" if arm.examples is None else f"{arm.examples:,}",
                "-" if arm.seconds is None else f"{arm.seconds:,.0f}",
                # Without all curves the share would be 0, as if pruning saved nothing.
                "-" if arm.saved_examples is None else f"{100 * arm.saved_share:.0f}",
                percent(arm.sampler_share, interval=False),
            )
            for arm in summary.arms
        ),
        caption="seconds: of training, without evaluations. saved: examples that pruning saved, of "
        "the same trials unpruned. sampler: its share of the training seconds.",
    )


def _gains(summary: ComparisonSummary) -> Grid:
    rows = []
    for contrast in summary.contrasts:
        for name, gain, p in (
            ("best at equal examples", contrast.gain["examples"], contrast.gain_p["examples"]),
            ("best at equal seconds", contrast.gain["seconds"], contrast.gain_p["seconds"]),
            ("best, re-trained, test", contrast.retrained_gain, contrast.retrained_p),
        ):
            if gain is not None:
                shown = points(gain, digits=2)
                rows.append((contrast.arm, name, shown, str(gain.n), p_value(p)))
        if contrast.paired:
            last = contrast.paired[-1]
            cells = (str(last.advantage.n), p_value(last.advantage_p))
            shown = points(last.advantage, digits=2)
            rows.append((contrast.arm, "same configurations", shown, *cells))
    notes = [
        "best: accuracy of the best configuration. n: seeds; for same configurations, pairs at the "
        "end of a trial."
    ]
    if any(count == str(FEWEST_FOR_TEST) for _, _, _, count, _ in rows):
        notes.append("Five seeds or pairs cannot give a p below 0.0625.")
    if len(summary.contrasts) > 1:
        notes.append("Intervals are not adjusted for the number of arms.")
    return Grid(
        title=f"Accuracy minus {summary.reference}'s, points",
        columns=("arm", "measure", "difference", "n", "p (Wilcoxon)"),
        rows=tuple(rows),
        caption=" ".join(notes),
    )


def _costs(summary: ComparisonSummary) -> Grid:
    rows = []
    for contrast in summary.contrasts:
        pace = contrast.seconds_per_example
        if math.isfinite(pace.value):
            cells = (ratio(pace), "-", str(pace.n))
            rows.append((contrast.arm, "one training example", "seconds", *cells))
        for cost in contrast.cost:
            reached = f"{sum(cost.reached)} of {len(cost.reached)}"
            cells = (ratio(cost.ratio), p_value(cost.p), reached)
            rows.append((contrast.arm, TARGETS[cost.target], cost.currency, *cells))
    return Grid(
        title=f"Cost relative to {summary.reference}'s (below 1 is cheaper)",
        columns=("arm", "cost of", "counted in", "ratio", "p", "seeds"),
        rows=tuple(rows),
        caption=(
            "Geometric mean over seeds. >=: a lower bound, because some seeds did not reach the "
            "target; such a row has no p (Wilcoxon). Equal arms reach the reference's best in half "
            "of the seeds only. An interval wider than a factor of 100 is left out."
        ),
    )


def _advantages(summary: ComparisonSummary, contrast: Contrast) -> Grid:
    return Grid(
        title=f"Advantage D of {contrast.arm} over {contrast.reference}, points",
        columns=("budget", "pairs", "equal examples", "p", "equal seconds"),
        rows=tuple(
            (
                f"{row.examples:,.0f}",
                str(row.advantage.n),
                points(row.advantage),
                p_value(row.advantage_p),
                points(row.advantage_seconds),
            )
            for row in contrast.paired
        ),
        caption=(
            "Same configuration, same seed. equal seconds: the arm is read where it has taken the "
            "reference's seconds. "
            f"[{summary.confidence:.0%} interval over pairs]"
        ),
    )


def _accelerations(contrast: Contrast) -> Grid:
    return Grid(
        title=f"Acceleration k of {contrast.arm} over {contrast.reference}",
        columns=("budget", "pairs", "k, examples", "k, seconds"),
        rows=tuple(
            (
                f"{row.examples:,.0f}",
                str(row.acceleration.n),
                ratio(row.acceleration),
                ratio(row.acceleration_seconds),
            )
            for row in contrast.paired
        ),
        caption=(
            f"Budget at which {contrast.reference} has the same accuracy, divided by this budget. "
            ">=: lower bound; budgets above the last were not measured."
        ),
    )


def _fidelities(contrast: Contrast) -> Grid:
    return Grid(
        title=f"Fidelity to the final ranking of {contrast.reference}, Kendall's tau-b",
        columns=("budget", "configs", contrast.arm, contrast.reference, "difference"),
        rows=tuple(
            (
                f"{row.examples:,.0f}",
                str(tau.difference.n),
                coefficient(tau.arm),
                coefficient(tau.reference),
                coefficient(tau.difference),
            )
            for row in contrast.paired
            # One look-up for three cells.
            for tau in [row.agreement("kendall")]
        ),
        caption=(
            f"Biased towards {contrast.reference}: its early and final accuracies come from the "
            "same training."
        ),
    )


def _other_fidelities(contrast: Contrast) -> Grid:
    return Grid(
        title=f"Fidelity of {contrast.arm} / {contrast.reference} by other measures",
        columns=("budget", "tau, own finals: difference", "top-3 recall", "regret"),
        rows=tuple(
            (
                f"{row.examples:,.0f}",
                coefficient(row.agreement("kendall", final="own").difference),
                *(_both_arms(row, name) for name in ("recall", "regret")),
            )
            for row in contrast.paired
        ),
        caption=(
            "own finals: each arm's early accuracies against its own final ones, without bias. "
            "regret: final accuracy lost by choosing at this budget, points. Recall and regret are "
            f"by {contrast.reference}'s final ranking, which favours {contrast.reference}."
        ),
    )


def _both_arms(row: PairedRow, statistic: str) -> str:
    fidelity = row.agreement(statistic)
    if statistic == "recall" and fidelity.arm.n <= 3:
        return "-"  # Of three pairs, all are among the top 3.
    shown = percent if statistic == "regret" else coefficient
    both = fidelity.arm, fidelity.reference
    return " / ".join(shown(estimate, interval=False) for estimate in both)


def terminal_table(grid: Grid, *, styles: Sequence[str] = ()) -> Table:
    """A grid as a rich table, with a style for each row unless ``styles`` is empty."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    # `Text` objects: in plain strings rich reads brackets as markup.
    made = Table(
        title=Text(printable(grid.title), style="table.title"),
        caption=Text(printable(grid.caption), style="table.caption"),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for position, heading in enumerate(grid.columns):
        made.add_column(Text(heading), justify="left" if position == 0 else "right")
    for row, style in itertools.zip_longest(grid.rows, styles):
        made.add_row(*(Text(printable(cell)) for cell in row), style=style)
    return made
