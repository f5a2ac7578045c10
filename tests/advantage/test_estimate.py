import json
import math

from hypothesis import given
from hypothesis import strategies as st

from hpo_mab.advantage import Estimate

_VALUES = st.floats(allow_nan=False)


@given(value=_VALUES, low=_VALUES, high=_VALUES, n=st.integers(0, 99), censored=st.booleans())
def test_json_round_trip(value, low, high, n, censored):
    # Only the ends of an interval may be infinite.
    value = value if math.isfinite(value) else 0.0
    low = low if low != math.inf else -math.inf
    high = high if high != -math.inf else math.inf
    estimate = Estimate(value=value, low=low, high=high, n=n, censored=censored)
    text = json.dumps(estimate.to_json(), allow_nan=False)
    assert Estimate.from_json(json.loads(text)) == estimate


def test_unknown_value_survives_json():
    estimate = Estimate(value=math.nan, low=-math.inf, high=math.inf, n=0)
    assert math.isnan(Estimate.from_json(estimate.to_json()).value)


def test_sides_are_strict():
    estimate = Estimate(value=0.5, low=0.0, high=1.0, n=3)
    assert estimate.above(-0.1)
    assert not estimate.above(0.0)
    assert estimate.below(1.1)
    assert not estimate.below(1.0)
