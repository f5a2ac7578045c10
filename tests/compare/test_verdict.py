"""The verdict says what the deciding interval says, with n, data and budget."""

import dataclasses

import pytest

from hpo_mab.advantage import Estimate
from hpo_mab.compare import outcome, summarise, verdict


def with_found(summary, *, model=None, retrained=None):
    contrast = summary.contrasts[0]
    paired = contrast.paired
    if model is not None:
        paired = (*paired[:-1], dataclasses.replace(paired[-1], advantage=model))
    contrast = dataclasses.replace(contrast, paired=paired, retrained_gain=retrained)
    return dataclasses.replace(summary, contrasts=(contrast,))


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.001, 0.02, "mab helps compared with uniform"),
        (-0.02, -0.001, "mab hurts compared with uniform"),
        (-0.01, 0.02, "mab is not distinguishable from uniform"),
    ],
)
def test_pairs_say_whether_the_model_is_better(summary, low, high, expected):
    found = Estimate(value=(low + high) / 2, low=low, high=high, n=40)
    said = verdict(with_found(summary, model=found))
    assert said.startswith(f"{expected} on made_up, at 5 seeds and 8,000 examples a trial")
    assert f"(95% interval {100 * low:+.2f} to {100 * high:+.2f}, n = 40)" in said
    assert "at equal seconds" in said
    assert "yperparameters" not in said
    assert said.count("\n") == 0
    assert said.endswith(".")


@pytest.mark.parametrize(
    ("low", "high", "expected", "words"),
    [
        (-0.03, -0.01, "hurts", "It finds worse hyperparameters: re-trained test accuracy -2.00"),
        (0.01, 0.03, "helps", "It finds better hyperparameters: re-trained test accuracy +2.00"),
        (-0.01, 0.02, "is not distinguishable", "The hyperparameters found are not disting"),
    ],
)
def test_retraining_says_whether_the_hyperparameters_are_better(
    summary, low, high, expected, words
):
    found = Estimate(value=(low + high) / 2, low=low, high=high, n=5)
    made = with_found(summary, retrained=found)
    assert outcome(made.contrasts[0], "hyperparameters") == expected
    assert words in verdict(made)
    # It does not decide the other question.
    assert outcome(made.contrasts[0]) == outcome(summary.contrasts[0])


def test_one_seed_without_pairs_tells_nothing_apart(study):
    said = verdict(summarise([study("mab", 0, paired=0), study("uniform", 0, paired=0)]))
    assert said.startswith("mab is not distinguishable from uniform on made_up, at 1 seed and")
    assert "no configuration was trained in both arms" in said
    assert "no interval, n = 1" in said


def test_more_seeds_do_not_change_what_decides(runs):
    widths = []
    for summary in (summarise(runs[:2]), summarise(runs)):
        (contrast,) = summary.contrasts
        advantage = contrast.paired[-1].advantage
        assert advantage.above(0.0)
        assert outcome(contrast) == "helps"
        widths.append(advantage.high - advantage.low)
        said = f"same configurations at the end of a trial {100 * advantage.value:+.2f} points"
        assert said in verdict(summary)
    assert widths[1] < widths[0]


def test_a_line_for_each_arm(study):
    arms = ("mab", "uniform", "psgd")
    runs = [study(arm, seed, paired=0) for arm in arms for seed in (0, 1)]
    lines = verdict(summarise(runs)).splitlines()
    assert [line.split()[0] for line in lines] == ["mab", "psgd"]


def test_nothing_to_compare(runs):
    assert "nothing to compare" in verdict(summarise(runs[:1]))
