"""Incumbents of made-up studies, and costs to reach an accuracy."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from made_up import run, trial

from hpo_mab._errors import UnknownNameError
from hpo_mab.compare import summarise
from hpo_mab.compare._incumbents import costs_to_target, incumbent_curve

MADE = run(
    [
        trial([0.1, 0.9], number=0, state="pruned", examples=100),
        trial([0.2, 0.5], number=1, examples=100),
        trial([0.2, 0.4], number=2, examples=50),
        trial([], number=3, state="fail"),
        trial([0.2, 0.8], number=4, examples=100),
        trial([0.9], number=5, state="running", examples=30),
    ],
    arm="mab",
)


def test_only_complete_trials_are_incumbents_and_all_trials_are_spend():
    found = incumbent_curve(MADE)
    assert found.spent.tolist() == [200, 250, 350]
    assert found.accuracy.tolist() == [0.5, 0.5, 0.8]
    assert found.total == 380


def test_seconds_are_the_trials_own():
    found = incumbent_curve(MADE, "seconds")
    assert found.spent == pytest.approx(np.array([200, 250, 350]) * 1e-3)


def test_reading_at_a_spend():
    found = incumbent_curve(MADE)
    values = found.at([0, 199, 200, 349, 350, 1e9])
    assert np.isnan(values[:2]).all()
    assert values[2:].tolist() == [0.5, 0.5, 0.8, 0.8]


def test_first_reaching():
    found = incumbent_curve(MADE)
    assert found.first_reaching(0.5) == 200
    assert found.first_reaching(0.51) == 350
    assert found.first_reaching(0.81) == math.inf


def test_order_is_that_of_the_trial_numbers():
    turned = run(MADE.trials[::-1], arm="mab")
    assert incumbent_curve(turned).spent.tolist() == incumbent_curve(MADE).spent.tolist()


def test_a_study_without_trials_has_no_incumbent():
    found = incumbent_curve(run([], arm="mab"))
    assert (len(found.spent), found.total) == (0, 0.0)
    assert np.isnan(found.at(10.0))
    assert found.first_reaching(0.0) == math.inf


def test_unknown_currency():
    with pytest.raises(UnknownNameError, match=r"'second'.*'seconds'"):
        incumbent_curve(MADE, "second")


def cost(mab, uniform, retrained=None, **clock):
    """Costs of one arm by target and currency, from final accuracies of equally long trials."""
    runs = []
    for seed, (own, other) in enumerate(zip(mab, uniform, strict=True)):
        for arm, values, extra in (("mab", own, clock), ("uniform", other, {})):
            trials = [
                trial([0.1, value], number=i, examples=100, **extra)
                for i, value in enumerate(values)
            ]
            made = run(trials, arm=arm, seed=seed)
            scores = tuple((retrained or {}).get((arm, seed), ()))
            runs.append(dataclasses.replace(made, retrained=scores))
    (contrast,) = summarise(runs).contrasts
    return {(found.target, found.currency): found for found in contrast.cost}


def test_ratio_of_first_reaching_the_references_best():
    found = cost([[0.5, 0.9, 0.95], [0.8, 0.1, 0.1]], [[0.5, 0.6, 0.9], [0.2, 0.7, 0.1]])
    examples = found["reference", "examples"]
    assert examples.ratios == pytest.approx((2 / 3, 1 / 2))
    assert examples.reached == (True, True)
    assert examples.ratio.value == pytest.approx((1 / 3) ** 0.5)


def test_seconds_count_the_samplers_cost():
    found = cost([[0.5, 0.9]], [[0.9, 0.1]], seconds_per_example=3e-3)
    assert found["reference", "examples"].ratios == pytest.approx((2.0,))
    assert found["reference", "seconds"].ratios == pytest.approx((6.0,))


def test_never_reached_is_at_least_all_it_spent():
    found = cost([[0.5, 0.6, 0.7, 0.7], [0.9, 0.1]], [[0.8, 0.1], [0.1, 0.9]])
    examples = found["reference", "examples"]
    assert examples.ratios == pytest.approx((4.0, 0.5))
    assert examples.reached == (False, True)
    assert examples.ratio.censored
    assert examples.ratio.high == math.inf
    assert examples.ratio.value == pytest.approx(2**0.5)


def test_an_arm_that_has_found_nothing_has_not_reached_the_references_best():
    own = [trial([0.1, 0.9], state="pruned", examples=200), trial([0.1, 0.9], examples=100)]
    arms = [
        {seed: run([one], arm=arm, seed=seed) for seed, one in enumerate(trials)}
        for arm, trials in (("mab", own), ("uniform", [trial([0.1, 0.5], examples=100)] * 2))
    ]
    found = {one.target: one for one in costs_to_target(*arms) if one.currency == "examples"}
    assert found["reference"].ratios == pytest.approx((2.0, 1.0))
    assert found["reference"].reached == (False, True)
    assert found["reference"].ratio.censored
    # There is no accuracy that both have.
    assert found["common"].seeds == (1,)
    # What it has spent may be unknown.
    lost = dataclasses.replace(own[0], curve=(), attrs={"hpo_mab:examples": 200})
    arms[0][0] = run([lost], arm="mab")
    assert {one.seeds for one in costs_to_target(*arms)} == {(1,)}


def test_common_target_is_reached_by_both_and_symmetric():
    one, other = [[0.5, 0.6, 0.7]], [[0.2, 0.6, 0.8]]
    there = cost(one, other)["common", "examples"]
    back = cost(other, one)["common", "examples"]
    # The lower final accuracy is 0.7: reached at the third trial of both.
    assert there.reached == (True,)
    assert there.ratios[0] == pytest.approx(1.0)
    assert there.ratios[0] == pytest.approx(1 / back.ratios[0])


def test_retrained_target():
    better = {("mab", 0): [0.8, 0.9], ("uniform", 0): [0.84]}
    found = cost([[0.9, 0.5]], [[0.1, 0.95]], better)["retrained", "examples"]
    assert (found.ratios, found.reached) == ((0.5,), (True,))
    worse = {("mab", 0): [0.8], ("uniform", 0): [0.84]}
    found = cost([[0.9, 0.5]], [[0.1, 0.95]], worse)["retrained", "examples"]
    assert (found.ratios, found.reached) == ((1.0,), (False,))


def test_targets_without_data_are_absent():
    found = cost([[0.9]], [[0.9]], {("mab", 0): [0.8]})
    assert {target for target, _ in found} == {"reference", "common"}


def test_a_p_value_where_every_ratio_is_known():
    def p_values(own, seeds=6):
        arms = [
            {
                seed: run([trial([0.1, v], number=i) for i, v in enumerate(values)], arm=arm)
                for seed in range(seeds)
            }
            for arm, values in (("mab", own), ("uniform", [0.5, 0.9]))
        ]
        found = costs_to_target(*arms)
        return {(one.currency, one.p) for one in found if one.target == "reference"}

    def both(p):
        return {("examples", p), ("seconds", p)}

    # Six seeds, all of one sign: 2 / 2**6.
    assert p_values([0.9, 0.1]) == both(2 / 64)
    assert p_values([0.5, 0.9]) == both(1.0)
    assert p_values([0.1, 0.1]) == both(None)
    assert p_values([0.9, 0.1], seeds=4) == both(None)
