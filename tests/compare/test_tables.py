"""Tables on the terminal: complete, and readable at 80 columns."""

from __future__ import annotations

import dataclasses
import re

import pytest
from made_up import study
from rich.console import Console

from hpo_mab.advantage import Estimate
from hpo_mab.compare import summarise
from hpo_mab.compare._tables import (
    answer_grid,
    essential_grids,
    grids,
    percent,
    ratio,
    terminal_table,
)


def shown(summary, width):
    console = Console(width=width, record=True, file=None, quiet=False, highlight=False)
    with console.capture() as captured:
        for grid in grids(summary):
            console.print(terminal_table(grid))
    return captured.get()


@pytest.mark.parametrize("width", [80, 100])
def test_nothing_is_cut_and_no_cell_is_wrapped(summary, width):
    text = shown(summary, width)
    assert "…" not in text
    # A wrapped cell leaves an interval without its closing bracket on its line.
    data = [line for line in text.splitlines() if re.match(r" (mab|uniform|\d,000)\s", line)]
    assert len(data) > 30
    assert all(line.count("[") == line.count("]") for line in data)
    assert all(len(line) <= width for line in text.splitlines())


def test_figures_are_those_of_the_summary(summary):
    text = shown(summary, 100)
    (contrast,) = summary.contrasts
    gain = contrast.gain["examples"]
    expected = f"{100 * gain.value:+.2f} [{100 * gain.low:.2f}, {100 * gain.high:.2f}]"
    assert expected in text
    assert f"{contrast.paired[1].acceleration.value:.2f} [" in text
    assert ">= 1.00 [1.00, inf]" in text
    assert "50/10/0" in text


def test_no_interval_is_shown_where_there_is_none(runs):
    text = shown(summarise(runs[:2]), 100)
    line = next(line for line in text.splitlines() if "at equal examples" in line)
    assert "[" not in line
    assert "nan" not in text


@pytest.mark.parametrize(("paired", "shown"), [(3, False), (4, True)])
def test_of_three_pairs_all_are_among_the_top_3(paired, shown):
    runs = [study(arm, 0, paired=paired) for arm in ("mab", "uniform")]
    (grid,) = (one for one in grids(summarise(runs)) if "by other measures" in one.title)
    assert {recall != "-" for _, _, recall, _ in grid.rows} == {shown}


def test_a_table_has_one_unit(summary):
    gains = next(grid for grid in grids(summary) if "points" in grid.title)
    assert "one training example" not in {row[1] for row in gains.rows}
    cost = next(grid for grid in grids(summary) if grid.title.startswith("Cost"))
    assert "one training example" in {row[1] for row in cost.rows}


@pytest.mark.parametrize(("pairs", "noted"), [(5, True), (6, False)])
def test_five_pairs_have_a_note_on_p(pairs, noted):
    runs = [study(arm, 0, paired=pairs) for arm in ("mab", "uniform")]
    gains = next(grid for grid in grids(summarise(runs)) if "points" in grid.title)
    assert ("Five seeds or pairs cannot give a p below 0.0625." in gains.caption) is noted


def test_a_mean_of_some_seeds_names_their_number():
    runs = [study(arm, seed, paired=0) for arm in ("mab", "uniform") for seed in range(3)]
    runs[:2] = [dataclasses.replace(run, retrained=(0.9,)) for run in runs[:2]]
    row = next(row for row in grids(summarise(runs))[0].rows if row[0] == "mab")
    assert row[-1].endswith(" (n = 2)")
    assert "n =" not in row[-2]


def test_a_ratio_whose_interval_is_too_wide_is_shown_without_it():
    assert ratio(Estimate(value=0.3, low=0.005, high=17.0, n=2)) == "0.30"
    assert ratio(Estimate(value=0.3, low=0.1, high=1.7, n=2)) == "0.30 [0.10, 1.70]"


def test_accuracies_stay_within_their_bounds():
    few = Estimate(value=0.986, low=0.942, high=1.03, n=2)
    assert percent(few) == "98.6 [94.2, 100.0]"


def test_the_answers_fit_80_columns(summary):
    (contrast,) = summary.contrasts
    console = Console(width=80, highlight=False)
    with console.capture() as captured:
        console.print(terminal_table(answer_grid(summary, contrast)))
    rows = [line for line in captured.get().splitlines() if " yes " in line or "cannot" in line]
    assert len(rows) == 5
    assert "same configuration learns more" in rows[0]
    assert rows[0].split()[-1] == str(contrast.pairs)


def test_one_arm_has_its_own_tables_only(runs):
    assert len(grids(summarise(runs[:1]))) == 2


def test_the_essential_tables_come_first_and_are_few(summary):
    every, few = grids(summary), essential_grids(summary)
    assert few == every[:2]
    assert len(every) > 6
    (contrast,) = summary.contrasts
    gain = 100 * contrast.paired[-1].advantage.value
    line = next(line for line in shown(summary, 80).splitlines() if "same configurations" in line)
    assert f"{gain:+.2f} [" in line
    assert f" {contrast.pairs} " in line
