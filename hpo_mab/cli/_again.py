"""The command line that was given, as another command line to give next."""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import typer

#: What concerns one call only.
_ONCE = {"trials", "fresh", "quiet", "verbose", "as_json", "record", "report"}


def is_given(context: typer.Context, name: str) -> bool:
    """Whether an argument is on the command line, not from the environment or by default."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def again(
    context: typer.Context, command: Callable[..., None], changes: Mapping[str, str] | None = None
) -> str:
    """A command line with the arguments of the current one.

    Args:
        context: Of the current command.
        command: The command to suggest; arguments it does not have are left out.
        changes: Values by parameter name in place of those given.
    """
    known = inspect.signature(command).parameters
    values = {
        str(parameter.name): _words(parameter, context.params[str(parameter.name)])
        for parameter in context.command.params
        if parameter.name not in _ONCE and is_given(context, str(parameter.name))
    }
    by_name = {str(parameter.name): parameter for parameter in context.command.params}
    values |= {name: _words(by_name[name], value) for name, value in (changes or {}).items()}
    words = [word for name, found in values.items() if name in known for word in found]
    return shlex.join(["hpo-mab", command.__name__, *words])


def _words(parameter: Any, value: Any) -> Iterator[str]:
    for one in value if isinstance(value, list | tuple) else [value]:
        if parameter.param_type_name == "argument":
            yield str(one)
        elif one is True:
            yield parameter.opts[0]
        else:
            yield from (parameter.opts[0], str(one))
