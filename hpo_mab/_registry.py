"""Classes and functions by name: those that study definitions use, and those packages export.

They are imported on first use, so that importing a package, and reading a definition, is cheap.
"""

from __future__ import annotations

import ast
import collections.abc
import functools
import importlib
import importlib.util
import inspect
import sys
import types
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping
from numbers import Integral, Real
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from hpo_mab._errors import ArgumentError, UnknownNameError, name_of, place_of

#: Form of a name for anything that can be imported; the error of an unknown name shows it.
_ELSEWHERE = "package.module:Name"

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)

#: The name of a class or a function, or the class or function itself.
Named = str | Callable[..., Any]


class Registry(Collection[str]):
    """Classes and functions of one sort by name, e.g. samplers, networks, data sets, pruners.

    A name is one of the registry's own, or ``package.module:Name`` for any class or function that
    Python can import. A class or a function may be given in place of its name. Options are the
    arguments in its signature; those that ``**`` passes on to base classes are included.

    Args:
        what: What the names mean, for messages, e.g. ``"sampler"``.
        names: The registry's own names, each with ``package.module:Name`` or its class or function.
        given: Arguments that are no options, because the caller has their values.
        families: Functions that find ``NAME`` in ``family:NAME``, by family.
    """

    def __init__(
        self,
        what: str,
        names: Mapping[str, Named],
        *,
        given: Collection[str],
        families: Mapping[str, Callable[[str], Callable[..., Any]]] | None = None,
    ) -> None:
        self.what = what
        self._names = dict(sorted(names.items()))
        self._given = frozenset(given)
        self._families = dict(families or {})

    def __contains__(self, name: object) -> bool:
        """Whether a name is one of the registry's own."""
        return isinstance(name, str) and name in self._names

    def __iter__(self) -> Iterator[str]:
        """The registry's own names, sorted."""
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def name(self, named: Named) -> str:
        """The name as text: the registry's own if it has one, else ``package.module:Name``."""
        text = name_of(named)
        return next((own for own, found in self._names.items() if text == name_of(found)), text)

    def load(self, name: Named) -> Callable[..., Any]:
        """The class or function of a name, imported.

        An unknown name raises `UnknownNameError`; one that cannot be imported or called,
        `ArgumentError`.
        """
        found: Any = self._names.get(name, name) if isinstance(name, str) else name
        if isinstance(found, str):
            family, colon, own = found.partition(":")
            if not colon:
                others = [*(f"{one}:NAME" for one in self._families), _ELSEWHERE]
                raise UnknownNameError(self.what, found, self._names, others=others)
            find = self._families.get(family)
            found = self._imported(found) if find is None else find(own)
        if not callable(found):
            shown = name if isinstance(name, str) else type(name).__name__
            raise ArgumentError(
                f"{self.what} must be the name of a class or a function, got '{shown}'."
            )
        return found  # type: ignore[no-any-return]

    def options(self, name: Named) -> dict[str, inspect.Parameter]:
        """Options of a named class or function; raises as `load` does.

        Their annotations are types: without one, that of the default.
        """
        found = parameters(self.load(name)).values()
        return {
            one.name: one for one in found if one.kind in _NAMED and one.name not in self._given
        }

    def takes(self, name: Named, option: str) -> bool:
        """Whether a definition may set an option; raises as `load` does."""
        return option not in self._given and _takes(self.load(name), option)

    def check(
        self,
        name: Named,
        values: Mapping[str, Iterable[Any]],
        *,
        section: str,
        shown: str | None = None,
    ) -> None:
        """Refuse options that a named class or function lacks, or whose values are of another type.

        Args:
            name: The name.
            values: Every value that each option may take.
            section: Of the definition, for messages.
            shown: Name for messages; None takes ``name``.
        """
        known = self.options(name)
        called = f"{self.what} '{shown or name_of(name)}'"
        for option in values:
            if not self.takes(name, option):
                raise UnknownNameError(f"option of {called}", option, known or ("(it has none)",))
        # A constructor may pass what its base class requires.
        makers = _makers(self.load(name))
        own = {one.name for maker in makers[:1] for one in _parameters_of(maker)}
        for option, wanted in known.items():
            required = wanted.default is inspect.Parameter.empty and option in own
            if required and option not in values:
                raise ArgumentError(f"{section}.{option} of {called} must be given.")
        check_types(section, values, {option: one.annotation for option, one in known.items()})

    def maker(self, name: Named, **given: Any) -> Callable[..., Any]:
        """The named class or function, with those of the given arguments bound that it takes."""
        return bound_to(self.load(name), given)

    def _imported(self, name: str) -> Any:
        if "" not in sys.path and name not in self._names.values():
            # As `python -m` does, but only for a user's name: packages try optional imports, and a
            # folder of data may have files of these names.
            sys.path.append("")
        module, _, attributes = name.partition(":")
        try:
            return functools.reduce(getattr, attributes.split("."), importlib.import_module(module))
        # An import executes the module, which may raise anything.
        except (Exception, SystemExit) as error:
            reason = str(error).strip().partition("\n")[0].rstrip(".")
            raise ArgumentError(
                f"{self.what} '{name}' cannot be imported: {type(error).__name__}: {reason}"
                f"{place_of(error)}."
            ) from error


