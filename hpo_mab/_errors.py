"""Errors for users, their wording, arguments and their form in files, and when Ctrl-C is raised.

An error says in one line what to do. Out-of-memory errors get one format, and passwords in database
URLs are never shown. Arguments may be NumPy's numbers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import errno
import functools
import hashlib
import inspect
import math
import os
import re
import signal
import threading
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from numbers import Integral
from types import FrameType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

if TYPE_CHECKING:
    import pydantic

_P = ParamSpec("_P")
_R = TypeVar("_R")


class HpoMabError(Exception):
    """A mistake in the user's request; the command line shows it in one line, exit status 2."""


class ArgumentError(HpoMabError, ValueError):
    """An argument outside its bound: the message names the argument, the bound and the value."""


class SpecError(HpoMabError):
    """A study definition that cannot be used; the message names the file and the key."""


class StorageError(HpoMabError):
    """Storage that cannot be reached, or that holds something other than requested."""


class DataError(HpoMabError):
    """A data set that is not there or cannot be used."""


_SHOWN_NAMES = 30


class UnknownNameError(ArgumentError):
    """A name that does not exist; the message offers the nearest names that do.

    Args:
        what: What the name should mean, e.g. ``"sampler"``.
        name: The name given.
        valid: The names that exist.
        others: Further forms that names may have, e.g. ``"package.module:Name"``.
    """

    def __init__(
        self, what: str, name: str, valid: Iterable[str], *, others: Sequence[str] = ()
    ) -> None:
        names = sorted(valid)
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        if near:
            hint = f"Did you mean {_quoted_choice(near)}?"
            # One form alone is offered only where no name is near.
            hint += f" Other forms: {', '.join(others)}." if len(others) > 1 else ""
        else:
            more = [f"{len(names) - _SHOWN_NAMES} more"] if len(names) > _SHOWN_NAMES else []
            hint = f"Valid: {', '.join([*names[:_SHOWN_NAMES], *more, *others]) or 'none'}."
        super().__init__(f"Unknown {what} '{name}'. {hint}")

    def __reduce__(self) -> tuple[Any, ...]:
        """By its message: `pickle` would call the class with that alone."""
        return _with_message, (type(self), str(self))


def _with_message(kind: type[UnknownNameError], message: str) -> UnknownNameError:
    made = kind.__new__(kind, message)
    made.args = (message,)
    return made


def _quoted_choice(names: list[str]) -> str:
    quoted = [f"'{name}'" for name in names]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} or {quoted[-1]}"


def require(holds: bool, name: str, bound: str, value: object) -> None:
    """Raise `ArgumentError` for an argument outside its bound.

    Args:
        holds: Whether ``value`` is within the bound.
        name: The argument.
        bound: The bound in words, e.g. ``"in (0, 1]"``.
        value: The value given.

    Raises:
        ArgumentError: ``holds`` is false.
    """
    if not holds:
        raise ArgumentError(f"{name} must be {bound}, got {value}.")


def check_integer(name: str, value: object, low: int) -> None:
    """Raise unless a value is an integer, Python's or NumPy's, of at least ``low``.

    Raises:
        ArgumentError: It is not.
    """
    # In Python a boolean is an integer; as an argument it is a mistake.
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < low:
        raise ArgumentError(f"{name} must be an integer of at least {low}, got {value!r}.")


