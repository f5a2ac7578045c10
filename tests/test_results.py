"""The results of a study: how many trials count, and which."""

from __future__ import annotations

from made_up import continued_of, marked, trials_of

from hpo_mab._results import Results


def test_a_continued_trial_counts_once() -> None:
    results = Results(
        continued_of("p0", "p1", "p0 continues 0", "c0 continues 2", "f1 continues 1")
    )
    assert results.counts() == {"complete": 1, "pruned": 1, "fail": 1}
    assert (results.finished, results.next_slot) == (2, 2)


def test_a_complete_trial_stays_a_result_if_its_continuation_is_pruned() -> None:
    results = Results(
        continued_of("c0", "c1", "p0 continues 0", "c1 continues 1", "r1 continues 3")
    )
    assert results.numbers_that_count == results.numbers_once_per_configuration == {0, 3}
    assert results.counts() == {"complete": 1, "pruned": 0, "fail": 0}
    # Trial 3 runs on as trial 4.
    assert results.finished == 1


def test_counts() -> None:
    results = Results(
        trials_of(
            "c0", "c0 twin", "f0 twin lost", "p1", "f2", "f3 interrupted", "r3", "w4", "f5 lost"
        )
    )
    assert results.counts() == {"complete": 1, "pruned": 1, "fail": 2}
    assert results.counts(twins=True) == {"complete": 2, "pruned": 1, "fail": 3}
    assert (results.finished, results.next_slot) == (2, 6)


def test_states_are_counted_without_interrupted_attempts() -> None:
    results = Results(trials_of("c0", "c0 twin", "r1", "w2", "f3 interrupted", "p4"))
    assert results.states() == {"complete": 1, "pruned": 1, "running": 1, "waiting": 1}
    assert results.states(twins=True)["complete"] == 2
    assert list(results.states()) == sorted(results.states())


def test_a_lost_attempt_counts_as_failed_only_where_it_is_the_last() -> None:
    lost = marked(trials_of("f0", "c0", "f1", "f2"), lost={0: True, 2: True})
    assert Results(lost).counts() == {"complete": 1, "pruned": 0, "fail": 2}
    # A trial without a slot repeats none.
    unplaced = marked(trials_of("f", "w"), lost={0: True})
    assert Results(unplaced).counts()["fail"] == 1
    # Also after the attempt that repeated it was paused, and continued.
    continued = marked(continued_of("f0", "p0", "c0 continues 1"), lost={0: True})
    assert Results(continued).counts() == {"complete": 1, "pruned": 0, "fail": 0}


def test_a_continuation_that_diverges_does_not_count_where_its_trial_was_complete() -> None:
    results = Results(
        marked(continued_of("c0", "p1", "p0 continues 0"), reason={1: "nan", 2: "nan"})
    )
    assert results.counts() == {"complete": 1, "pruned": 1, "fail": 0}
    assert results.numbers_diverged == {1}


def test_stopped_trials_their_promotions_and_what_they_saved() -> None:
    trials = marked(
        trials_of("p0", "p1", "p2", "c0", "p1", "f2 lost", "r2", "p3", "c4"),
        promotes={3: 0, 4: 1, 5: 2, 6: 2, 8: 7},
        resumed_at={4: 1},
    )
    results = Results(trials)
    assert results.numbers_stopped == {0, 1, 2, 7}
    assert results.numbers_promoted == {0, 1, 2, 7}
    # Trial 0 was continued from the start, and 1 from its checkpoint; the continuation of 1 was
    # pruned. That of 2 has not ended. Trial 7 was promoted in another slot.
    assert results.numbers_not_continued == {2, 4, 7}


def test_a_sampler_sees_each_configuration_once() -> None:
    trials = marked(
        trials_of("c0", "c0 twin", "c1", "c1 twin", "c2"),
        sampler={1: "uniform", 3: "uniform"},
    )
    assert Results(trials).numbers_once_per_configuration == {0, 2, 4}
    # The study has continued under uniform sampling.
    trials = marked(trials, sampler={4: "uniform"})
    assert Results(trials).numbers_once_per_configuration == {1, 3, 4}
    # A twin that failed replaces nothing.
    trials = marked(trials_of("c0", "f0 twin", "c1"), sampler={1: "mab", 2: "mab"})
    assert Results(trials).numbers_once_per_configuration == {0, 2}


def test_evaluation_seconds_of_all_attempts() -> None:
    trials = marked(trials_of("c0", "f1 lost", "r1", "c2"), evaluation_seconds={0: 1.5, 1: 0.25})
    assert Results(trials).evaluation_seconds == 1.75
