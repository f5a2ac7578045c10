"""Cost to target by hand."""

import math

import pytest

from hpo_mab.compare import summarise
from hpo_mab.compare._cost import costs_to_target


@pytest.fixture(name="cost")
def _cost(trial, run):
    """Costs of one arm by target and currency, from final accuracies of equally long trials."""

    def cost(mab, uniform, retrained=None, **clock):
        runs = []
        for seed, (own, other) in enumerate(zip(mab, uniform, strict=True)):
            for arm, values, extra in (("mab", own, clock), ("uniform", other, {})):
                trials = [
                    trial([0.1, value], number=i, examples=100, **extra)
                    for i, value in enumerate(values)
                ]
                runs.append(run(trials, arm=arm, seed=seed))
        (contrast,) = summarise(runs, retrained=retrained).contrasts
        return {(found.target, found.currency): found for found in contrast.cost}

    return cost


def test_ratio_of_first_reaching_the_references_best(cost):
    found = cost([[0.5, 0.9, 0.95], [0.8, 0.1, 0.1]], [[0.5, 0.6, 0.9], [0.2, 0.7, 0.1]])
    examples = found["reference", "examples"]
    assert examples.ratios == pytest.approx((2 / 3, 1 / 2))
    assert examples.reached == (True, True)
    assert examples.ratio.value == pytest.approx((1 / 3) ** 0.5)


def test_seconds_count_the_samplers_cost(cost):
    found = cost([[0.5, 0.9]], [[0.9, 0.1]], seconds_per_example=3e-3)
    assert found["reference", "examples"].ratios == pytest.approx((2.0,))
    assert found["reference", "seconds"].ratios == pytest.approx((6.0,))


def test_never_reached_is_at_least_all_it_spent(cost):
    found = cost([[0.5, 0.6, 0.7, 0.7], [0.9, 0.1]], [[0.8, 0.1], [0.1, 0.9]])
    examples = found["reference", "examples"]
    assert examples.ratios == pytest.approx((4.0, 0.5))
    assert examples.reached == (False, True)
    assert examples.ratio.censored
    assert examples.ratio.high == math.inf
    assert examples.ratio.value == pytest.approx(2**0.5)


def test_common_target_is_reached_by_both_and_symmetric(cost):
    one, other = [[0.5, 0.6, 0.7]], [[0.2, 0.6, 0.8]]
    there = cost(one, other)["common", "examples"]
    back = cost(other, one)["common", "examples"]
    # The lower final accuracy is 0.7: reached at the third trial of both.
    assert there.reached == (True,)
    assert there.ratios[0] == pytest.approx(1.0)
    assert there.ratios[0] == pytest.approx(1 / back.ratios[0])


def test_retrained_target(cost):
    better = {("mab", 0): [0.8, 0.9], ("uniform", 0): [0.84]}
    found = cost([[0.9, 0.5]], [[0.1, 0.95]], better)["retrained", "examples"]
    assert (found.ratios, found.reached) == ((0.5,), (True,))
    worse = {("mab", 0): [0.8], ("uniform", 0): [0.84]}
    found = cost([[0.9, 0.5]], [[0.1, 0.95]], worse)["retrained", "examples"]
    assert (found.ratios, found.reached) == ((1.0,), (False,))


def test_targets_without_data_are_absent(cost):
    found = cost([[0.9]], [[0.9]], {("mab", 0): [0.8]})
    assert {target for target, _ in found} == {"reference", "common"}


def test_a_p_value_where_every_ratio_is_known(trial, run):
    def p_values(own, seeds=6):
        arms = [
            {
                seed: run([trial([0.1, v], number=i) for i, v in enumerate(values)], arm=arm)
                for seed in range(seeds)
            }
            for arm, values in (("mab", own), ("uniform", [0.5, 0.9]))
        ]
        found = costs_to_target(*arms, {}, confidence=0.95, seed=0)
        return {(one.currency, one.p) for one in found if one.target == "reference"}

    def both(p):
        return {("examples", p), ("seconds", p)}

    # Six seeds, all of one sign: 2 / 2**6.
    assert p_values([0.9, 0.1]) == both(2 / 64)
    assert p_values([0.5, 0.9]) == both(1.0)
    assert p_values([0.1, 0.1]) == both(None)
    assert p_values([0.9, 0.1], seeds=4) == both(None)
