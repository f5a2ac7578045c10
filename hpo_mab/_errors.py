"""Errors a user can meet, each of which says what to do in one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from numbers import Integral


class HpoMabError(Exception):
    """A mistake in what the user asked for; the command line says it in one line, exit status 2."""


class ArgumentError(HpoMabError, ValueError):
    """An argument outside its bound: the message names the argument, the bound and the value."""


class UnknownNameError(ArgumentError):
    """A name that does not exist; the message offers the nearest names that do.

    Args:
        what: What the name should have named, e.g. ``"sampler"``.
        name: The name given.
        valid: The names that exist.
    """

    def __init__(self, what: str, name: str, valid: Iterable[str]) -> None:
        names = sorted(valid)
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        hint = f"Did you mean {_either(near)}?" if near else f"Valid: {', '.join(names) or 'none'}."
        super().__init__(f"Unknown {what} '{name}'. {hint}")


def check_integer(name: str, value: object, low: int) -> None:
    """Refuse what is not an integer, Python's or NumPy's, of at least ``low``.

    Raises:
        ArgumentError: It is none.
    """
    # A boolean is an integer to Python, and a mistake here.
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < low:
        raise ArgumentError(f"{name} must be an integer of at least {low}, got {value!r}.")


class SpecError(HpoMabError):
    """A study definition that cannot be used; the message names the file and the key."""


class StorageError(HpoMabError):
    """Storage that cannot be reached, or that holds something other than what was asked for."""


class DataError(HpoMabError):
    """A data set that is not there or cannot be used."""


def _either(names: list[str]) -> str:
    quoted = [f"'{name}'" for name in names]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} or {quoted[-1]}"
