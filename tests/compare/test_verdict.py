"""The verdict says what the deciding interval says, with n, data and budget."""

import dataclasses

import pytest

from hpo_mab.advantage import Estimate
from hpo_mab.compare import outcome, summarise, verdict


def with_gain(summary, *, retrained=None, **ends):
    gain = {
        currency: Estimate(n=5, **ends) if currency == "examples" else old
        for currency, old in summary.contrasts[0].gain.items()
    }
    contrast = dataclasses.replace(summary.contrasts[0], gain=gain, retrained_gain=retrained)
    return dataclasses.replace(summary, contrasts=(contrast,))


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.001, 0.02, "mab helps compared with uniform"),
        (-0.02, -0.001, "mab hurts compared with uniform"),
        (-0.01, 0.02, "mab is not distinguishable from uniform"),
    ],
)
def test_interval_decides(summary, low, high, expected):
    said = verdict(with_gain(summary, value=(low + high) / 2, low=low, high=high))
    assert said.startswith(f"{expected} on made_up, at 5 seeds and 8,000 examples a trial")
    assert f"(95% interval {100 * low:+.2f} to {100 * high:+.2f}, n = 5)" in said
    assert "at equal seconds" in said
    assert said.count("\n") == 0
    assert said.endswith(".")


def test_retrained_accuracy_decides_where_known(summary):
    worse = Estimate(value=-0.02, low=-0.03, high=-0.01, n=5)
    made = with_gain(summary, value=0.1, low=0.05, high=0.2, retrained=worse)
    assert outcome(made.contrasts[0]) == "hurts"
    assert "re-trained test accuracy -2.00 points" in verdict(made)


def test_one_seed_without_pairs_tells_nothing_apart(study):
    said = verdict(summarise([study("mab", 0, paired=0), study("uniform", 0, paired=0)]))
    assert said.startswith("mab is not distinguishable from uniform on made_up, at 1 seed and")
    assert "no interval, n = 1" in said
    assert "same configurations" not in said


def test_pairs_decide_where_seeds_are_too_few(runs):
    summary = summarise(runs[:2])
    paired = summary.contrasts[0].paired[-1].advantage
    assert paired.above(0.0)
    assert outcome(summary.contrasts[0]) == "helps"
    said = f"same configurations at the end of a trial {100 * paired.value:+.2f} points"
    assert said in verdict(summary)


def test_a_line_for_each_arm(study):
    arms = ("mab", "uniform", "psgd")
    runs = [study(arm, seed, paired=0) for arm in arms for seed in (0, 1)]
    lines = verdict(summarise(runs)).splitlines()
    assert [line.split()[0] for line in lines] == ["mab", "psgd"]


def test_nothing_to_compare(runs):
    assert "nothing to compare" in verdict(summarise(runs[:1]))