def bound_to(made: Callable[..., Any], given: Mapping[str, Any]) -> Callable[..., Any]:
    """A class or function with those of the given arguments bound that its signature has."""
    bound = {key: value for key, value in given.items() if _takes(made, key)}
    return functools.partial(made, **bound) if bound else made


def _takes(made: Callable[..., Any], argument: str) -> bool:
    found = parameters(made)
    named = argument in found and found[argument].kind in _NAMED
    return named or any(one.kind is one.VAR_KEYWORD for one in found.values())


def parameters(made: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Parameters of a function or a class, without ``self``, annotated with their types.

    A constructor's ``**`` is replaced by the parameters of the base class's constructor. A ``**``
    that is left takes any name.
    """
    found: dict[str, inspect.Parameter] = {}
    for function in _makers(made):
        found = {name: one for name, one in found.items() if one.kind is not one.VAR_KEYWORD}
        own = _parameters_of(function)
        for one in own[1:] if isinstance(made, type) else own:
            found.setdefault(one.name, one)
        if not any(one.kind is one.VAR_KEYWORD for one in found.values()):
            break
    return found


def _makers(made: Callable[..., Any]) -> list[Any]:
    """A function; of a class its constructor and those of its base classes."""
    if not isinstance(made, type):
        return [made]
    return [vars(cls)["__init__"] for cls in made.__mro__[:-1] if "__init__" in vars(cls)]


def _parameters_of(function: Any) -> list[inspect.Parameter]:
    try:
        own = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # Some functions in C have none: any name is accepted.
        anything = inspect.Parameter("anything", inspect.Parameter.VAR_KEYWORD)
        return [inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY), anything]
    hints = _type_hints(function)
    return [one.replace(annotation=_parameter_type(one, hints)) for one in own]


def _type_hints(function: Any) -> dict[str, Any]:
    made = getattr(function, "func", function)
    read = _read_hints if isinstance(made, Hashable) else _read_hints.__wrapped__
    try:
        return read(made)
    except Exception:  # A user's annotations may be wrong; without them any value is accepted.
        return {}


# The same options are checked more than once, and reading annotations is slow.
@functools.lru_cache(maxsize=512)
def _read_hints(made: Any) -> dict[str, Any]:
    # Optuna imports some names for type checkers only.
    names = {**vars(collections.abc), "BaseSampler": Any, "FrozenTrial": Any}
    return get_type_hints(made, localns=names)


def _parameter_type(parameter: inspect.Parameter, hints: Mapping[str, Any]) -> Any:
    if parameter.name in hints:
        return hints[parameter.name]
    known = isinstance(parameter.default, bool | int | float | str)
    return type(parameter.default) if known else Any


def class_signature(cls: type[Any], *, first: Collection[str]) -> inspect.Signature:
    """Signature of a class whose ``**`` is replaced by the arguments that it passes on.

    ``first`` are keyword arguments that come before the others.
    """
    try:
        return inspect.Signature(
            sorted(
                parameters(cls).values(),
                key=lambda one: (one.kind, one.kind is one.KEYWORD_ONLY and one.name not in first),
            )
        )
    except ValueError:  # An argument without default of a base class after one with a default.
        own = inspect.signature(cls.__init__)
        return own.replace(parameters=list(own.parameters.values())[1:])


def check_types(
    section: str, values: Mapping[str, Iterable[Any]], kinds: Mapping[str, Any]
) -> None:
    """Raise for values of a type that their options do not have.

    Args:
        section: Of the definition, for messages.
        values: Every value that each option may take.
        kinds: Type of each option; an option without one takes any value.
    """
    for key, each in values.items():
        kind = kinds.get(key, Any)
        for one in each:
            if not _has_type(kind, one):
                choices = f"; to choose one of several, write {{ choices = {one!r} }}"
                raise ArgumentError(
                    f"{section}.{key} must be {_type_text(kind)}, got {one!r}"
                    f"{choices if isinstance(one, list) else ''}."
                )


def _has_type(kind: Any, value: Any) -> bool:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(_has_type(one, value) for one in arguments)
    if origin is Literal:
        return any(type(value) is type(one) and value == one for one in arguments)
    if origin is tuple and Ellipsis not in arguments:
        fits = isinstance(value, list | tuple) and len(value) == len(arguments)
        return fits and all(map(_has_type, arguments, value))
    if kind is float or kind is int:
        # Numbers of NumPy are numbers, booleans are not.
        return isinstance(value, Real if kind is float else Integral) and not isinstance(
            value, bool
        )
    cls = origin or kind
    if cls in (tuple, collections.abc.Sequence):
        cls = list | tuple
    # Where `isinstance` cannot check a type, any value is accepted.
    open_to_all = not isinstance(cls, type | types.UnionType) or getattr(cls, "_is_protocol", False)
    return open_to_all or isinstance(value, cls)


_TYPE_NAMES: Mapping[Any, str] = {
    float: "a number",
    int: "an integer",
    bool: "a boolean",
    str: "a text",
    type(None): "None ('none' in a definition)",
    collections.abc.Callable: "a function",
}


def _type_text(kind: Any) -> str:
    arguments = get_args(kind)
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(map(_type_text, arguments))
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, arguments))
    if get_origin(kind) is tuple and Ellipsis not in arguments:
        each = _type_text(arguments[0])
        return f"a list of {len(arguments)} values, each {each} or a range, as in [1, 2]"
    return _TYPE_NAMES.get(get_origin(kind) or kind, getattr(kind, "__name__", str(kind)))


def lazy_names(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a package whose names are imported on first use.

    The names are those that its block ``if TYPE_CHECKING`` imports, which type checkers and editors
    read, too. Its imports must be absolute, and its source must be installed. Modules of the
    package are imported on first use as well.

    Args:
        package: Its ``__name__``.
    """
    this = sys.modules[package]

    @functools.cache
    def modules() -> dict[str, str]:
        body = ast.parse(inspect.getsource(this)).body
        blocks = (node for node in body if isinstance(node, ast.If))
        imports = (node for block in blocks for node in block.body)
        return {
            alias.name: str(node.module)
            for node in imports
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }

    def load(name: str) -> Any:
        # `inspect.getsource` asks for `__wrapped__`, which must not read the source again.
        if not name.startswith("_"):
            if name in modules():
                value = getattr(importlib.import_module(modules()[name]), name)
                # The next access finds the attribute and does not call this function.
                setattr(this, name, value)
                return value
            if importlib.util.find_spec(f"{package}.{name}") is not None:
                return importlib.import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return load, lambda: list(this.__all__)
