"""Seeds of trials.

Every random choice of a trial follows from the study's seed and the trial's slot, so that a study
resumed equals a study never stopped, and trials of two studies can be paired.
"""

from __future__ import annotations

import hashlib


def derive_seed(*parts: int | str) -> int:
    """A seed in [0, 2**32) that depends on every part and on nothing else."""
    text = "\x1f".join(str(part) for part in parts).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=4).digest())
