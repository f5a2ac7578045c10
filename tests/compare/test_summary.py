"""Summaries of synthetic comparisons whose truth is known."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from made_up import run, study, trial

from hpo_mab._attributes import REASON_KEY
from hpo_mab._errors import ArgumentError, UnknownNameError
from hpo_mab.compare import answers, summarise
from hpo_mab.compare._records import geometric_mean


def contrast_of(runs, **options):
    (contrast,) = summarise(runs, **options).contrasts
    return contrast


def test_arms_are_counted(summary, runs):
    uniform, mab = summary.arms
    assert (summary.reference, uniform.arm, mab.arm) == ("uniform", "uniform", "mab")
    assert (summary.data, summary.model) == ("made_up", "small_cnn")
    assert mab.seeds == (0, 1, 2, 3, 4)
    assert mab.trials == {"complete": 50, "pruned": 10}
    assert mab.examples == sum(run.examples for run in runs if run.arm == "mab")
    # Two of twelve trials of each study stop at half: 1/12 of the full spend.
    assert mab.saved_share == pytest.approx(1 / 12)
    assert mab.sampler_share.value == pytest.approx(0.05)
    best = [run.best.value for run in runs if run.arm == "mab"]
    assert mab.best_by_seed == pytest.approx(tuple(best))
    assert mab.best_median == pytest.approx(np.median(best))


def test_a_share_of_the_sampler_that_no_trial_measured_is_not_zero():
    runs = [study(arm, 0, paired=4, sampler_share=0.0) for arm in ("uniform", "mab")]
    summary = summarise(runs)
    assert all(np.isnan(arm.sampler_share.value) for arm in summary.arms)


def test_a_known_advantage_is_found(summary):
    (contrast,) = summary.contrasts
    assert (contrast.arm, contrast.reference, contrast.pairs) == ("mab", "uniform", 40)
    assert len(contrast.paired) == 8
    early = contrast.paired[1]
    assert early.advantage.above(0.0)
    assert early.advantage_p < 0.001
    assert early.acceleration.value == pytest.approx(1.5, rel=0.05)
    # The bandit's example costs 3% more.
    assert early.acceleration_seconds.value == pytest.approx(1.5 / 1.03, rel=0.05)
    assert early.advantage_seconds.value < early.advantage.value
    assert contrast.seconds_per_example.value == pytest.approx(1.03)
    assert contrast.paired[-1].acceleration.censored
    assert contrast.gain["examples"].above(0.0)


def test_identical_arms_show_nothing():
    runs = [
        study(arm, seed, paired=4, noise=0.0, sampler_share=0.01 * seed)
        for seed in range(5)
        for arm in ("uniform", "mab")
    ]
    contrast = contrast_of(runs)
    assert contrast.paired
    assert all(row.advantage.value == 0.0 for row in contrast.paired)
    assert not any(row.acceleration.above(1.0) for row in contrast.paired)
    assert contrast.gain["examples"].value == 0.0
    assert contrast.gain_p["examples"] == 1.0
    assert {found.ratio.value for found in contrast.cost} == {1.0}
    assert all(row.agreement("kendall").difference.value == 0.0 for row in contrast.paired)


def test_gain_is_at_what_the_cheaper_study_spent():
    cheap = run([trial([0.2, 0.6], number=0, examples=100)], arm="mab")
    long = run(
        [trial([0.2, v], number=i, examples=100) for i, v in enumerate((0.5, 0.9))], arm="uniform"
    )
    assert contrast_of([cheap, long]).gain["examples"].value == pytest.approx(0.1)


def test_only_common_seeds_are_paired():
    runs = [study("uniform", seed) for seed in (0, 1, 2)] + [study("mab", seed) for seed in (1, 9)]
    contrast = contrast_of(runs)
    assert contrast.seeds == (1,)
    assert contrast.gain["examples"].n == 1
    assert not contrast.gain["examples"].bounded
    assert contrast.pairs == 8


def test_retrained_scores_are_means_of_each_seed():
    runs = [study(arm, seed, paired=0) for arm in ("mab", "uniform") for seed in range(5)]
    again = [
        dataclasses.replace(run, retrained=(0.8 + 0.01 * run.seed * (run.arm == "mab"),) * 2)
        for run in runs
        if run.seed < 4
    ]
    found = summarise([*again, *(run for run in runs if run.seed == 4)])
    assert found.arms[0].retrained.n == 4
    assert found.contrasts[0].retrained_gain.value == pytest.approx(0.015)
    assert found.contrasts[0].retrained_gain.n == 4
    assert found.contrasts[0].retrained_p is None


def test_several_arms_and_another_reference():
    arms = ("mab", "uniform", "psgd")
    runs = [study(arm, seed, paired=2) for arm in arms for seed in (0, 1)]
    found = summarise(runs, reference="mab")
    assert [arm.arm for arm in found.arms] == ["mab", "psgd", "uniform"]
    assert [(c.arm, c.reference) for c in found.contrasts] == [("psgd", "mab"), ("uniform", "mab")]


def test_fidelity_uses_configurations_both_arms_took_that_far(summary):
    for row in summary.contrasts[0].paired:
        taus = row.agreement("kendall"), row.agreement("kendall", final="own")
        assert {t.arm.n for t in taus} == {t.reference.n for t in taus} == {40}
    last = summary.contrasts[0].paired[-1]
    assert last.agreement("kendall").reference.value == 1.0
    assert last.agreement("kendall").arm.value < 1.0
    assert last.agreement("kendall", final="own").arm.value == 1.0


def test_studies_that_have_nothing_yet():
    runs = [
        run([], arm="uniform"),
        run([trial([0.3], state="running", examples=100)], arm="mab"),
    ]
    found = summarise(runs)
    assert found.arms[0].best_median is None
    assert math.isnan(found.contrasts[0].gain["examples"].value)
    assert (found.contrasts[0].pairs, found.contrasts[0].paired) == (0, ())
    assert found.contrasts[0].cost == ()


@pytest.mark.parametrize("with_retrained", [False, True])
def test_a_summary_is_json(runs, with_retrained):
    scores = (0.9,) if with_retrained else ()
    found = summarise([dataclasses.replace(run, retrained=scores) for run in runs[:4]])
    plain = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert plain["contrasts"][0]["gain"] == {
        currency: gain.to_json() for currency, gain in found.contrasts[0].gain.items()
    }
    assert (plain["contrasts"][0]["retrained_gain"] is not None) == with_retrained


def test_same_seed_same_summary(runs):
    assert repr(summarise(runs[:4])) == repr(summarise(runs[:4]))


def test_what_cannot_be_compared_is_refused(runs):
    with pytest.raises(ArgumentError, match="at least one study"):
        summarise([])
    with pytest.raises(ArgumentError, match="'uniform', seed 0 twice"):
        summarise([runs[0], runs[0]])
    with pytest.raises(UnknownNameError, match=r"reference 'unifrom'.*'uniform'"):
        summarise(runs, reference="unifrom")


def test_geometric_mean_of_reciprocals_is_one():
    found = geometric_mean([0.5, 2.0, 0.25, 4.0, 1.0])
    assert found.value == pytest.approx(1.0)
    assert found.low == pytest.approx(1 / found.high)
    assert found.n == 5


def test_censored_mean_has_no_upper_end():
    whole, censored = (geometric_mean([2.0, 3.0, 4.0], censored=c) for c in (False, True))
    assert (censored.value, censored.low) == (whole.value, whole.low)
    assert (censored.high, censored.censored) == (math.inf, True)


@pytest.mark.parametrize("ratios", [[2.0], [1.5, 1.5, 1.5]])
def test_no_variation_gives_no_interval(ratios):
    found = geometric_mean(ratios)
    assert (found.low, found.high) == (0.0, math.inf)
    assert found.value == pytest.approx(ratios[0])


def test_the_samplers_share_is_that_of_the_trials_that_measured_it():
    alone, stacked = trial([0.5, 0.6], number=0), trial([0.5, 0.6], number=1, sampler_share=0.0)
    (arm,) = summarise([run([alone, stacked], arm="uniform")]).arms
    assert arm.sampler_share.value == pytest.approx(0.05)


def test_seconds_of_other_processors_are_not_compared(runs):
    def replies(**changed):
        usual = {"cpu": "a", "cpu_cores": 2, "gpus": []}
        found = answers(
            contrast_of(
                [
                    dataclasses.replace(
                        run,
                        environment=usual | (changed if (run.arm, run.seed) == ("mab", 3) else {}),
                    )
                    for run in runs
                ]
            )
        )
        return {(one.question, one.currency): one for one in found}

    same = replies(python="3.13")
    assert same["learns", "seconds"].reply == "yes"
    assert replies(cpu_threads=9)["learns", "seconds"].reply == "cannot tell"
    other = replies(cpu="b")
    assert other["learns", "examples"].reply == "yes"
    assert other["learns", "seconds"].reply == "cannot tell"
    assert "different processors" in other["learns", "seconds"].reason


@pytest.mark.parametrize(
    ("known", "devices", "same"),
    [
        ({"gpus": ["A", "A"]}, ("cuda:0", "cuda:1"), True),
        ({"gpus": ["A", "B"]}, ("cuda:0", "cuda:1"), False),
        ({"mps": True}, ("auto", "mps"), True),
        ({"mps": True}, ("auto", "cpu"), False),
    ],
)
def test_devices_of_one_kind_are_equal(runs, known, devices, same):
    changed = [
        dataclasses.replace(
            run,
            environment={"cpu": "a", "cpu_cores": 2, **known},
            spec={**run.spec, "training": {"device": devices[run.arm == "mab"]}},
        )
        for run in runs
    ]
    assert contrast_of(changed).same_hardware is same


def test_the_cost_of_the_pairs_is_that_of_no_other_trial():
    paces = {"mab": (5e-4, 4e-3), "uniform": (1e-3, 1e-3)}
    contrast = contrast_of(
        [
            run(
                [
                    trial([0.5, 0.6], number=n, seconds_per_example=pace, paired=n == 0)
                    for n, pace in enumerate(both)
                ],
                arm=arm,
            )
            for arm, both in paces.items()
        ]
    )
    assert contrast.pair_cost == pytest.approx(0.5)
    assert contrast.seconds_per_example.value == pytest.approx(2.25)


def test_an_arm_without_trials_has_no_other_slots():
    assert contrast_of([study("uniform", 0), run([], arm="mab")]).same_slots


def test_an_attempt_that_is_tried_again_has_not_diverged():
    lost = trial([0.5], number=0, state="fail")
    lost = dataclasses.replace(lost, attrs={REASON_KEY: "its worker ended suddenly"})
    again = dataclasses.replace(trial([0.5], number=1, state="running"), slot=0)
    whole = trial([0.5, 0.6], number=0)
    assert contrast_of([run([whole], arm="uniform"), run([lost, again], arm="mab")]).diverged == (
        0,
        0,
    )
    assert contrast_of([run([whole], arm="uniform"), run([lost], arm="mab")]).diverged == (1, 0)
