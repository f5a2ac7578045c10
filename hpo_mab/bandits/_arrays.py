"""Names of array types."""

import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
#: Numbers of arms, by bandit and state.
Counts = NDArray[np.int32]
#: Columns of states.
Columns = NDArray[np.int16]
#: Rewards, 0 or 1.
Rewards = NDArray[np.int8]
