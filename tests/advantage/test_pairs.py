"""Curves on common budgets, and the same at equal seconds."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from made_up import point

from hpo_mab._errors import ArgumentError
from hpo_mab.advantage import PairedCurves, advantage, pair_curves
from hpo_mab.advantage._pairs import interpolate
from hpo_mab.storage import StudyRun, TrialRun

BUDGETS = np.array([100.0, 200.0, 400.0])


def curves(**fields):
    rows = np.array([[0.2, 0.4, 0.5]])
    return PairedCurves(**({"budgets": BUDGETS, "arm": rows, "reference": rows} | fields))


def test_interpolation_keeps_evaluations_and_is_straight_in_log_budget():
    values = np.array([[0.2, 0.4, 0.5], [0.1, 0.5, 0.9]])
    assert interpolate(BUDGETS, values, BUDGETS) == pytest.approx(values, abs=0)
    halfway = interpolate(BUDGETS, values, np.array([100 * 2**0.5]))
    assert halfway[:, 0] == pytest.approx([0.3, 0.3])


def test_interpolation_below_the_first_evaluation_lies_between_zero_and_that_evaluation():
    values = np.array([0.4, 0.5, 0.55])
    below = interpolate(BUDGETS, values, np.array([0.0, 1.0, 50.0, 95.0]))
    assert below[0] == pytest.approx(0.0)
    assert np.all(np.diff(below) > 0)
    assert below[-1] == pytest.approx(0.4 + 0.1 * np.log(0.95) / np.log(2))


def test_interpolation_of_a_stopped_curve_is_known_up_to_its_last_evaluation():
    found = interpolate(BUDGETS, np.array([0.2, 0.4, np.nan]), np.array([150.0, 200.0, 250.0]))
    assert np.isfinite(found).tolist() == [True, True, False]


def test_equal_seconds_reads_a_slower_arm_earlier():
    seconds = np.array([[1.0, 2.0, 4.0]])
    slower = curves(arm_seconds=2 * seconds, reference_seconds=seconds).in_seconds()
    # After 2 and 4 seconds the slower arm is at its first and second evaluation.
    assert slower.arm[0, 1:] == pytest.approx([0.2, 0.4])
    assert slower.arm[0, 0] < 0.2


def test_equal_seconds_lets_a_faster_arm_keep_its_end_but_not_a_stopped_one():
    seconds = np.array([[1.0, 2.0, 4.0]])
    faster = curves(arm_seconds=seconds / 2, reference_seconds=seconds).in_seconds()
    assert faster.arm[0].tolist() == pytest.approx([0.4, 0.5, 0.5])
    stopped = curves(
        arm=np.array([[0.2, 0.4, np.nan]]),
        arm_seconds=np.array([[0.5, 1.0, np.nan]]),
        reference_seconds=seconds,
    ).in_seconds()
    assert stopped.arm[0, 0] == pytest.approx(0.4)
    assert np.isnan(stopped.arm[0, 1:]).all()


def test_equal_seconds_of_equal_clocks_changes_nothing():
    seconds = np.array([[1.0, 1.0, 4.0]])
    same = curves(arm_seconds=seconds, reference_seconds=seconds).in_seconds()
    assert same.arm[0, 2] == pytest.approx(0.5, abs=1e-6)
    assert same.arm[0, 0] == pytest.approx(0.2, abs=1e-6)


@pytest.mark.parametrize("noisy", ["arm_seconds", "reference_seconds"])
def test_the_noise_of_clocks_is_no_difference(noisy):
    # Equally good and equally fast; one pair's clock is a tenth fast, the next one's slow.
    rng = np.random.default_rng(0)
    seconds = np.tile(BUDGETS / 100, (20, 1))
    rising = np.array([0.3, 0.5, 0.7]) + rng.normal(0, 1e-4, (20, 1))
    clocks = {"arm_seconds": seconds, "reference_seconds": seconds}
    clocks[noisy] = seconds * np.where(np.arange(20) % 2, 0.9, 1.1)[:, None]
    pairs = curves(arm=rising, reference=rising, **clocks).in_seconds()
    for estimate in advantage(pairs):
        assert abs(estimate.value) < 0.003
        assert not estimate.above(0.0)
        assert not estimate.below(0.0)


def test_the_cost_of_a_slower_arm_is_seen_through_the_noise_of_clocks():
    rng = np.random.default_rng(1)
    seconds = np.tile(BUDGETS / 100, (30, 1))
    clocks = 1.5 * np.exp(rng.normal(0, 0.1, (30, 1)))
    rising = np.array([0.3, 0.5, 0.7]) + rng.normal(0, 0.02, (30, 1))
    pairs = curves(
        arm=rising, reference=rising, arm_seconds=seconds * clocks, reference_seconds=seconds
    )
    second = advantage(pairs.in_seconds())[1]
    # Two thirds of the second budget lie between the first two evaluations.
    assert second.value == pytest.approx(-0.2 * np.log(1.5) / np.log(2), abs=0.01)
    assert second.below(0.0)
    # The noise of 30 clocks alone, times the slope of the curve.
    assert second.high - second.low == pytest.approx(4 * 0.1 / 30**0.5 * 0.2 / np.log(2), rel=0.4)


def test_one_training_on_a_busy_machine_is_no_cost_of_the_sampler():
    rng = np.random.default_rng(2)
    seconds = np.tile(BUDGETS / 100, (20, 1))
    clocks = seconds * np.exp(rng.normal(0, 0.01, (20, 1)))
    clocks[0] *= 10
    rising = np.array([0.3, 0.5, 0.7]) + rng.normal(0, 0.02, (20, 1))
    pairs = curves(arm=rising, reference=rising, arm_seconds=clocks, reference_seconds=seconds)
    for estimate in advantage(pairs.in_seconds()):
        assert abs(estimate.value) < 0.002
        assert estimate.high - estimate.low < 0.01


def test_pairs_that_were_stopped_do_not_hide_the_cost_of_whole_trainings():
    seconds = np.tile(BUDGETS / 100, (4, 1))
    rising = np.tile([0.3, 0.5, 0.7], (4, 1))
    clocks, curve = seconds * 1.1, rising.copy()
    clocks[2:], curve[2:, 1:], clocks[2:, 1:] = seconds[2:] * 0.8, np.nan, np.nan
    pairs = curves(arm=curve, reference=rising, arm_seconds=clocks, reference_seconds=seconds)
    last = advantage(pairs.in_seconds())[-1]
    assert (last.value, last.n) == (pytest.approx(-0.2 * np.log(1.1) / np.log(2)), 2)


@pytest.mark.parametrize("pace", [0.5, 1.0, 2.0])
def test_one_budget_says_nothing_about_equal_seconds(pace):
    seconds = np.array([[4.0]])
    one = curves(
        budgets=BUDGETS[:1],
        arm=[[0.5]],
        reference=[[0.4]],
        arm_seconds=pace * seconds,
        reference_seconds=seconds,
    ).in_seconds()
    assert np.isnan(one.arm).all()
    assert one.reference.tolist() == [[0.4]]


def test_equal_seconds_needs_seconds():
    with pytest.raises(ArgumentError, match="arm_seconds"):
        curves().in_seconds()
    assert math.isnan(curves().cost)


_BUDGETS = "budgets must be one-dimensional, positive, finite"


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("budgets", np.array([100.0, 100.0, 400.0]), _BUDGETS),
        ("budgets", np.array([0.0, 100.0, 400.0]), _BUDGETS),
        ("budgets", [100.0, 200.0, math.nan], _BUDGETS),
        ("budgets", [100.0, 200.0, math.inf], _BUDGETS),
        ("budgets", [[100.0, 200.0, 400.0]], _BUDGETS),
        ("arm", np.zeros((1, 2)), "arm"),
        ("reference", np.zeros((2, 3)), "reference"),
        ("arm_seconds", np.zeros(3), "arm_seconds"),
    ],
)
def test_what_does_not_fit_is_refused(field, value, message):
    with pytest.raises(ArgumentError, match=message):
        curves(**{field: value})


def test_counts_fall_where_either_arm_was_stopped():
    pairs = curves(
        arm=np.array([[0.1, 0.2, np.nan], [0.1, 0.2, 0.3]]),
        reference=np.array([[0.1, 0.2, 0.3], [0.1, np.nan, np.nan]]),
    )
    assert np.isfinite(pairs.difference).sum(axis=0).tolist() == [2, 1, 0]
    assert pairs.ended == 0


def trial(number, accuracies, *, step=100, **fields):
    curve = tuple(
        point(i, examples=i * step, seconds=i * 2.0, accuracy=accuracy)
        for i, accuracy in enumerate(accuracies, start=1)
    )
    defaults = {
        "slot": number,
        "state": "complete",
        "params": {"lr": 0.1},
        "value": accuracies[-1] if accuracies else None,
        "paired": True,
    }
    return TrialRun(number=number, curve=curve, **(defaults | fields))


def study(arm, *trials, seed=0, trial_examples=300):
    return StudyRun(
        name=arm, arm=arm, seed=seed, trial_examples=trial_examples, spec={}, trials=trials
    )


def test_pairs_agree_in_seed_and_slot():
    bandit = [
        study("mab", trial(0, [0.3, 0.4, 0.5]), trial(1, [0.1, 0.2, 0.3])),
        study("mab", trial(0, [0.5, 0.6, 0.7]), seed=1),
    ]
    uniform = [
        study("uniform", trial(0, [0.1, 0.2, 0.9]), seed=1),
        study("uniform", trial(0, [0.2, 0.3, 0.4])),
        study("uniform", trial(0, [0.2, 0.3, 0.4]), seed=2),
    ]
    pairs = pair_curves(bandit, uniform)
    assert len(pairs) == 2
    assert pairs.budgets.tolist() == [100, 200, 300]
    assert pairs.arm.tolist() == [[0.3, 0.4, 0.5], [0.5, 0.6, 0.7]]
    assert pairs.reference.tolist() == [[0.2, 0.3, 0.4], [0.1, 0.2, 0.9]]
    assert pairs.arm_seconds.tolist() == [[2, 4, 6], [2, 4, 6]]


@pytest.mark.parametrize(
    ("params", "paired"),
    [({"lr": 0.1, "sampler.memory": 50}, 1), ({"lr": 0.1, "momentum": 0.9}, 1), ({"lr": 0.2}, 0)],
)
def test_common_parameters_must_agree_the_samplers_own_aside(params, paired):
    uniform = trial(0, [0.2], params={"lr": 0.1, "sampler.memory": 9})
    pairs = pair_curves([study("mab", trial(0, [0.3], params=params))], [study("uniform", uniform)])
    assert len(pairs) == paired


def test_only_trials_given_to_all_arms_are_paired():
    bandit = [study("mab", trial(0, [0.3]), trial(1, [0.4], paired=False))]
    uniform = [study("uniform", trial(0, [0.3]), trial(1, [0.4], paired=False))]
    assert len(pair_curves(bandit, uniform)) == 1


def test_configurations_without_a_common_parameter_are_no_pair():
    adam = trial(0, [0.2], params={"adam_lr": 0.1, "sampler.memory": 9})
    sgd = trial(0, [0.3], params={"lr": 0.1, "sampler.memory": 9})
    assert not len(pair_curves([study("adam", adam)], [study("sgd", sgd)]))


def test_a_running_trial_does_not_say_where_a_trial_ends():
    bandit = [study("mab", trial(0, [0.3, 0.4, 0.5]), trial(1, [0.3, 0.4, 0.5]))]
    begun = trial(0, [0.2, 0.3], state="running", value=None)
    pairs = pair_curves(bandit, [study("uniform", begun)])
    assert (len(pairs), pairs.ended, len(pairs.budgets)) == (1, 0, 0)
    pairs = pair_curves(bandit, [study("uniform", begun, trial(1, [0.2, 0.3, 0.4]))])
    assert pairs.ended == 1
    assert np.isfinite(pairs.difference).sum(axis=0).tolist() == [2, 2, 1]


def test_stopped_trials_are_missing_from_where_they_stopped():
    bandit = [study("mab", trial(0, [0.3, 0.4], state="pruned", value=None))]
    uniform = [study("uniform", trial(0, [0.2, 0.3, 0.4]))]
    pairs = pair_curves(bandit, uniform)
    assert np.isnan(pairs.arm).tolist() == [[False, False, True]]
    assert np.isnan(pairs.arm_seconds).tolist() == [[False, False, True]]


def test_what_a_trial_did_beyond_its_budget_is_left_out():
    points = [0.2, 0.3, 0.4, 0.8, 0.9, 0.95]
    longer = trial(2, points, slot=0, attrs={"hpo_mab:length": 2})
    uniform = [study("uniform", trial(0, [0.2, 0.3, 0.4]), trial(1, [0.1, 0.2, 0.3]), longer)]
    bandit = [study("mab", trial(0, [0.3, 0.4, 0.5]), trial(1, [0.2, 0.3, 0.5]))]
    pairs = pair_curves(bandit, uniform)
    assert pairs.budgets.tolist() == [100, 200, 300]
    assert np.isfinite(pairs.difference).all()
    assert pairs.reference[:, -1].tolist() == [0.4, 0.3]


def test_a_retried_slot_counts_once_and_failures_not_at_all():
    bandit = [
        study(
            "mab",
            trial(0, [0.9, 0.9, 0.9], state="fail", value=None),
            trial(1, [0.3, 0.4, 0.5], slot=0),
            trial(2, [0.1, 0.1, 0.1], state="fail", slot=1, value=None),
        )
    ]
    uniform = [study("uniform", trial(0, [0.2, 0.3, 0.4]), trial(1, [0.2, 0.3, 0.4]))]
    pairs = pair_curves(bandit, uniform)
    assert len(pairs) == 1
    assert pairs.arm[0].tolist() == [0.3, 0.4, 0.5]


def test_other_batch_sizes_are_read_at_the_common_budgets():
    bandit = [study("mab", trial(0, [0.2, 0.4, 0.6], step=99.5), trial_examples=300)]
    uniform = [study("uniform", trial(0, [0.2, 0.4, 0.6]))]
    pairs = pair_curves(bandit, uniform)
    assert np.isfinite(pairs.arm).all()
    assert pairs.arm[0] == pytest.approx([0.2, 0.4, 0.6], abs=0.01)


def test_a_trial_of_large_batches_does_not_move_the_end_of_the_others():
    # Three evaluations a hundred examples apart, but one trial goes to 360 of 300.
    trials = [
        trial(number, [0.2, 0.3, 0.4], step=120 if number == 2 else 100) for number in (0, 1, 2)
    ]
    pairs = pair_curves([study("mab", *trials)], [study("uniform", *trials)])
    assert pairs.budgets[-1] == 300
    assert pairs.ended == 3


def test_no_pairs_is_an_answer():
    pairs = pair_curves([study("mab")], [study("uniform", trial(0, [0.1]))])
    assert (len(pairs), len(pairs.budgets)) == (0, 0)


def test_budgets_that_differ_and_seeds_that_repeat_are_refused():
    one, other = study("mab", trial(0, [0.1])), study("uniform", trial(0, [0.1]))
    with pytest.raises(ArgumentError, match="300 examples in 'mab' and 600 in 'uniform'"):
        pair_curves([one], [study("uniform", trial_examples=600)])
    with pytest.raises(ArgumentError, match=r"seed.*\[0, 0\]"):
        pair_curves([one, one], [other])


def test_a_searched_batch_size_does_not_widen_the_budget_of_a_definition():
    def of(kind, length, **budget):
        made = study(kind, trial(0, [0.1], params={"batch_size": 512}), trial_examples=length)
        return evaluated(made, 1, **budget) if budget else made

    with pytest.raises(ArgumentError, match="1,000 examples"):
        pair_curves([of("mab", 1000, examples=1000)], [of("uniform", 1400, examples=1400)])
    # Of own loops only the lengths of their trials are known, each rounded.
    assert len(pair_curves([of("mab", 1000)], [of("uniform", 1400)])) == 1


def evaluated(made, count=3, **budget):
    return dataclasses.replace(made, spec={"budget": {"evaluations": count, **budget}})


def test_batches_of_other_sizes_round_one_budget_to_other_steps():
    def of(kind, step, epochs=1.0):
        made = study(kind, trial(0, [0.1, 0.2, 0.3], step=step), trial_examples=3 * step)
        return dataclasses.replace(evaluated(made, epochs=epochs), training_examples=1437)

    for first, second in ((469, 512), (512, 469)):
        pairs = pair_curves([of("mab", first)], [of("uniform", second)])
        assert pairs.ended == 1
        assert pairs.difference.tolist() == [[0.0, 0.0, 0.0]]
    assert len(pair_curves([of("mab", 469)], [study("u", trial(0, [0.1]), trial_examples=1400)]))
    with pytest.raises(ArgumentError, match="1,407 examples"):
        pair_curves([of("mab", 469)], [of("uniform", 938, epochs=2.0)])


def test_pairs_of_other_batch_sizes_are_compared_by_their_evaluations():
    curve = [0.2, 0.3, 0.5]
    bandit = study(
        "mab",
        trial(0, [0.1, 0.2, 0.3]),
        trial(1, [0.4, 0.5, 0.6], step=400),
        trial(2, [0.4, 0.5], step=400, state="pruned", value=None),
    )
    uniform = study("uniform", trial(0, curve), *(trial(n, curve, step=400) for n in (1, 2)))
    pairs = pair_curves([evaluated(bandit)], [evaluated(uniform)])
    assert pairs.budgets.tolist() == [400, 800, 1200]
    assert pairs.ended == 2
    assert pairs.arm.tolist()[:2] == [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]]
    assert pairs.reference.tolist() == [curve] * 3
    assert np.isnan(pairs.arm[2]).tolist() == [False, False, True]


def test_other_numbers_of_evaluations_are_compared_at_equal_examples():
    bandit = study("mab", trial(0, [0.4, 0.8], step=200), trial_examples=400)
    uniform = study("uniform", trial(0, [0.1, 0.2, 0.3, 0.4]), trial_examples=400)
    pairs = pair_curves([evaluated(bandit, 2)], [evaluated(uniform, 4)])
    # At 300 of 400 examples, straight in the logarithm of the budget.
    between = 0.4 + 0.4 * math.log(1.5) / math.log(2)
    assert pairs.arm[0, 1:].tolist() == pytest.approx([0.4, between, 0.8])
    assert pairs.arm_seconds[0, 1:].tolist() == pytest.approx([2.0, 3.0, 4.0])


def test_what_auto_trained_under_uniform_sampling_is_in_no_pair():
    def of(kind, sampler, number=0):
        attrs = {} if sampler is None else {"hpo_mab:sampler": sampler}
        made = study(kind, trial(number, [0.3, 0.4, 0.5], attrs=attrs))
        return dataclasses.replace(made, spec={"sampler": {"kind": kind}})

    reference = [of("uniform", None)]
    for other in (reference, [of("mab", None)], [of("auto", "uniform")]):
        assert len(pair_curves([of("auto", "uniform")], other)) == 0
        assert len(pair_curves(other, [of("auto", "uniform")])) == 0
    assert len(pair_curves([of("auto", "mab")], reference)) == 1
    assert len(pair_curves([of("mab", None)], reference)) == 1
    # Arms may differ in the pruner alone.
    assert len(pair_curves(reference, reference)) == 1


@pytest.mark.parametrize(
    ("originals", "twins", "pairs"),
    [
        ("uniform", "uniform", 1),
        ("mab", "uniform", 1),
        ("uniform", "mab", 0),  # A race.
    ],
)
def test_the_first_trials_of_a_race_in_an_own_loop_are_in_no_pair(originals, twins, pairs):
    def of(sampler, number, **attrs):
        return trial(number, [0.3, 0.4, 0.5], slot=0, attrs={"hpo_mab:sampler": sampler, **attrs})

    own = study("own", of(originals, 0), of(twins, 1, **{"hpo_mab:twin_of": 0}))
    assert len(pair_curves([own], [study("uniform", of("uniform", 0))])) == pairs
    mabs = [study(arm, of("mab", 0)) for arm in ("median", "hyperband")]
    assert len(pair_curves(mabs[:1], mabs[1:])) == 1


def test_own_loops_whose_trials_use_two_samplers_keep_all_pairs():
    def loop(name, gain):
        kinds = enumerate(("uniform", "mab"))
        return study(name, *(trial(n, [gain], attrs={"hpo_mab:sampler": k}) for n, k in kinds))

    assert len(pair_curves([loop("one", 0.3)], [loop("other", 0.2)])) == 2


def test_accuracies_must_be_finite_or_unknown():
    with pytest.raises(ArgumentError, match="arm must be finite, or NaN"):
        PairedCurves(budgets=[1.0, 2.0], arm=[[0.5, math.inf]], reference=[[0.5, 0.6]])


def test_loops_that_end_before_their_budget_are_read_where_they_were_evaluated():
    # As a loader with `drop_last` ends: at 288 of 300 examples.
    ours, theirs = (
        study(arm, trial(0, accuracies, step=96, attrs={"hpo_mab:budget": 300}))
        for arm, accuracies in (("mab", [0.3, 0.5, 0.6]), ("uniform", [0.2, 0.4, 0.5]))
    )
    found = pair_curves([ours], [theirs])
    assert found.budgets.tolist() == [96, 192, 288]
    assert found.arm.tolist() == [[0.3, 0.5, 0.6]]
    assert found.reference.tolist() == [[0.2, 0.4, 0.5]]


def test_evaluations_of_trials_with_fewer_steps_than_evaluations_are_not_numbered_alike():
    # Four steps of 220 examples, and eight of 100.
    bandit = study("mab", trial(0, [0.3, 0.4, 0.5, 0.6], step=220), trial_examples=808)
    uniform = study("uniform", trial(0, [0.1 * n for n in range(1, 9)]), trial_examples=800)
    for pairs in (
        pair_curves([evaluated(bandit, 8)], [evaluated(uniform, 8)]),
        pair_curves([evaluated(uniform, 8)], [evaluated(bandit, 8)]),
    ):
        assert abs(float(pairs.difference[0, -1])) == pytest.approx(0.2)
