"""Summaries of synthetic comparisons whose truth is known."""

import json
import math

import numpy as np
import pytest

from hpo_mab._errors import ArgumentError, UnknownNameError
from hpo_mab.compare import ComparisonSummary, summarise


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


def test_identical_arms_show_nothing(study):
    runs = [
        study(arm, seed, paired=4, noise=0.0, sampler_share=0.01 * seed)
        for seed in range(5)
        for arm in ("uniform", "mab")
    ]
    contrast = contrast_of(runs)
    assert all(row.advantage.value == 0.0 for row in contrast.paired)
    assert not any(row.acceleration.above(1.0) for row in contrast.paired)
    assert contrast.gain["examples"].value == 0.0
    assert contrast.gain_p["examples"] == 1.0
    assert {found.ratio.value for found in contrast.cost} == {1.0}
    assert all(row.agreement("kendall").difference.value == 0.0 for row in contrast.paired)


def test_arms_alike_but_for_noise_are_rarely_told_apart(study):
    # 40 comparisons at 95%: more than 7 wrong ones have probability below 0.002.
    wrong = 0
    for repetition in range(40):
        seeds = range(5 * repetition, 5 * repetition + 5)
        runs = [
            study(arm, seed, trials=4, paired=0, pruned=0, noise=0.03)
            for seed in seeds
            for arm in ("uniform", "mab")
        ]
        gain = contrast_of(runs).gain["examples"]
        wrong += gain.above(0.0) or gain.below(0.0)
    assert wrong <= 7


def test_gain_is_at_what_the_cheaper_study_spent(trial, run):
    cheap = run([trial([0.2, 0.6], number=0, examples=100)], arm="mab")
    long = run(
        [trial([0.2, v], number=i, examples=100) for i, v in enumerate((0.5, 0.9))], arm="uniform"
    )
    assert contrast_of([cheap, long]).gain["examples"].value == pytest.approx(0.1)


def test_only_common_seeds_are_paired(study):
    runs = [study("uniform", seed) for seed in (0, 1, 2)] + [study("mab", seed) for seed in (1, 9)]
    contrast = contrast_of(runs)
    assert contrast.seeds == (1,)
    assert contrast.gain["examples"].n == 1
    assert not contrast.gain["examples"].bounded
    assert contrast.pairs == 8


def test_retrained_scores_are_means_of_each_seed(study):
    runs = [study(arm, seed, paired=0) for arm in ("mab", "uniform") for seed in range(5)]
    retrained = {
        (arm, s): [0.8 + 0.01 * s * (arm == "mab")] * 2
        for arm in ("mab", "uniform")
        for s in range(4)
    }
    found = summarise(runs, retrained=retrained)
    assert found.arms[0].retrained.n == 4
    assert found.contrasts[0].retrained_gain.value == pytest.approx(0.015)
    assert found.contrasts[0].retrained_gain.n == 4
    assert found.contrasts[0].retrained_p is None


def test_several_arms_and_another_reference(study):
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


def test_studies_that_have_nothing_yet(run, trial):
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
def test_json_round_trip(runs, with_retrained):
    scores = {(arm, 0): [0.9] for arm in ("mab", "uniform")} if with_retrained else None
    found = summarise(runs[:4], retrained=scores)
    text = json.dumps(found.to_json(), allow_nan=False)
    again = ComparisonSummary.from_json(json.loads(text))
    # NaN is unequal to itself; its text is not.
    assert repr(again) == repr(found)


def test_same_seed_same_summary(runs):
    assert repr(summarise(runs[:4], seed=1)) == repr(summarise(runs[:4], seed=1))


def test_what_cannot_be_compared_is_refused(runs):
    with pytest.raises(ArgumentError, match="at least one study"):
        summarise([])
    with pytest.raises(ArgumentError, match="'uniform', seed 0 twice"):
        summarise([runs[0], runs[0]])
    with pytest.raises(UnknownNameError, match=r"'unifrom'.*'uniform'"):
        summarise(runs, reference="unifrom")
    with pytest.raises(ArgumentError, match="confidence"):
        summarise(runs, confidence=95)
