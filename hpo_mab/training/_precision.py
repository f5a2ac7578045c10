"""Numerical precision of the forward and backward pass."""

from __future__ import annotations

import torch

from hpo_mab._errors import UnknownNameError

PRECISIONS = ("bfloat16", "float32")


def check_precision(precision: str) -> None:
    """Raise `UnknownNameError` unless ``precision`` is one of `PRECISIONS`."""
    if precision not in PRECISIONS:
        raise UnknownNameError("precision", precision, PRECISIONS)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Context of mixed precision: bfloat16 where asked for, nothing at float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")
