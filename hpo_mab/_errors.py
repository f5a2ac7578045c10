"""Errors for users, their wording, and arguments.

An error says in one line what to do. Out-of-memory errors get one format, and passwords in database
URLs are never shown. Of arguments, NumPy's numbers are converted to Python's, and a sampler's have
a form that a file can hold.
"""

from __future__ import annotations

import difflib
import enum
import errno
import functools
import hashlib
import inspect
import math
import os
import re
import traceback
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

_P = ParamSpec("_P")
_R = TypeVar("_R")


class HpoMabError(Exception):
    """Base of this package's errors; the command line shows one in one line, exit status 2.

    Most are mistakes in a request, and are caught by this name:

    - ``ArgumentError``, which is also a `ValueError`: an argument outside its bound.
    - ``UnknownNameError``, an ``ArgumentError``: a name that does not exist; the message offers the
      nearest names that do.
    - ``SpecError``: a study definition that cannot be used.
    - ``StorageError``: a database that cannot be reached, or holds something other than requested.
    - ``DataError``: a data set that is missing or cannot be used.
    """


class HpoMabWarning(UserWarning):
    """Any warning of this package; a filter selects some by their messages."""


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
        self, what: str, name: object, valid: Iterable[str], others: Sequence[str] = ()
    ) -> None:
        # `pickle` calls the class with these. A data type or a class may be given for a name.
        super().__init__(what, str(name), sorted(valid), tuple(others))

    def __str__(self) -> str:
        """The message."""
        what, name, names, others = self.args
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        if near:
            hint = f"Did you mean {_quoted_choice(near)}?"
            # One form alone is offered only where no name is near.
            hint += f" Other forms: {', '.join(others)}." if len(others) > 1 else ""
        else:
            more = [f"{len(names) - _SHOWN_NAMES} more"] if len(names) > _SHOWN_NAMES else []
            hint = f"Valid: {', '.join([*names[:_SHOWN_NAMES], *more, *others]) or 'none'}."
        return f"Unknown {what} {name!r}. {hint}"


def _quoted_choice(names: list[str]) -> str:
    quoted = [f"'{name}'" for name in names]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} or {quoted[-1]}"


def require(holds: bool, name: str, bound: str, value: object) -> None:
    """Raise `ArgumentError` unless ``holds``; ``bound`` is in words, e.g. ``"in (0, 1]"``."""
    if not holds:
        raise ArgumentError(f"{name} must be {bound}, got {value}.")


def is_integer(value: object) -> bool:
    """Whether a value is an integer, Python's or NumPy's."""
    # In Python a boolean is an integer; as an argument it is a mistake.
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_integer(name: str, value: object, low: int) -> None:
    """Raise `ArgumentError` unless a value is an integer of Python or NumPy, at least ``low``."""
    if not is_integer(value) or int(value) < low:  # type: ignore[call-overload]
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
            key: _plain_list(one) if type(one) is list else plain(one) for key, one in value.items()
        }
    return value


def _plain_list(items: list[Any]) -> list[Any]:
    return [_plain_list(item) if type(item) is list else plain(item) for item in items]


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
    """Arguments of a call by name, in a form that a file can hold, without those in ``skip``.

    Defaults and arguments passed by ``**`` are included. Saving and loading does not change the
    result. It is empty if the arguments do not fit the signature; the call then raises TypeError.
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

    An array becomes a digest of its numbers, a function its name, any other object its type.
    """
    # Here, not at the top: definitions are read without them.
    import numpy as np
    import torch

    value = plain(value.value if isinstance(value, enum.Enum) else value)
    if isinstance(value, float) and math.isnan(value):
        return "nan"  # NaN does not equal itself.
    if isinstance(value, list | tuple):
        return [_stored_form(part) for part in value]
    if isinstance(value, Mapping):
        return {str(key): _stored_form(part) for key, part in value.items()}
    if isinstance(value, bool | int | float | str | None):
        return value
    if isinstance(value, torch.Tensor | np.ndarray):
        value = np.ascontiguousarray(value) if isinstance(value, np.ndarray) else value
        numbers = torch.as_tensor(value, dtype=torch.float64, device="cpu").detach().contiguous()
        return hashlib.blake2b(numbers.numpy().data, digest_size=16).hexdigest()
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
    r"CUDA (?:driver )?error: out of memory|HIP error: out of memory|MPS backend out of memory"
    # Such as CUBLAS_STATUS_ALLOC_FAILED, CUFFT_ALLOC_FAILED and
    # CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED.
    r"|CU[A-Z]+_(?:\w+_)?ALLOC(?:ATION)?_FAILED"
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


_TRACEBACK = "Traceback (most recent call last):"


def failure_reason(error: BaseException) -> str:
    """The kind of an error, the first line of its message, and where a user's own code raised it.

    The message of an error in a data-loading process is that process's traceback. Its last line is
    then the reason. Out-of-memory errors get one format. Passwords are hidden: it is stored.
    """
    text = hide_passwords(f"{type(error).__name__}: {error}".strip())
    out_of_memory = memory_reason(error)
    head, mark, rest = text.rpartition(_TRACEBACK)
    if mark and "DataLoader worker" in head:
        # Frames are indented; the error itself is the first line that is not.
        errors = [line for line in rest.splitlines() if line and not line[0].isspace()]
        if errors:
            return f"{out_of_memory or errors[0]} (in a data-loading process)"
    return out_of_memory or f"{text.splitlines()[0]}{place_of(error)}"


#: Files of this package and of Python: a user looks for mistakes in others.
_NOT_OWN = tuple(f"{Path(each).parent}{os.sep}" for each in (__file__, os.__file__))
#: Folders of installed packages; Debian's Python has the second.
_INSTALLED = {"site-packages", "dist-packages"}


def place_of(error: BaseException) -> str:
    """The last line of a user's own file that an error went through; empty if there is none.

    The text names the file without its folder, because it is stored and may be published.
    """
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if not frame.filename.startswith(("<", *_NOT_OWN)) and not _INSTALLED & {*path.parts}:
            return f" ({path.name}, line {frame.lineno})"
    return ""


# Up to the last "@": an unescaped password may contain one, a slash or an apostrophe. A user's name
# may contain one "@", too.
_USER = re.compile(r"(://[^\s:/@]*(?:@[^\s:/@]*)?:)[^\s\"]+@")
#: Parts of a URL's query that drivers take secrets from; ``odbc_connect`` holds ``PWD=``.
_QUERY = re.compile(
    r"([?&;](?:password|passwd|passphrase|pwd|sslpassword|odbc_connect|token|secret)=)[^&\s'\"]*",
    re.IGNORECASE,
)


def hide_passwords(text: str) -> str:
    """The text with ``***`` for the password of every URL in it."""
    return _QUERY.sub(r"\1***", _USER.sub(r"\1***@", text))


#: Characters that would control a terminal, each with its code; line breaks and tabs stay.
_CONTROLS = {code: ascii(chr(code))[1:-1] for code in (*range(9), *range(11, 32), *range(127, 160))}


def printable(text: str) -> str:
    """The text with the code of every character that would control a terminal."""
    return text.translate(_CONTROLS)
