"""Where commands print: names that users chose are printed as they are."""

from __future__ import annotations

from rich.console import Console


def console(*, stderr: bool = False) -> Console:
    """A console that takes nothing in a text for markup, emoji or a number to colour.

    Texts that are styled are `rich.text.Text`, or are printed with a style.

    Args:
        stderr: Whether to print to standard error.
    """
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)
