import math

import numpy as np
import pytest

from hpo_mab.compare._statistics import geometric_mean, signed_rank_p


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


def test_signed_rank_by_hand():
    # All six positive: two of 2 ** 6 sign patterns are as extreme.
    assert signed_rank_p([1, 2, 3, 4, 5, 6]) == pytest.approx(2 / 64)
    assert signed_rank_p([1, 2, 3, 4, 5]) == pytest.approx(2 / 32)


def test_signed_rank_needs_five_and_stands_ties():
    assert signed_rank_p([1, 2, 3, 4, math.nan]) is None
    assert signed_rank_p(np.zeros(7)) == 1.0
    assert 0.0 < signed_rank_p([0, 0, 0.1, 0.1, -0.1, 0.2]) <= 1.0