def json_values(value: Any) -> Any:
    """Values as JSON has them: NaN and infinity, which it lacks, become None."""
    if isinstance(value, Mapping):
        return {key: json_values(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [json_values(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def plain(value: Any) -> Any:
    """The value with Python's numbers in place of NumPy's, also in tuples and dictionaries.

    JSON, Optuna and PyTorch refuse some of NumPy's numbers, and a file that holds one cannot be
    loaded with ``weights_only``. Of lists, only those in dictionaries are converted: others may be
    long.
    """
    # By the module's name, so that NumPy is not imported. An array is returned as it is.
    if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():
        return value.item()
    if type(value) is tuple:
        return tuple(map(plain, value))
    if type(value) is dict:
        return {
            key: [plain(item) for item in one] if type(one) is list else plain(one)
            for key, one in value.items()
        }
    return value


def plain_arguments(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """The function, called with `plain` arguments."""

    @functools.wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        return function(*map(plain, args), **{name: plain(one) for name, one in kwargs.items()})

    return call


def stored_arguments(
    signature: inspect.Signature,
    args: Iterable[Any],
    kwargs: Mapping[str, Any],
    *,
    skip: Container[str] = (),
) -> dict[str, Any]:
    """Arguments of a call by name as a file can hold them, defaults included, but for ``skip``.

    They are equal after loading. Those of ``**`` are among them. Arguments that do not fit give
    none: the call itself then raises their error.
    """
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError:
        return {}
    bound.apply_defaults()
    found: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        rest = signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
        found.update(value if rest else {name: value})
    return {name: _stored_form(value) for name, value in found.items() if name not in skip}


def _stored_form(value: Any) -> Any:
    """A value as a file can hold it.

    For arrays it is a digest of their numbers, for functions their name, for other objects their
    type.
    """
    # Here, not at the top: definitions are read without them.
    import numpy as np
    import torch

    value = plain(value)
    if isinstance(value, list | tuple):
        return [_stored_form(part) for part in value]
    if isinstance(value, Mapping):
        return {str(key): _stored_form(part) for key, part in value.items()}
    if isinstance(value, bool | int | float | str | None):
        return value
    if isinstance(value, torch.Tensor | np.ndarray):
        value = np.ascontiguousarray(value) if isinstance(value, np.ndarray) else value
        numbers = torch.as_tensor(value).detach().to("cpu", torch.float64).contiguous().numpy()
        return hashlib.blake2b(numbers.data, digest_size=16).hexdigest()
    if callable(value):
        return name_of(value)
    return f"{type(value).__module__}.{type(value).__qualname__}"


def name_of(named: str | Callable[..., Any]) -> str:
    """A name as text: itself, or ``package.module:Name`` of a class or function."""
    if isinstance(named, str):
        return named
    if isinstance(named, functools.partial):
        return name_of(named.func)
    thing = named if hasattr(named, "__qualname__") else type(named)
    return f"{thing.__module__}:{thing.__qualname__}"


# Libraries raise a general RuntimeError for this, so only the text, which differs by device, says
# that memory ran out.
_DEVICE = re.compile(
    r"CUDA error: out of memory|HIP error: out of memory|MPS backend out of memory"
    r"|CU(?:BLAS|DNN|FFT|SOLVER|RAND)_STATUS_(?:ALLOC_FAILED|ALLOCATION_FAILED)"
)
_HOST = re.compile(
    r"DefaultCPUAllocator: (?:can't allocate memory|not enough memory)"
    r"|bad_alloc|bad allocation|unable to allocate shared memory|Cannot allocate memory"
)
_BYTES = re.compile(r"tried to allocate (\d+) bytes")
_ARRAY = re.compile(r"Unable to allocate [^\n]*")


def memory_reason(error: BaseException) -> str | None:
    """Which memory ran out and what was requested of it, in one line; None if none ran out.

    Also examines the causes of an error. A later error may hide the first: a failed capture of a
    step, or a failed close of a file.
    """
    for one in _causes(error):
        reason = _memory_reason_of(one)
        if reason is not None:
            return f"OutOfMemoryError: {reason}"
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _memory_reason_of(error: BaseException) -> str | None:
    # By the class's name, so that torch is not imported.
    text, name = str(error).strip(), type(error).__name__
    if name == "OutOfMemoryError" or (isinstance(error, RuntimeError) and _DEVICE.search(text)):
        # Advice on the allocator's settings follows the figures; it is cut off.
        return text.partition("\n")[0].partition(" If reserved but")[0]
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return _host_reason(text)
    return _host_reason(text) if isinstance(error, RuntimeError) and _HOST.search(text) else None


def _host_reason(text: str) -> str:
    asked, array = _BYTES.search(text), _ARRAY.search(text)
    detail = ""
    if asked is not None:
        detail = f" Tried to allocate {_size(int(asked[1]))}."
    elif array is not None:
        detail = f" {array[0].rstrip('.')}."
    return f"host out of memory.{detail}"


def _size(count: int) -> str:
    unit, name = (2**30, "GiB") if count >= 2**30 else (2**20, "MiB")
    return f"{count / unit:,.2f} {name}"


# Up to the last @: an unescaped password may contain one, or a slash.
_USER = re.compile(r"(://[^\s:/@]*:)[^\s'\"]+@")
#: Parts of a URL's query that drivers take secrets from; ``odbc_connect`` holds ``PWD=``.
_QUERY = re.compile(
    r"([?&;](?:password|passwd|passphrase|pwd|sslpassword|odbc_connect|token|secret)=)[^&\s'\"]*",
    re.IGNORECASE,
)


def hide_passwords(text: str) -> str:
    """The text with ``***`` for the password of every URL in it."""
    return _QUERY.sub(r"\1***", _USER.sub(r"\1***@", text))


def invalid_message(
    error: pydantic.ValidationError, keys_at: Callable[[Sequence[int | str]], Iterable[str]]
) -> str:
    """The first mistake that pydantic found, as one sentence, and how many more there are.

    Args:
        error: What pydantic has raised.
        keys_at: Returns the keys that a section may have.
    """
    by_key: dict[str, list[Any]] = {}
    for one in error.errors(include_url=False):
        # pydantic gives one error for each type of a union that the value does not fit.
        parts = [str(part) for part in one["loc"] if not _TYPE_OF_SEVERAL.fullmatch(str(part))]
        by_key.setdefault(".".join(parts), []).append(one)
    (key, first), *others = by_key.items()
    if first[0]["type"] == "extra_forbidden":
        *section, name = first[0]["loc"]
        what = f"key in [{'.'.join(map(str, section))}]" if section else "section"
        text = str(UnknownNameError(what, str(name), keys_at(section)))
    else:
        text = _requirement(key, first)
    if not others:
        return text if text.endswith((".", "?")) else f"{text}."
    return f"{text.rstrip('.')} (and {len(others)} more)."


#: Parts that pydantic adds to a key, one for each type of a union.
_TYPE_OF_SEVERAL = re.compile(r"(constrained-)?(int|float|str|bool)|literal\[.*\]")
#: Requirements on a value by pydantic's names of mistakes; ``{}`` is a bound.
_BOUNDS = {
    "greater_than": "above {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "below {lt}",
    "less_than_equal": "at most {le}",
    "literal_error": "{expected}",
    "string_too_short": "a text that is not empty",
    "string_too_long": "a text of at most {max_length} characters",
    "finite_number": "a finite number",
}
_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "a text",
    "model": "a section",
    "dict": "a section",
}


def _requirement(key: str, errors: Sequence[Mapping[str, Any]]) -> str:
    """The requirement on the value of a key, and the value given."""
    first = errors[0]
    if first["type"] == "missing":
        return f"{key} is missing; 'Study definitions' in the documentation lists every key"
    if first["type"] == "value_error":
        text = str(first["msg"]).removeprefix("Value error, ")
        return f"{key} {text}" if text.startswith("must") else f"{key}: {text}" if key else text
    wanted = []
    for one in errors:
        kind = _TYPES.get(one["type"].partition("_")[0], one["msg"])
        wanted.append(_BOUNDS.get(one["type"], kind).format(**one.get("ctx", {})))
    # The value of a whole section is too long to show.
    given = first["input"]
    shown = repr(given) if isinstance(given, str | int | float | bool) else type(given).__name__
    return f"{key} must be {' or '.join(dict.fromkeys(wanted))}, got {shown}"


# When Ctrl-C is raised.


@dataclasses.dataclass
class _Interrupts:
    """Ctrl-C while it is deferred: whether it was pressed, and whether it is raised at once."""

    pressed: bool = False
    raised_at_once: bool = False
    process: int = dataclasses.field(default_factory=os.getpid)

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        # Whoever presses a second time does not want to wait.
        again = self.pressed and number == signal.SIGINT
        self.pressed = True
        # A child process has this handler, too, but no loop of trials.
        if self.raised_at_once or again or os.getpid() != self.process:
            raise KeyboardInterrupt


#: Of the main thread; None while Ctrl-C is not deferred.
_interrupts: _Interrupts | None = None


@contextlib.contextmanager
def deferred_interrupts() -> Iterator[Callable[[], bool]]:
    """Raise Ctrl-C only within `interruptible`, or when it is pressed again.

    Raised in the middle of a call to the database, it could leave a lock held or a transaction
    open. SQLAlchemy may also replace it with an error of its own, so that it is lost.
    Nothing changes in other threads, and for signals that have another handler than Python's.

    Yields:
        Returns whether Ctrl-C was pressed.
    """
    global _interrupts
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    outer = _interrupts
    # Within another loop of trials the handler is already the other's.
    mine = outer or _Interrupts()
    before, mine.raised_at_once = mine.raised_at_once, False
    deferred = [
        number
        for number in (signal.SIGINT, signal.SIGTERM)
        if signal.getsignal(number) is signal.default_int_handler
    ]
    try:
        _interrupts = mine
        for number in deferred:
            signal.signal(number, mine.on_signal)
        yield lambda: mine.pressed
    finally:
        _interrupts, mine.raised_at_once = outer, before
        for number in deferred:
            if signal.getsignal(number) == mine.on_signal:
                signal.signal(number, signal.default_int_handler)


def raise_if_interrupted() -> None:
    """Raise Ctrl-C that was pressed while it was deferred."""
    with interruptible():
        pass


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """A part of `deferred_interrupts` in which Ctrl-C is raised at once: a wait, or training.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed, now or before. Errors that follow from it are its
            cause: at a terminal it also ends the processes that load data.
    """
    mine = _interrupts
    if mine is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = mine.raised_at_once
    try:
        mine.raised_at_once = True
        if not mine.pressed:
            yield
        # Python discards what is raised within a finaliser.
        if mine.pressed:
            raise KeyboardInterrupt
    except Exception as error:
        if mine.pressed:
            raise KeyboardInterrupt from error
        raise
    finally:
        mine.raised_at_once = before
