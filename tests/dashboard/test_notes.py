"""The notes of studies and trials."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up import definition, point

from hpo_mab._examples import COLUMNS, ExampleCounts, ExampleRecord
from hpo_mab.dashboard._files import ListedImages, examples_note, listed_examples
from hpo_mab.dashboard._notes import (
    confirmed_note,
    markdown_table,
    pruning_note,
    storage_option,
    study_note,
)
from hpo_mab.storage import Storage, StudyRun, TrialRun


def a_trial(number: int, **known: Any) -> TrialRun:
    given = {"state": "pruned", "value": None, "curve": (), "attrs": {}, "slot": number, **known}
    return TrialRun(number=number, params={}, paired=False, **given)


def a_run(*trials: TrialRun, **sections: Any) -> StudyRun:
    return StudyRun(
        name="tiny",
        arm="mab",
        seed=0,
        trial_examples=800,
        spec=definition(**sections),
        trials=trials,
    )


def test_a_trial_pruned_at_a_moved_rung_names_its_evidence() -> None:
    because = {
        "rung": 1,
        "step": 1,
        "value": 0.5,
        "threshold": 0.625,
        "competitors": 7,
        "uniform_step": 2,
        "equivalent_step": 2.2,
        "evidence": "0123abcd",
    }
    note = pruning_note({"hpo_mab:pruned_because": because})
    assert (
        "rung 1 at evaluation 1, as one of 7 trials judged there so far; 62.50% was needed" in note
    )
    assert "Evidence 0123abcd moved this rung: without it, it would lie at evaluation 2." in note
    assert "worth evaluation 2.2 of uniform training" in note


def test_a_note_lists_the_most_suspicious_labels(tmp_path: Path) -> None:
    storage = Storage(f"sqlite:///{tmp_path / 'other.db'}")
    sums = np.zeros((20, len(COLUMNS)), dtype=np.float32)
    sums[:, COLUMNS.index("visits")] = 4
    sums[:, COLUMNS.index("margin")] = 4.0
    sums[[7, 11], COLUMNS.index("margin")] = [-2.0, -6.0]
    predictions = np.zeros((20, 3), dtype=np.uint32)
    predictions[:, 2] = 4
    counts = ExampleCounts(trials=9, sums=sums, predictions=predictions)
    record = ExampleRecord(total=20, labels="abc", counts=counts)
    listed = listed_examples(record)
    images = ListedImages(rows=listed, labels=[0] * len(listed), classes={"0": "<a>"})
    pictured = examples_note(record, "one", storage, are_images=True, images=images, path="/x.png")
    assert f"`hpo-mab examples one --storage {storage.shown_url} --html" in pictured
    cells = pictured.replace("\N{EN SPACE}", "")
    assert r"| 11 | \<a\> | number 2 | 1.50 | 4 |" in cells
    note = examples_note(record, "one", storage, are_images=False)
    storage.close()
    assert "hpo-mab examples" not in note
    assert (
        "9 trials saw 20 training examples 80 times. For 2 examples another class's logit" in note
    )
    rows = [line for line in note.splitlines() if line.startswith("| 11") or "| 0.50" in line]
    assert [row.replace("\N{EN SPACE}", "").split(" | ")[:3] for row in rows] == [
        ["| 11", "number 2", "1.50"],
        ["| 7", "number 2", "0.50"],
    ]


def test_the_note_counts_trials_as_the_plan_does() -> None:
    described: list[tuple[str, dict[str, Any]]] = [
        ("complete", {}),
        ("complete", {"hpo_mab:twin_of": 0}),
        ("pruned", {}),
        ("fail", {"hpo_mab:interrupted": True}),
        ("running", {}),
    ]
    trials = (
        a_trial(number, state=state, value=0.5 if state == "complete" else None, attrs=attrs)
        for number, (state, attrs) in enumerate(described)
    )
    run = a_run(*trials)
    note = study_note(run, Storage("sqlite:///nowhere.db"))
    states = "2 complete, 1 pruned, 1 running"
    twins = "1 of them repeats a configuration under another sampler"
    assert f"| trials | {states}; {twins} |" in note.replace("\N{EN SPACE}", "")


def test_the_note_lists_the_configurations_that_were_trained_again() -> None:
    trials = (
        a_trial(number, state="complete", value=value, attrs={"hpo_mab:slot": number})
        for number, value in enumerate((0.9, 0.8, 0.7))
    )
    first, *others = trials
    attrs = {**first.attrs, "hpo_mab:sampler": "uniform"}
    run = a_run(dataclasses.replace(first, attrs=attrs), *others)
    assert confirmed_note(run, {}) == ""
    section = confirmed_note(run, {0: (0.6, 0.0), 1: (0.75,)})
    assert "**trial 1** has the highest mean." in section
    unfinished = confirmed_note(run, {0: (0.6,)})
    assert "**trial 0** has the highest mean; trial 1, which was trained once, may" in unfinished
    rows = [line for line in section.replace("\N{EN SPACE}", "").splitlines() if "%" in line]
    assert rows == [
        "| 1 | 80.00% | 75.00% | 75.00% |",
        "| 0, batch sampler uniform | 90.00% | 60.00%, diverged | 30.00% |",
    ]
    note = study_note(run, Storage("sqlite:///nowhere.db"), confirmed=section)
    assert section in note
    assert "90.00% validation accuracy** in trial 0, batch sampler uniform." in note


def test_a_trial_without_a_reason_has_no_note() -> None:
    assert pruning_note({"hpo_mab:reason": "not a *number*"}) == r"**Pruned**: not a \*number\*."
    assert pruning_note({"hpo_mab:examples": 400}) == ""


def test_a_bar_within_a_cell_ends_no_cell() -> None:
    assert markdown_table(["a"], [["x|y"]]).splitlines()[-1] == "| x\\|y |"


def test_names_of_arms_are_shown_as_they_are() -> None:
    note = study_note(a_run(), Storage("sqlite:///nowhere.db"), verdict="m*1: $a, $b, ~c~ &lt;.")
    assert r"- m\*1: \$a, \$b, \~c\~ \&lt;." in note


def test_a_note_ends_with_the_next_steps(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "studies.db"))
    trial = a_trial(0, curve=(point(1),))
    note = study_note(a_run(trial), storage)
    assert f"hpo-mab report tiny --storage sqlite:///{tmp_path / 'studies.db'}   #" in note
    assert "repeat the command that made it with `--trials 2`" in note
    # In a pattern some characters mean an arm, a database, a record or a choice.
    odd = study_note(dataclasses.replace(a_run(trial), name="a=b[1]#c.json"), storage)
    assert "hpo-mab report 'a?b?1]?c.jso?' --storage" in odd
    # A study of another program has no command.
    own = study_note(dataclasses.replace(a_run(trial), spec={}), storage)
    assert "hpo-mab report tiny" in own
    assert "repeat the command" not in own
    storage.close()


@pytest.mark.parametrize(
    ("url", "option"),
    [
        ("postgresql://me@db/x", " --storage postgresql+psycopg://me@db/x"),
        # From HPO_MAB_STORAGE, which the option would replace.
        ("postgresql://me:secret@db/x", ""),
        ("postgresql://me@db/x?password=secret", ""),
    ],
)
def test_a_command_names_no_storage_whose_password_it_lacks(url: str, option: str) -> None:
    assert storage_option(Storage(url)) == option
