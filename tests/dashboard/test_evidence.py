"""The section on evidence in a study's note."""

from __future__ import annotations

import itertools
import math
import re
from typing import Any

import optuna
import pytest
from made_up import EVALUATIONS, accelerated, definition

from hpo_mab._attributes import CHOICE_KEY, EVIDENCE_KEY, FIDELITY_KEY, GIVEN_KEY, RACE_KEY
from hpo_mab._stored_settings import StudySettings
from hpo_mab.advantage import Estimate, Evidence, Rung, measure_evidence
from hpo_mab.compare._tables import coefficient, points
from hpo_mab.dashboard._evidence import _rung_reason, evidence_note
from hpo_mab.pruners import AdvantagePruner, RungFidelity
from hpo_mab.pruners._advantage_pruner import Placement
from hpo_mab.search._choice import Choice, Standing
from hpo_mab.search._pruners import create_pruner


def measured(factor: float, **options: float) -> Evidence:
    """Evidence of a bandit a factor as fast, whose ranking is scrambled."""
    return measure_evidence(accelerated(factor, **options), resamples=300, source="pilot")


def settings(**sections: Any) -> StudySettings:
    return StudySettings.of(definition(**sections))


def study(**attrs: Any) -> optuna.Study:
    made = optuna.create_study(direction="maximize")
    for key, value in attrs.items():
        made.set_user_attr(key.replace("__", ":"), value)
    return made


