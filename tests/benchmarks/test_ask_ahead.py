"""The benchmark of asking ahead favours neither of two equal searches."""

from __future__ import annotations

import numpy as np
import pytest
from ask_ahead import trials_ratio


def test_the_ratio_is_the_same_in_both_directions() -> None:
    one, other = np.array([4.0, 3.0, 3.0, 1.0]), np.array([4.0, 4.0, 2.0, 2.0])
    ratio = trials_ratio(one, other, after=3)
    # To 2 they need 4 and 3 trials, to 3 they need 2 and 3.
    assert ratio == pytest.approx((4 / 3 * 2 / 3) ** 0.5)
    assert trials_ratio(other, one, after=3) == pytest.approx(1 / ratio)
