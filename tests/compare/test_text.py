"""Each question has one answer, which rests on one measure."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from made_up import run, study, trial

from hpo_mab._attributes import (
    INTERRUPTED_KEY,
    LENGTH_KEY,
    REASON_KEY,
    SAMPLER_KEY,
    STACK_SLOTS_KEY,
    TWIN_KEY,
)
from hpo_mab.advantage import Estimate
from hpo_mab.compare import answers, caveats, summarise, verdict
from hpo_mab.compare._text import study_facts
from hpo_mab.storage import StudyRun

ARMS = ("mab", "uniform")
QUESTIONS = [
    ("learns", "examples"),
    ("learns", "seconds"),
    ("model", "examples"),
    ("model", "seconds"),
    ("hyperparameters", None),
]


def found(low, high, n=5):
    return Estimate(value=(low + high) / 2, low=low, high=high, n=n)


def with_measure(contrast, question, currency, estimate):
    """The contrast with another estimate for one question."""
    if question == "hyperparameters":
        return dataclasses.replace(contrast, retrained_gain=estimate)
    if question == "model":
        return dataclasses.replace(contrast, gain={**contrast.gain, currency: estimate})
    field = "advantage_seconds" if currency == "seconds" else "advantage"
    last = dataclasses.replace(contrast.paired[-1], **{field: estimate})
    return dataclasses.replace(contrast, paired=(*contrast.paired[:-1], last))


def replies(contrast):
    return {(one.question, one.currency): one.reply for one in answers(contrast)}


@pytest.mark.parametrize(("question", "currency"), QUESTIONS)
@pytest.mark.parametrize(
    ("low", "high", "reply"),
    [(0.001, 0.02, "yes"), (-0.02, -0.001, "no"), (-0.01, 0.02, "cannot tell")],
)
def test_each_measure_answers_its_question_and_no_other(
    summary, question, currency, low, high, reply
):
    (contrast,) = summary.contrasts
    if question == "learns":
        # At equal seconds pairs have no other reply than at equal examples.
        other = "seconds" if currency == "examples" else "examples"
        contrast = with_measure(contrast, "learns", other, found(low, high))
    before = replies(contrast)
    after = replies(with_measure(contrast, question, currency, found(low, high)))
    assert list(after) == QUESTIONS
    both = {("learns", one): reply for one in ("examples", "seconds") if question == "learns"}
    assert after == {**before, **both, (question, currency): reply}


@pytest.mark.parametrize("at_examples", [found(-0.01, 0.02), found(0.001, 0.02)])
def test_a_slower_arm_is_not_worse_because_it_is_read_before_its_end(summary, at_examples):
    (contrast,) = summary.contrasts
    contrast = with_measure(contrast, "learns", "examples", at_examples)
    contrast = with_measure(contrast, "learns", "seconds", found(-0.02, -0.01))
    answer = answers(contrast)[1]
    assert answer.reply == "cannot tell"
    assert "the slower arm is read before the end of its trials" in str(answer)


def test_a_cheaper_arm_is_not_worse_at_equal_seconds(summary):
    (contrast,) = summary.contrasts
    for currency in ("examples", "seconds"):
        contrast = with_measure(contrast, "learns", currency, found(-0.02, -0.01))
    pace = dataclasses.replace(contrast.seconds_per_example, value=0.5)  # Of all trials.
    assert answers(dataclasses.replace(contrast, seconds_per_example=pace))[1].reply == "no"
    both = answers(dataclasses.replace(contrast, pair_cost=0.5))[:2]
    assert [one.reply for one in both] == ["no", "cannot tell"]
    assert "what longer ones would reach is not known" in str(both[1])


def diverged(made: StudyRun, *slots: int) -> StudyRun:
    trials = [
        dataclasses.replace(
            one, state="pruned", value=None, curve=(), attrs={REASON_KEY: "loss is nan"}
        )
        if one.slot in slots
        else one
        for one in made.trials
    ]
    return dataclasses.replace(made, trials=tuple(trials))


def test_what_diverged_is_counted_against_an_arm_that_is_ahead():
    mab, uniform = study("mab", 0, lift=0.02), study("uniform", 0)
    assert answers(summarise([mab, uniform]).contrasts[0])[0].reply == "yes"
    found = summarise([diverged(mab, 0, 1, 2), diverged(uniform, 2)])
    (contrast,) = found.contrasts
    assert contrast.diverged == (2, 0)
    first = answers(contrast)[0]
    assert (first.reply, first.estimate.n) == ("cannot tell", 5)
    assert "2 configurations diverged or failed in mab, 0 in uniform" in str(first)
    (said,) = [line for line in caveats(found) if "diverged" in line]
    assert said.startswith(
        "Of the same configurations 2 diverged or failed in mab only and 0 in uniform"
    )
    # Earlier accuracies of those that diverged are compared.
    assert said.endswith("They are in no pair at the end of a trial.")
    failed = dataclasses.replace(diverged(mab, 0).trials[0], state="fail")
    retried = dataclasses.replace(mab, trials=(failed, *mab.trials))
    assert summarise([retried, uniform]).contrasts[0].diverged == (0, 0)
    never = dataclasses.replace(mab, trials=(failed, *mab.trials[1:]))
    assert summarise([never, uniform]).contrasts[0].diverged == (1, 0)
    # It is no excuse of the arm that diverged less.
    found = summarise([mab, diverged(uniform, 0, 1)])
    assert answers(found.contrasts[0])[0].reply == "yes"


def test_pairs_that_a_pruner_has_left_have_no_answer():
    mab, uniform = study("mab", 0, lift=0.02), study("uniform", 0)
    pruned = dataclasses.replace(mab.trials[1], state="pruned", value=None)
    stopped = dataclasses.replace(pruned, curve=pruned.curve[:4])
    mab = dataclasses.replace(mab, trials=(mab.trials[0], stopped, *mab.trials[2:]))
    (contrast,) = summarise([mab, uniform]).contrasts
    assert (contrast.stopped, contrast.pairs, contrast.diverged) == (1, 8, (0, 0))
    first = answers(contrast)[0]
    assert (first.reply, first.estimate.n) == ("cannot tell", 7)
    assert "a pruner stopped 1 of the pairs" in str(first)


def test_only_the_same_configurations_within_one_budget_count_as_diverged():
    def changed(made: StudyRun, **change: Any) -> StudyRun:
        first = dataclasses.replace(made.trials[0], **change)
        return dataclasses.replace(made, trials=(first, *made.trials[1:]))

    uniform = study("uniform", 0)
    other = changed(diverged(study("mab", 0), 0), params={"lr": -1.0})
    assert summarise([other, uniform]).contrasts[0].diverged == (0, 0)
    # A trial that diverged beyond its budget has its end within it.
    mab = study("mab", 0)
    beyond = dataclasses.replace(
        diverged(mab, 0).trials[0], number=99, attrs={REASON_KEY: "nan", LENGTH_KEY: 2}
    )
    longer = dataclasses.replace(mab, trials=(*mab.trials, beyond))
    assert summarise([longer, uniform]).contrasts[0].diverged == (0, 0)
    # The first trials of a race are uniform.
    attrs = {REASON_KEY: "nan", SAMPLER_KEY: "uniform"}
    race = changed(diverged(mab, 0), attrs=attrs)
    race = dataclasses.replace(race, spec={**race.spec, "sampler": {"kind": "auto"}})
    assert summarise([race, uniform]).contrasts[0].diverged == (0, 0)


def test_a_seed_without_a_result_at_equal_spend_leaves_no_answer():
    runs = [study(arm, seed, lift=0.05 * (arm == "mab")) for seed in range(3) for arm in ARMS]
    assert answers(summarise(runs).contrasts[0])[2].reply == "yes"
    # In one seed only trials that were stopped, until the other arm had spent all.
    none = [dataclasses.replace(t, state="pruned", value=None) for t in runs[0].trials]
    last = dataclasses.replace(runs[0].trials[0], number=99)
    runs[0] = dataclasses.replace(runs[0], trials=(*none, last))
    answer = answers(summarise(runs).contrasts[0])[2]
    assert answer.reply == "cannot tell"
    assert "not measured in 1 of 3 seeds" in str(answer)


def test_many_answers_are_not_each_as_sure_as_one():
    arms = (*ARMS, "psgd")
    runs = [study(arm, seed, lift=0.05 * (arm == "mab")) for seed in range(3) for arm in arms]
    assert any(
        "There are 10 answers, each with a 95% interval: some" in line
        for line in caveats(summarise(runs))
    )
    two = [run for run in runs if run.arm != "psgd"]
    assert not any("answers" in line for line in caveats(summarise(two)))


def test_an_answer_is_one_line_with_its_figures(summary):
    (contrast,) = summary.contrasts
    made = with_measure(contrast, "learns", "examples", found(-0.02, -0.001, n=40))
    line = str(answers(made)[0])
    assert line == (
        "mab: same configuration learns more at equal examples? no, less "
        "(-1.05 points, 95% interval -2.00 to -0.10, n = 40 pairs)."
    )
    assert str(answers(contrast)[4]) == "mab: better hyperparameters? cannot tell (not measured)."
    lines = verdict(summary).splitlines()
    assert lines == [str(one) for one in answers(contrast)]


def test_one_seed_cannot_tell_about_the_search(runs):
    (contrast,) = summarise(runs[:2]).contrasts
    assert replies(contrast) == {
        ("learns", "examples"): "yes",
        ("learns", "seconds"): replies(contrast)["learns", "seconds"],
        ("model", "examples"): "cannot tell",
        ("model", "seconds"): "cannot tell",
        ("hyperparameters", None): "cannot tell",
    }
    said = verdict(summarise(runs[:2]))
    assert "n = 1 seed)" in said
    assert "One seed cannot tell whether a search is better" in said
    assert "One seed" not in verdict(summarise(runs))
    alone = summarise([study("mab", 0, paired=0), study("uniform", 0, paired=0)])
    said = str(answers(alone.contrasts[0])[0])
    assert said.endswith(
        "cannot tell (there are no pairs: no configuration with a learning curve was trained by "
        "both arms under their own samplers)."
    )


def in_slots(run, slots):
    trials = [dataclasses.replace(t, attrs={STACK_SLOTS_KEY: slots}) for t in run.trials]
    return dataclasses.replace(run, trials=tuple(trials))


@pytest.mark.parametrize(
    "change", [lambda run: in_slots(run, 8), lambda run: dataclasses.replace(run, processes=8)]
)
def test_seconds_of_other_slots_or_processes_get_no_answer(runs, change):
    mixed = summarise([change(run) if run.arm == "mab" else run for run in runs])
    (contrast,) = mixed.contrasts
    alone = replies(summarise(runs).contrasts[0])
    assert "cannot tell" not in {alone[question] for question in QUESTIONS[:4]}
    for question, reply in replies(contrast).items():
        assert reply == ("cannot tell" if "seconds" in question else alone[question])
    assert "trained in different numbers of slots or processes" in str(answers(contrast)[1])
    assert "Seconds of mab and uniform cannot be compared" in verdict(mixed)
    # In equally many they can.
    same = summarise([change(run) for run in runs])
    assert replies(same.contrasts[0]) == alone


def test_studies_of_unequal_length_are_named(runs):
    longer = summarise([study("mab", 0, trials=20), study("uniform", 0)])
    (said,) = [line for line in caveats(longer) if "Unequal" in line]
    assert "finished trials by seed: 20 in mab, 12 in uniform" in said
    assert said.endswith("the cheaper study spent; hyperparameters as each study ended.")
    assert not any("Unequal" in line for line in caveats(summarise(runs)))


def test_unequal_spend_is_named_where_hyperparameters_are_compared():
    runs = [study("mab", 0, paired=0, pruned=6), study("uniform", 0, paired=0)]
    scored = [dataclasses.replace(run, retrained=(0.8,)) for run in runs]
    said = (
        "mab spent 0.82 times uniform's examples; hyperparameters are compared as each study ended."
    )
    assert said in caveats(summarise(scored))
    assert said not in caveats(summarise(runs))


def test_keys_in_which_the_arms_also_differ_are_named():
    def said(training):
        runs = [study(arm, 0, paired=0) for arm in ARMS]
        kind = {"sampler": {"kind": "mab"}, "training": training}
        runs[0] = dataclasses.replace(runs[0], spec={**runs[0].spec, **kind})
        return [line for line in caveats(summarise(runs)) if "also differ" in line]

    assert said({"average": 0.0, "threads": 1}) == [
        "mab and uniform also differ in training.average: the answers are about these, too."
    ]
    assert said({}) == []


def test_trainings_of_the_best_that_diverged_are_named():
    scores = {"mab": (0.8, 0.0), "uniform": (0.8, 0.7)}
    found = summarise(
        [
            dataclasses.replace(study(arm, seed, paired=0), retrained=scores[arm])
            for arm in ARMS
            for seed in range(2)
        ]
    )
    assert {one.arm: one.retrained_diverged for one in found.arms} == {"mab": 2, "uniform": 0}
    (said,) = [line for line in caveats(found) if "diverged" in line]
    assert said == (
        "Of the trainings of mab's best configurations 2 diverged; each counts as a test accuracy "
        "of 0."
    )


@pytest.mark.parametrize(
    ("budget", "initial", "facts"),
    [
        (
            {"evaluations": 1, "epochs": 1},
            0,
            {
                "budget per trial": "8,000 training examples, 1 epoch, 1 evaluation",
                "search": "tpe, seed 0",
            },
        ),
        (
            {"evaluations": 2, "epochs": 2},
            3,
            {
                "budget per trial": "8,000 training examples, 2 epochs, 2 evaluations",
                "search": "tpe, seed 0; the seed fixes the first 3 configurations, which are never "
                "pruned",
            },
        ),
    ],
)
def test_facts_of_a_study_leave_out_what_there_is_not(budget, initial, facts):
    spec = {"budget": budget, "search": {"sampler": "tpe", "initial": initial}}
    made = dataclasses.replace(run([], arm="mab"), spec=spec)
    assert facts.items() <= dict(study_facts(made)).items()


def test_facts_of_a_study_have_the_name_of_a_file_only():
    spec = {
        "data": {"name": "image_folder", "exclude": "/home/me/wrong.txt"},
        "sampler": {"kind": "auto", "evidence": r"C:\Users\me\race.json"},
    }
    facts = dict(study_facts(dataclasses.replace(run([], arm="auto"), spec=spec)))
    assert facts["data"] == "image_folder, exclude wrong.txt"
    assert facts["batch sampler"] == "auto, evidence race.json"


def test_twins_and_interrupted_attempts_are_no_trials():
    cut = trial([0.5], number=2, state="fail")
    made = run(
        [
            trial([0.5, 0.6], number=0),
            dataclasses.replace(trial([0.5, 0.6], number=1), attrs={TWIN_KEY: 0}),
            dataclasses.replace(cut, attrs={INTERRUPTED_KEY: True}),
            trial([0.5], number=3, state="fail"),
        ],
        arm="uniform",
    )
    (arm,) = summarise([made]).arms
    assert arm.trials == {"complete": 1, "fail": 1}
    assert arm.finished_by_seed == (1,)


def test_equal_trainings_are_named_and_their_seconds_are_not_compared():
    # The same trainings, the second on a machine that does other work.
    slow = {"seconds_per_example": 2e-3}
    runs = [study(arm, 0, noise=0.0, **kwargs) for arm, kwargs in (("mab", slow), ("uniform", {}))]
    first, second, *_ = answers(summarise(runs).contrasts[0])
    assert second.estimate.below(0.0)
    assert (first.reply, second.reply) == ("cannot tell", "cannot tell")
    figures = "all differences are 0; +0.00 points, no interval, n = 8 pairs"
    assert str(first).endswith(f"cannot tell ({figures}).")
    assert "cannot tell (the same trainings in both arms; -" in str(second)


def test_answers_are_json(summary):
    text = json.dumps([one.to_json() for one in answers(summary.contrasts[0])], allow_nan=False)
    first = json.loads(text)[0]
    assert (first["question"], first["currency"]) == ("learns", "examples")
    assert first["text"] == str(answers(summary.contrasts[0])[0])


def test_answers_of_each_arm():
    arms = ("mab", "uniform", "psgd")
    runs = [study(arm, seed, paired=0) for arm in arms for seed in (0, 1)]
    lines = verdict(summarise(runs)).splitlines()
    assert [line.split(":")[0] for line in lines] == ["mab"] * 5 + ["psgd"] * 5


def test_nothing_to_compare(runs):
    assert "nothing to compare" in verdict(summarise(runs[:1]))


def test_seconds_of_a_busy_machine_are_named():
    def slowed(times: float) -> list[str]:
        paces = {"uniform": 1e-3, "mab": 1.03e-3 * times}
        runs = [
            study(arm, seed, seconds_per_example=pace)
            for seed in range(5)
            for arm, pace in paces.items()
        ]
        return [line for line in caveats(summarise(runs)) if "seconds per example" in line]

    assert slowed(1.0) == []
    (line,) = slowed(30.0)
    assert "if the machine did other work" in line


def test_arms_without_a_common_seed_are_named():
    summary = summarise([study("mab", 0), study("uniform", 1)])
    assert "mab and uniform have no seed in common: nothing can be compared." in caveats(summary)
