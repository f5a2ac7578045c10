"""Bounds of constructor arguments."""

from __future__ import annotations

from hpo_mab._errors import ArgumentError


def require(holds: bool, name: str, bound: str, value: object) -> None:
    """Refuse an argument outside its bound.

    Args:
        holds: Whether ``value`` is within the bound.
        name: The argument.
        bound: What it must be, in words, e.g. ``"in (0, 1]"``.
        value: What was given.

    Raises:
        ArgumentError: ``holds`` is false.
    """
    if not holds:
        raise ArgumentError(f"{name} must be {bound}, got {value}.")