def table(note: str, first: str) -> list[list[str]]:
    """Cells of the rows below the table heading that begins with ``first``."""
    _, _, below = note.partition(f"| {first}")
    lines = [line for line in below.split("\n\n")[0].splitlines()[2:] if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


ADVANTAGE = {"pruner": {"kind": "advantage"}}


@pytest.mark.parametrize("options", [{}, {"min_resource": 1}], ids=["default", "from the first"])
@pytest.mark.parametrize(
    ("factor", "scramble", "moved"), [(2.2, 0.0, True), (1.0, 0.0, False), (2.2, 0.1, False)]
)
@pytest.mark.parametrize("average", [0.2, 0.0], ids=["averaged weights", "trained weights"])
def test_rungs_are_shown_where_the_pruner_places_them(
    factor: float, scramble: float, moved: bool, options: dict[str, Any], average: float
) -> None:
    evidence = measured(factor, scramble=scramble)
    of = settings(pruner={"kind": "advantage", **options}, training={"average": average})
    note = evidence_note(study(**{EVIDENCE_KEY: evidence.to_json()}), of)
    options = {**options, "evidence": evidence}
    pruner = create_pruner("advantage", options, evaluations=EVALUATIONS, averaged=average > 0)
    assert isinstance(pruner, AdvantagePruner)
    trial = optuna.trial.create_trial(value=1.0)
    judged = optuna.create_study()
    keeper = pruner.keeper(judged)
    rungs = (pruner._placement(rung, trial, keeper) for rung in itertools.count())
    known = (rung for rung in rungs if rung is not None)
    placed = list(itertools.takewhile(lambda rung: rung.uniform_step <= EVALUATIONS, known))
    rows = table(note, "rung")
    assert [(int(lies), int(decided)) for _, lies, decided, _ in rows] == [
        (rung.uniform_step, rung.step) for rung in placed
    ]
    assert any(rung.step < rung.uniform_step for rung in placed) is moved
    assert ("prunes as successive halving" in note) is not moved
    reasons = [why for *_, why in rows if why != "nothing earlier was measured"]
    if moved:
        count = sum(rung.step < rung.uniform_step for rung in placed)
        assert f"decides {count} of {len(placed)} rungs earlier" in note
        assert any("is worth" in why and "ranks as well: tau" in why for why in reasons)
    else:
        expected = "not shown to be as good: tau" if scramble else "no earlier evaluation of"
        assert any(expected in why for why in reasons)


def test_a_rung_stays_where_the_study_has_no_earlier_evaluation() -> None:
    tau = Estimate(value=0.0, low=-0.05, high=0.1, n=9)
    known = Rung(budget=0.25, decided_at=0.2, equivalent=0.3, fidelity=tau)
    placed = Placement(step=1, uniform_step=1, equivalent=1, evidence=None)
    reason = _rung_reason(known, placed, measured(2.2))
    assert reason == "a trial of this study is not evaluated earlier"


@pytest.mark.parametrize("sampler", ["mab", "uniform"])
@pytest.mark.parametrize(("low", "moved"), [(0.0, True), (0.3, False)])
def test_the_rung_that_fidelity_places_is_shown_with_its_figures(
    low: float, moved: bool, sampler: str
) -> None:
    taus = [Estimate(value=0.7, low=end, high=0.9, n=10) for end in (low, low, 0.4, 0.5)]
    found = RungFidelity(full=EVALUATIONS, steps=(1, 2, 3, 4), tau=tuple(taus), trials=10)
    note = evidence_note(
        study(**{FIDELITY_KEY: found.to_json()}), settings(sampler={"kind": sampler}, **ADVANTAGE)
    )
    head = "was moved from evaluation 2 to 3" if moved else "lies at evaluation 2"
    assert f"**The first rung {head}** by the ranking of the study's first 10 complete" in note
    assert ("has no evidence yet" in note) is (sampler == "mab" and not moved)
    rows = table(note, "evaluation")
    assert [step for step, _ in rows] == ["1", "2", "3", "4"]
    assert [coefficient(tau) for tau in taus] == [text for _, text in rows]
    off = settings(pruner={"kind": "advantage", "fidelity": False})
    assert "first rung" not in evidence_note(study(**{FIDELITY_KEY: found.to_json()}), off)


def test_a_first_rung_beyond_the_ranked_evaluations_is_shown_so() -> None:
    tau = Estimate(value=0.7, low=0.4, high=0.9, n=10)
    found = RungFidelity(full=EVALUATIONS, steps=(1, 2, 3, 4), tau=(tau,) * 4, trials=10)
    of = settings(pruner={"kind": "advantage", "min_resource": 6})
    note = evidence_note(study(**{FIDELITY_KEY: found.to_json()}), of)
    assert "**The first rung lies at evaluation 6**: the ranking was not measured there." in note


def test_the_table_holds_the_evidences_own_figures() -> None:
    evidence = measured(1.5)
    note = evidence_note(study(**{EVIDENCE_KEY: evidence.to_json()}), settings(**ADVANTAGE))
    rows = table(note, "share of a trial")
    assert len(rows) == len(evidence.budgets)
    columns = (evidence.advantage, evidence.acceleration, evidence.fidelity)
    for position, (share, *cells, pairs) in enumerate(rows):
        assert share == f"{100 * evidence.budgets[position]:.3g}%"
        assert pairs == str(evidence.advantage[position].n)
        for cell, series, scale in zip(cells, columns, (100, 1, 1), strict=True):
            numbers = [float(text) for text in re.findall(r"-?\+?(?:\d+\.\d+|inf)", cell)]
            one = series[position]
            assert numbers[0] == pytest.approx(scale * one.value, abs=0.051)
            assert numbers[1:] == pytest.approx([scale * one.low, scale * one.high], abs=0.051)
    assert "30 pairs of this study's pilot" in note
    assert f"(evidence `{evidence.digest}`)" in note


@pytest.mark.parametrize("sections", [{"sampler": {"kind": "auto"}}, None], ids=["run", "own"])
def test_autos_choice_can_be_audited(sections: dict[str, Any] | None) -> None:
    of = StudySettings.stored_in({}) if sections is None else settings(**sections)
    evidence = measured(1.5)
    chosen = Choice(sampler="mab", why="the *figures* say so", pairs=30, evidence=evidence.digest)
    attrs = {EVIDENCE_KEY: evidence.to_json(), CHOICE_KEY: chosen.to_json()}
    note = evidence_note(study(**attrs), of)
    assert "**`auto` chose `mab`**" in note
    assert r"Why: the \*figures\* say so." in note
    assert f"It rests on evidence `{evidence.digest}`." in note
    assert "rung" not in note  # Its pruner has no use for evidence.
    attrs[EVIDENCE_KEY] = measured(1.4).to_json()
    note = evidence_note(study(**attrs), of)
    assert f"`{evidence.digest}`; what is shown below was measured later" in note


def test_every_sampler_of_a_race_is_shown_with_what_the_race_cost() -> None:
    estimate = Estimate(value=0.012, low=0.003, high=0.021, n=7)
    nothing = Estimate(value=-0.01, low=-math.inf, high=math.inf, n=2)
    chosen = Choice(
        sampler="easy_first",
        why="it is ahead",
        standings=(
            Standing(name="easy_first", examples=estimate, seconds=estimate, cost=1.25),
            Standing(name="mab", examples=nothing, seconds=nothing, cost=math.nan),
        ),
        twins=15,
        examples=600_000,
        seconds=75.5,
    )
    note = evidence_note(
        study(**{CHOICE_KEY: chosen.to_json()}), settings(sampler={"kind": "auto"})
    )
    assert "15 trainings on top of the study's trials: 600,000 examples, 75.5 seconds" in note
    rows = table(note, "sampler")
    assert rows[0] == ["easy_first", "7", points(estimate), points(estimate), "1.25"]
    assert rows[1][:2] == ["mab", "2"]


def test_a_choice_from_evidence_names_its_study_and_one_that_is_not_used_says_why() -> None:
    estimate = Estimate(value=0.012, low=0.003, high=0.021, n=7)
    standing = Standing(name="mab", examples=estimate, seconds=estimate, cost=1.0)
    chosen = Choice(
        sampler="mab",
        why="chosen by study 'first': mab, 7 pairs",
        standings=(standing,),
        twins=15,
        examples=600,
        seconds=7.5,
        source="first",
    )
    auto = settings(sampler={"kind": "auto"})
    note = evidence_note(study(**{CHOICE_KEY: chosen.to_json()}), auto)
    assert "**`auto` took `mab`** from the start. Why: chosen by study 'first': mab" in note
    assert "15 trainings in that study, none in this one: 600 examples, 7.5 seconds" in note
    given = {"digest": "1f", "pruner": False, "unused": "the choice of study 'first' is not used"}
    note = evidence_note(study(**{GIVEN_KEY: given}), auto)
    assert "the race is not over. Its evidence: the choice of study 'first' is not used." in note


def test_what_is_not_known_yet_is_said() -> None:
    note = evidence_note(study(), settings(sampler={"kind": "auto"}, **ADVANTAGE))
    assert "**`auto` has not chosen yet**" in note
    assert "**The pruner has no evidence yet**" in note
    own = evidence_note(study(**{RACE_KEY: {}}), StudySettings.stored_in({}))
    assert "**`auto` has not chosen yet**" in own


@pytest.mark.parametrize(
    "sections", [{}, {"sampler": {"kind": "uniform"}, "pruner": {"kind": "advantage"}}]
)
def test_a_study_without_evidence_has_no_such_section(sections: dict[str, Any]) -> None:
    assert evidence_note(study(), settings(**sections)) == ""


def test_no_rung_is_promised_where_auto_stays_with_uniform_sampling() -> None:
    of = settings(sampler={"kind": "auto"}, **ADVANTAGE)
    for sampler, promised in (("mab", True), ("uniform", False)):
        choice = Choice(sampler=sampler, why="a reason")
        note = evidence_note(study(**{CHOICE_KEY: choice.to_json()}), of)
        assert ("The pruner has no evidence yet" in note) is promised
