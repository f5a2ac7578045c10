"""The race of ``auto``: which samplers enter and leave, the choice, and the cost."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState
from small_studies import tiny

from hpo_mab import HpoMabWarning
from hpo_mab._attributes import CHOICE_KEY, EVIDENCE_KEY, GIVEN_KEY, RACE_KEY, SAMPLER_KEY, TWIN_KEY
from hpo_mab._errors import ArgumentError, SpecError, UnknownNameError
from hpo_mab._stored_settings import flat_spec
from hpo_mab.advantage import Estimate, Evidence
from hpo_mab.compare._evidence import race_evidence
from hpo_mab.search import StudyRunner, _race, load_spec
from hpo_mab.search._choice import (
    Choice,
    PairedTrial,
    Standing,
    stored_choice,
)
from hpo_mab.search._evidence_file import RaceOutcome
from hpo_mab.search._portfolio import PORTFOLIO, parse_portfolio, uses_record
from hpo_mab.search._pruners import study_pruner
from hpo_mab.search._race import (
    ERROR,
    SHARE,
    Race,
    RacePlan,
    _sampler_and_reason,
    _survivors,
)
from hpo_mab.search._study import check_study
from hpo_mab.storage import Storage, open_study

pytestmark = pytest.mark.filterwarnings("ignore:AdvantagePruner decides:hpo_mab.HpoMabWarning")

_CHALLENGERS = {name: part for name, part in parse_portfolio(None).items() if name != "uniform"}


# ------------------------------------------------------------------------------ definition


def test_the_default_portfolio() -> None:
    assert list(_CHALLENGERS) == ["mab", "easy_first", "trimmed", "hard_half"]
    uses = [name for name, part in _CHALLENGERS.items() if uses_record(part)]
    assert uses == ["easy_first", "trimmed"]
    assert load_spec("cifar10").sampler.portfolio == list(PORTFOLIO)


@pytest.mark.parametrize("keeps", [True, False])
def test_samplers_that_use_the_record_enter_where_there_is_one(keeps: bool) -> None:
    study = optuna.create_study(direction="maximize")
    race = Race(parse_portfolio(None), initial=10, trials=60)
    race.advance(study, has_record=(lambda: True) if keeps else None)
    left_out = [] if keeps else ["easy_first", "trimmed"]
    expected = [name for name in _CHALLENGERS if name not in left_out]
    assert list(study.user_attrs["hpo_mab:race"]["challengers"]) == expected


@pytest.mark.parametrize(
    ("entries", "error", "message"),
    [
        (["mab"], ArgumentError, "must hold 'uniform', .* without options, got mab"),
        (["uniform", "mab", {"kind": "mab", "floor": 0.1}], ArgumentError, "'mab' twice"),
        (["uniform", {"floor": 0.1}], ArgumentError, "an entry needs a kind"),
        (["uniform", {"kind": "mab", "name": "a/b"}], ArgumentError, "a name must be"),
        (["uniform", {"kind": "mab", "flor": 0.1}], UnknownNameError, "'flor'"),
        (["uniform", "mob"], UnknownNameError, "'mob'"),
        (
            ["uniform", {"kind": "mab", "floor": {"low": 0.0, "high": 0.5}}],
            ArgumentError,
            "options of 'mab' must be constants",
        ),
    ],
)
def test_a_portfolio_that_cannot_race_is_refused(
    entries: list[Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        parse_portfolio(entries)
    with pytest.raises((error, SpecError), match=message):
        tiny(sampler={"kind": "auto", "portfolio": entries})


def test_an_option_of_a_portfolio_may_be_a_tuple() -> None:
    found = parse_portfolio(["uniform", {"kind": "mab", "prior": (2, 1)}])
    assert found["mab"].options == {"prior": [2, 1]}


def test_only_auto_has_a_portfolio() -> None:
    with pytest.raises(SpecError, match="portfolio needs kind = 'auto', got 'mab'"):
        tiny(sampler={"kind": "mab", "portfolio": ["uniform"]})
    # Another sampler on the command line takes the portfolio out of a definition.
    assert load_spec("cifar10", {"sampler.kind": "uniform"}).sampler.portfolio is None


def test_samplers_that_need_the_record_require_it() -> None:
    sampler = {"kind": "auto", "portfolio": ["uniform", "curriculum"]}
    with pytest.raises(SpecError, match=r"training\.examples must be on"):
        tiny(sampler=sampler, training={"examples": False})
    # Those of the default portfolio are left out instead.
    assert tiny(sampler={"kind": "auto"}, training={"examples": False})


# ------------------------------------------------------------------------------------ plan


@pytest.mark.parametrize("trials", [*range(1, 60), 100, 200, 1000])
def test_a_race_costs_a_bounded_share_of_the_study(trials: int) -> None:
    plan = RacePlan.make(_CHALLENGERS, trials=trials)
    if plan is None:
        assert trials < 10
        return
    assert plan.twins <= SHARE * trials
    assert plan.end <= SHARE * trials
    # A result that is clear enough can be found: 2 ** -pairs is the least error of the test.
    assert 2.0**-plan.pairs <= ERROR / len(plan.challengers)
    uses = any(uses_record(_CHALLENGERS[name]) for name in plan.challengers)
    assert plan.first == (4 if uses else 0)


def test_more_samplers_enter_a_larger_study() -> None:
    found = {trials: RacePlan.make(_CHALLENGERS, trials=trials) for trials in (9, 10, 20, 30, 100)}
    assert found[9] is None
    sizes = [(len(p.challengers), p.first, p.pairs, p.twins) for p in found.values() if p]
    assert sizes == [(1, 0, 5, 5), (2, 4, 6, 9), (4, 4, 7, 15), (4, 4, 22, 50)]
    plan = found[30]
    assert plan is not None
    assert plan.rounds == ((4, 2), (2, 4), (1, 7))


# -------------------------------------------------------------------------------- decision


def _estimate(value: float) -> Estimate:
    return Estimate(value=value, low=value - 0.01, high=value + 0.01, n=9)


@pytest.mark.parametrize(
    ("gain", "fidelity", "sampler", "why"),
    [
        (0.02, 0.0, "mab", "fidelity is not shown to be worse"),
        # The interval reaches the margin of 0.1.
        (0.02, -0.105, "mab", "fidelity is not shown to be worse"),
        (0.02, -0.2, "uniform", "but fidelity at 12.5% is worse by 0.20"),
        (0.005, 0.0, "uniform", "not shown to be above 0"),
    ],
)
def test_a_sampler_must_be_ahead_and_must_not_rank_worse(
    gain: float, fidelity: float, sampler: str, why: str
) -> None:
    plan = RacePlan.make(_CHALLENGERS, trials=30)
    assert plan is not None
    found = Standing(name="mab", examples=_estimate(gain), seconds=_estimate(gain), cost=1.0)
    evidence = Evidence(
        budgets=(0.125, 1.0),
        advantage=(_estimate(0.0),) * 2,
        acceleration=(_estimate(1.0),) * 2,
        # At the end of a trial nothing is pruned.
        fidelity=(_estimate(fidelity), _estimate(-0.9)),
        rungs=(),
        pairs=9,
        margin=0.1,
        source="test",
    )
    chosen, reason = _sampler_and_reason(plan, found, (found,), evidence)
    assert chosen == sampler
    assert reason.endswith(why)


# ------------------------------------------------------------------------------- statistics


def _side(accuracy: float, seconds: float, curve: Sequence[float] = ()) -> PairedTrial:
    values = dict(enumerate((*curve, accuracy), 1))
    return PairedTrial(accuracy=accuracy, curve=values, seconds=seconds)


def test_a_slower_sampler_is_judged_earlier_at_equal_seconds() -> None:
    pairs = [(_side(0.6, 2.0 + i, [0.4]), _side(0.5, 1.0 + i / 2)) for i in range(6)]
    standing = Standing.of("slow", pairs, error=0.05)
    assert standing.cost == pytest.approx(2.0)
    assert standing.examples.value == pytest.approx(0.1)
    assert standing.seconds.value == pytest.approx(-0.1)
    faster = Standing.of("fast", [(one, _side(0.5, 9.0)) for one, _ in pairs], error=0.05)
    assert faster.seconds == faster.examples
    assert Standing.from_json(standing.to_json()) == standing


def test_other_validation_images_at_the_end_are_no_gain_at_equal_seconds() -> None:
    # Two equal curves; the images of the last evaluation are easier or harder than those before.
    for offset in (-0.02, 0.02):
        curve = [0.5, 0.6, 0.66]
        pairs = [(_side(0.7 + offset, 1.3, curve), _side(0.7 + offset, 1.0, curve))] * 8
        standing = Standing.of("slow", pairs, error=0.05, judged="seconds")
        slower = np.log(1.3) / np.log(3 / 2) * (0.66 - 0.6)
        assert standing.seconds.value == pytest.approx(-slower, abs=1e-6)


def test_by_seconds_a_sampler_must_be_ahead_at_equal_examples_too() -> None:
    # Ahead until shortly before the end, and level there.
    ahead, level = _estimate(0.05), _estimate(0.0)
    plan = RacePlan.make(_CHALLENGERS, trials=30, judged="seconds")
    assert plan is not None
    for examples, seconds, chosen in ((ahead, ahead, "mab"), (level, ahead, "uniform")):
        found = Standing(name="mab", examples=examples, seconds=seconds, cost=1.2)
        assert _sampler_and_reason(plan, found, (found,), None)[0] == chosen
        alive = _survivors([found], 1, "seconds")
        assert alive == (["mab"] if chosen == "mab" else [])


def test_a_sampler_without_pairs_is_not_the_best_one() -> None:
    plan = RacePlan.make(_CHALLENGERS, trials=30)
    assert plan is not None
    standings = [
        Standing.of(name, pairs, error=0.05)
        for name, pairs in (("failed", []), ("behind", [(_side(0.4, 1.0), _side(0.5, 1.0))] * 2))
    ]
    assert "best behind, 2 pairs" in _sampler_and_reason(plan, None, standings, None)[1]


# -------------------------------------------------------------------------------- decisions


class _Trials:
    """A study whose trials end with given accuracies."""

    def __init__(self, **options: Any) -> None:
        self.study = optuna.create_study(direction="maximize")
        self.race = Race(parse_portfolio(None), initial=10, **options)
        self.slots = 0

    def add(
        self, sampler: str, slot: int, value: float, *, twin: bool, seconds: float, **more: Any
    ) -> None:
        attrs = {"slot": slot, "sampler": sampler, "seconds": seconds, "examples": 100, **more}
        if not self.study.trials:
            self.advance()  # A race begins before the first trial has ended.
        if twin:
            attrs["twin_of"] = slot
        self.study.add_trial(
            optuna.create_trial(
                state=TrialState.COMPLETE if value >= 0 else TrialState.PRUNED,
                value=value if value >= 0 else None,
                intermediate_values={1: value / 2, 2: value},
                user_attrs={f"hpo_mab:{key}": attr for key, attr in attrs.items()},
            )
        )

    def advance(self) -> bool:
        return self.race.advance(self.study, has_record=lambda: self.slots > 4)

    def run(self, gains: dict[str, Callable[[int], float]], *, cost: float = 1.0) -> Choice:
        """Run originals and the twins that are queued, until the race is decided."""
        while stored_choice(self.study) is None:
            self.advance()
            waiting = self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
            if not waiting:
                assert self.slots < 60
                self.add("uniform", self.slots, 0.5, twin=False, seconds=1.0)
                self.slots += 1
            for trial in waiting:
                slot, name = trial.user_attrs["hpo_mab:slot"], trial.user_attrs[SAMPLER_KEY]
                self.study._storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING)
                self.study._storage.set_trial_user_attr(trial._trial_id, "hpo_mab:seconds", cost)
                gain = gains.get(name, lambda _: -0.1)(slot)
                for step, value in ((1, 0.25), (2, 0.5 + gain)):
                    self.study._storage.set_trial_intermediate_value(trial._trial_id, step, value)
                diverged = gain <= -0.5
                self.study._storage.set_trial_state_values(
                    trial._trial_id,
                    TrialState.PRUNED if diverged else TrialState.COMPLETE,
                    None if diverged else (0.5 + gain,),
                )
        choice = stored_choice(self.study)
        assert choice is not None
        return choice

    def cut_off(self, slot: int, sampler: str) -> None:
        """Add an attempt at a twin that was interrupted after an evaluation."""
        attrs = {"slot": slot, "sampler": sampler, "twin_of": slot, "interrupted": True}
        attrs |= {"seconds": 5.0, "examples": 60}
        self.study.add_trial(
            optuna.create_trial(
                state=TrialState.FAIL,
                user_attrs={f"hpo_mab:{key}": attr for key, attr in attrs.items()},
            )
        )

    @property
    def twins(self) -> list[tuple[int, str]]:
        return [
            (trial.user_attrs["hpo_mab:slot"], trial.user_attrs[SAMPLER_KEY])
            for trial in self.study.trials
            if TWIN_KEY in trial.user_attrs
        ]


def test_the_best_sampler_is_adopted_at_the_end() -> None:
    trials = _Trials(trials=30)
    gains = {
        "mab": lambda slot: 0.01,
        "trimmed": lambda slot: 0.02 + slot / 1000,
        "hard_half": lambda slot: 0.005,
    }
    choice = trials.run(gains)
    assert choice.sampler == "trimmed"
    assert (
        "trimmed, 7 pairs: +2.70 points (97.5% interval +2.40 to +3.00) at equal examples"
        in choice.why
    )
    assert choice.why.endswith("judged at equal examples")
    everyone = ["mab", "easy_first", "trimmed", "hard_half"]
    first = [(slot, name) for slot in (4, 5) for name in everyone]
    second = [(slot, name) for slot in (6, 7) for name in ("trimmed", "mab")]
    last = [(slot, "trimmed") for slot in (8, 9, 10)]
    assert trials.twins == [*first, *second, *last]
    assert {one.name: one.examples.n for one in choice.standings} == {
        "mab": 4,
        "easy_first": 2,
        "trimmed": 7,
        "hard_half": 2,
    }
    assert (choice.twins, choice.seconds) == (15, 15.0)
    assert Choice.from_json(choice.to_json()) == choice


def test_a_stored_race_goes_on_where_there_is_no_record() -> None:
    trials = _Trials(trials=30)
    for slot in range(6):
        trials.add("uniform", slot, 0.5, twin=False, seconds=1.0)
    assert trials.advance() is False  # The record is missing, but the plan is stored.
    # As `optuna.Study.optimize` goes on with it.
    trials.race = Race(parse_portfolio(None), initial=10, trials=30)
    assert trials.advance() is False
    trials.slots = 6
    assert trials.advance() is True
    assert {name for _, name in trials.twins} == {*_CHALLENGERS}
    assert trials.advance() is False


def test_a_pair_behind_can_end_a_short_race() -> None:
    """With seven pairs every one must be ahead."""

    def gain(slot: int) -> float:
        return 0.02 - 0.03 * (slot == 5)

    trials = _Trials(trials=30)
    choice = trials.run(dict.fromkeys(_CHALLENGERS, gain))
    assert (choice.sampler, len(trials.twins)) == ("uniform", 8)
    assert _Trials(trials=60).run({"mab": gain}).sampler == "mab"


def test_studies_of_one_objective_have_a_race_each() -> None:
    first = _Trials(trials=30)
    known = first.run({"mab": lambda _: 0.1})
    second = optuna.create_study(study_name=first.study.study_name, direction="maximize")
    assert known.sampler == "mab"
    assert stored_choice(second) is None
    assert first.race.sampler(second) == "uniform"
    assert first.race.end(second) == 0
    first.race.advance(second, has_record=lambda: True)
    assert first.race.end(second) > 0


def test_a_race_of_samplers_that_the_portfolio_lacks_is_refused() -> None:
    study = optuna.create_study(direction="maximize")
    Race(parse_portfolio(None), initial=10, trials=30).advance(study, has_record=lambda: True)
    other = Race(parse_portfolio(["uniform", "mab"]), initial=10, trials=30)
    for call in (
        lambda: other.advance(study, has_record=None),
        lambda: other.end(study),
        lambda: other.needs_record(study),
    ):
        with pytest.raises(ArgumentError, match="one with 'easy_first', which races, got uniform"):
            call()


def test_a_race_that_no_sampler_can_win_ends_early() -> None:
    trials = _Trials(trials=100)
    trials.race.advance(trials.study, has_record=lambda: True)
    assert trials.race.end(trials.study) == 26
    choice = trials.run({})
    assert choice.sampler == "uniform"
    assert "no other sampler could be shown to be ahead; best " in choice.why
    # After its first round; from then on trials may be pruned.
    assert trials.slots == 12
    assert trials.race.end(trials.study) == 0


def test_a_race_in_which_nothing_ends_says_so() -> None:
    trials = _Trials(trials=30)
    add = trials.add
    trials.add = lambda *args, **kwargs: add(*args[:2], -1.0, **kwargs)  # type: ignore[method-assign]
    choice = trials.run(dict.fromkeys(_CHALLENGERS, lambda _: -0.6))
    assert choice.sampler == "uniform"
    assert choice.why.startswith("no pair of trainings reached its end")


def test_what_is_not_shown_is_not_adopted() -> None:
    trials = _Trials(trials=30)
    # Ahead in all pairs but one of seven; by chance that happens once in 16 times or more.
    choice = trials.run({"mab": lambda slot: -0.001 if slot == 10 else 0.02})
    assert choice.sampler == "uniform"
    assert "mab, 7 pairs" in choice.why
    assert "not shown to be above 0" in choice.why


def test_a_twin_that_diverges_is_not_left_out() -> None:
    choice = _Trials(trials=30).run({"mab": lambda slot: -0.5 if slot == 10 else 0.02})
    assert choice.sampler == "uniform"
    assert choice.standings[0].examples.low == pytest.approx(-0.5)


def test_seconds_decide_where_the_budget_is_a_time() -> None:
    slow = {"mab": lambda slot: 0.02}
    examples = _Trials(trials=30).run(slow, cost=1.5)
    seconds = _Trials(trials=30, judged="seconds").run(slow, cost=1.5)
    assert (examples.sampler, seconds.sampler) == ("mab", "uniform")
    assert examples.standings[0].cost == seconds.standings[0].cost == 1.5
    # Both are shown.
    assert "at equal examples and -" in examples.why
    assert "at equal seconds" in examples.why


def test_too_few_trials_stay_with_uniform_sampling() -> None:
    choice = _Trials(trials=6).run({})
    assert (choice.sampler, choice.twins) == ("uniform", 0)
    assert choice.why == "6 trials are too few for a race: begin another study with at least 10"


# ---------------------------------------------------------------------------------- studies

_RACE: dict[str, Any] = {
    "sampler": {"kind": "auto"},
    "budget": {"trials": 12, "epochs": 1, "evaluations": 3},
}


def test_a_study_continues_with_the_choice(storage: Storage) -> None:
    spec = tiny(**_RACE, pruner={"kind": "advantage"})
    outcome = StudyRunner(spec, storage).run(score=False)
    choice = outcome.choice
    assert choice is not None
    twins = [trial for trial in outcome.run.trials if TWIN_KEY in trial.attrs]
    assert [trial.slot for trial in twins] == list(range(6))
    assert {trial.attrs[SAMPLER_KEY] for trial in twins} == {"mab"}
    for twin in twins:
        original = outcome.run.trials[twin.number - 1]
        assert (original.slot, original.attrs[SAMPLER_KEY]) == (twin.slot, "uniform")
        assert twin.params == original.params
        assert len(twin.curve) == len(original.curve) == 3
    later = [trial for trial in outcome.run.trials if trial.slot >= 6]
    assert [trial.attrs[SAMPLER_KEY] for trial in later] == [choice.sampler] * 6
    study = open_study(storage, outcome.run.name)
    assert study.user_attrs[CHOICE_KEY]["why"] == choice.why
    evidence = Evidence.from_json(study.user_attrs[EVIDENCE_KEY])
    assert (choice.pairs, choice.evidence, evidence.source) == (6, evidence.digest, "race")


@pytest.mark.parametrize("sampler", ["hard_half", "easy_first"])
def test_a_study_trains_with_the_sampler_that_was_chosen(
    storage: Storage, sampler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    monkeypatch.setattr(
        "hpo_mab.search._race._sampler_and_reason", lambda *_: (sampler, "the test says so")
    )
    from hpo_mab.search._workload import Workload

    make = Workload.sampler

    def watch(self: Workload, configuration: Any, **options: Any) -> Any:
        made.append(configuration.sampler.name)
        return make(self, configuration, **options)

    monkeypatch.setattr(Workload, "sampler", watch)
    StudyRunner(tiny(**_RACE), storage).run(score=False)
    expected = {"hard_half": "hard_mining", "easy_first": "curriculum"}[sampler]
    assert made[-6:] == [expected] * 6


def test_an_interrupted_race_resumes_to_the_same(resumes: Any) -> None:
    assert resumes(tiny(**_RACE), (3, 1), (4, 2), (13, 1)).choice is not None


def test_a_plan_stays_when_a_study_is_continued(storage: Storage) -> None:
    sections = {**_RACE, "budget": {"trials": 6, "epochs": 1, "evaluations": 3}}
    outcome = StudyRunner(tiny(**sections), storage).run(score=False)
    assert outcome.choice is not None
    assert "too few" in outcome.choice.why
    sections["budget"]["trials"] = 12
    again = StudyRunner(tiny(**sections), storage).run(score=False)
    assert again.choice == outcome.choice
    assert len(again.run.trials) == 12


# --------------------------------------------------------------------------------- evidence


def _raced(storage: Storage, sampler: str, monkeypatch: pytest.MonkeyPatch, path: Path) -> Evidence:
    """Evidence of a study whose race chose a sampler, saved to a file."""
    with monkeypatch.context() as patch:
        patch.setattr(
            "hpo_mab.search._race._sampler_and_reason", lambda *_: (sampler, "the test says so")
        )
        StudyRunner(tiny(**_RACE), storage).run("first", score=False)
    (evidence,) = race_evidence(["first"], storages=[str(storage.url)])
    path.write_text(json.dumps(evidence.to_json()))
    assert Evidence.load(path).to_json() == evidence.to_json()
    return evidence


@pytest.mark.parametrize("sampler", ["mab", "uniform"])
def test_a_later_study_uses_the_choice_without_a_race(
    storage: Storage, sampler: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "evidence.json"
    evidence = _raced(storage, sampler, monkeypatch, path)
    assert evidence.pairs == (6 if sampler == "mab" else 0)
    later = {
        "sampler": {"kind": "auto", "evidence": str(path)},
        "budget": {"trials": 3, "epochs": 1, "evaluations": 3},
        "seed": 1,  # The same data, split otherwise.
    }
    outcome = StudyRunner(tiny(**later), storage).run("later", score=False)
    choice = outcome.choice
    assert choice is not None
    assert (choice.sampler, choice.source) == (sampler, "first")
    assert choice.why.startswith("chosen by study 'first': the test says so")
    assert (choice.twins, len(choice.standings)) == (6, 1)
    assert [trial.attrs[SAMPLER_KEY] for trial in outcome.run.trials] == [sampler] * 3
    attrs = open_study(storage, "later").user_attrs
    assert RACE_KEY not in attrs
    # The study has its own copy of the choice; a copy of the file is accepted in its place.
    moved = path.rename(tmp_path / "moved.json")
    later["budget"]["trials"] = 4
    assert StudyRunner(tiny(**later), storage).run("later", score=False).choice == choice
    later["sampler"]["evidence"] = str(moved)
    check_study(storage, "later", tiny(**later))
    later["sampler"]["evidence"] = str(path)
    with pytest.raises(ArgumentError, match="cannot be read"):
        check_study(storage, "another", tiny(**later))
    with pytest.raises(ArgumentError, match="it took the choice of study 'first'; name that one"):
        race_evidence(["later"], storages=[str(storage.url)])


def test_evidence_without_pairs_is_warned_of(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "evidence.json"
    assert _raced(storage, "uniform", monkeypatch, path).pairs == 0
    spec = tiny(pruner={"kind": "advantage", "evidence": str(path)}, budget={"trials": 1})
    with pytest.warns(HpoMabWarning, match="holds no pairs"):
        StudyRunner(spec, storage).run("later", score=False)
    # The race of another study measures what the file lacks.
    raced = tiny(
        pruner={"kind": "advantage", "evidence": str(path)},
        sampler={"kind": "auto"},
        budget={"trials": 1, "epochs": 2},
    )
    with pytest.warns(HpoMabWarning, match="is not used"):
        StudyRunner(raced, storage).run("raced", score=False)
    study = open_study(storage, "raced")
    assert not study.user_attrs[GIVEN_KEY]["pruner"]
    assert not study_pruner(raced, study.user_attrs).keeper(study)._given


def test_a_choice_that_is_not_valid_is_not_used_and_the_study_says_so(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "evidence.json"
    evidence = _raced(storage, "mab", monkeypatch, path)
    longer = {
        "sampler": {"kind": "auto"},
        # The file of the pruner counts as well.
        "pruner": {"kind": "advantage", "evidence": str(path)},
        "budget": {"trials": 12, "epochs": 0.5, "evaluations": 3},
    }
    runner = StudyRunner(tiny(**longer), storage)
    with pytest.warns(HpoMabWarning, match=r"budget\.epochs is 1\.0 there and 0\.5 here"):
        outcome = runner.run("shorter", score=False)
    assert outcome.choice is not None
    assert outcome.choice.source == ""
    assert outcome.choice.twins > 0
    assert "the choice of study 'first' is not used: budget.epochs is" in outcome.choice.why
    # What its race measured is not kept, so the choice names no evidence.
    assert outcome.choice.evidence is None
    # The pruner uses it all the same, and keeps its copy from the start. The race measures its own.
    study = open_study(storage, "shorter")
    measured = _race._evidence(study, study.trials, "mab")
    assert measured is not None
    assert (measured.digest == evidence.digest, measured.pairs) == (False, 6)
    assert study.user_attrs[EVIDENCE_KEY] == evidence.to_json()
    path.unlink()
    check_study(storage, "shorter", tiny(**longer))


def test_the_difference_from_the_study_that_chose_is_named() -> None:
    spec = tiny(**_RACE).model_dump(mode="json")
    stored = {
        "study": "first",
        "choice": Choice(sampler="mab", why="so", data="1f").to_json(),
        "task": {},
    }
    raced = RaceOutcome.from_json(stored)
    task = {
        key: value
        for key, value in flat_spec(spec)
        if key in ("budget.epochs", "sampler.portfolio")
        or (key.startswith(("data.", "model.")) and key not in ("data.root", "data.download"))
    }
    task = {key: value for key, value in task.items() if value is not None}
    raced = RaceOutcome(study="first", choice=raced.choice, task=task)
    assert raced.difference(spec, data="1f") == ""
    assert raced.difference(spec, data="2e") == "its data have other images, labels or sizes"
    for sections, message in (
        ({"model": {"name": "small_cnn"}}, "model.name is 'mlp' there and 'small_cnn' here"),
        ({"budget": {"trials": 12, "epochs": 2}}, "budget.epochs is 1.0 there and 2.0 here"),
        ({"data": {"validation": 0.3}}, "data.validation is 0.2 there and 0.3 here"),
        (
            {"sampler": {"kind": "auto", "portfolio": ["uniform", "mab"]}},
            "sampler.portfolio differs",
        ),
        (
            {"budget": {"trials": 12, "epochs": 1, "total": "30m"}},
            "it was made at equal examples, samplers race at equal seconds here",
        ),
    ):
        other = tiny(**{**_RACE, **sections}).model_dump(mode="json")
        assert raced.difference(other, data="1f") == message
    # Where the data lie does not matter, nor how many trials there are.
    here = tiny(**_RACE, data={"root": "elsewhere"}).model_dump(mode="json")
    assert raced.difference(here, data="1f") == ""


def test_evidence_without_a_choice_is_refused(storage: Storage, tmp_path: Path) -> None:
    path = tmp_path / "evidence.json"
    path.write_text(json.dumps(Evidence(pairs=0, margin=0.1).to_json()))
    given = {"kind": "auto", "evidence": str(path)}
    with pytest.raises(ArgumentError, match=r"sampler\.evidence must hold the choice of a study"):
        check_study(storage, "none", tiny(sampler=given))
    path.write_text(json.dumps(Evidence(pairs=0, margin=0.1, race={"study": "x"}).to_json()))
    with pytest.raises(ArgumentError, match="its race cannot be read"):
        check_study(storage, "none", tiny(sampler=given))
    with pytest.raises(SpecError, match="evidence needs kind = 'auto', got 'mab'"):
        tiny(sampler={"kind": "mab", "evidence": "evidence.json"})
    trials = _Trials(trials=6)
    trials.study.set_user_attr(GIVEN_KEY, {"unused": "its choice is not used"})
    assert trials.run({}).why.endswith("with at least 10; its choice is not used")


def test_the_cost_of_a_race_counts_each_training_once() -> None:
    costs = {}
    cases: dict[str, dict[str, Any]] = {
        "whole": {},
        "continued": {"resumed_at": 1},
        "begun again": {},
        "unreported": {"unreported": [60, 2.0]},
    }
    for case, more in cases.items():
        trials = _Trials(trials=12)
        trials.add("uniform", 0, 0.5, twin=False, seconds=1.0)
        trials.slots = 1
        if case in ("continued", "begun again"):
            trials.cut_off(0, "mab")
        trials.add("mab", 0, 0.51, twin=True, seconds=1.0, **more)
        choice = trials.run({"mab": lambda slot: 0.01 + 0.001 * slot})
        costs[case] = (choice.twins, choice.examples, choice.seconds)
    twins, examples, seconds = costs["whole"]
    assert costs["continued"] == costs["whole"]
    assert costs["begun again"] == (twins, examples + 60, seconds + 5.0)
    assert costs["unreported"] == (twins, examples + 60, seconds + 2.0)


def test_twins_of_one_sampler_are_queued_together() -> None:
    """In slots they then share a stack."""
    trials = _Trials(trials=30)
    for slot in range(10):
        trials.add("uniform", slot, 0.5, twin=False, seconds=1.0)
    trials.slots = 10
    assert trials.advance()
    names = [name for _, name in trials.twins]
    assert len(names) > len(set(names)) > 1
    blocks = [name for name, _ in itertools.groupby(names)]
    assert len(blocks) == len(set(blocks))
