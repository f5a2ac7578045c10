"""Running out of memory, on the host or on a device."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator

# Libraries of a device say it each in its own way, in errors of no kind of their own.
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
    """What ran out of memory and what was asked of it, in one line; None where nothing did.

    Looks through an error to those that it came of: on the way out, a step that could not be
    captured or a file that could not be closed may be complained of instead.
    """
    for one in _chain(error):
        reason = _reason(one)
        if reason is not None:
            return f"OutOfMemoryError: {reason}"
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _reason(error: BaseException) -> str | None:
    # By name: nothing here may import torch for it.
    text, name = str(error).strip(), type(error).__name__
    if name == "OutOfMemoryError" or (isinstance(error, RuntimeError) and _DEVICE.search(text)):
        # Two sentences of figures, then advice on the allocator's settings.
        return text.partition("\n")[0].partition(" If reserved but")[0]
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return _of_host(text)
    return _of_host(text) if isinstance(error, RuntimeError) and _HOST.search(text) else None


def _of_host(text: str) -> str:
    asked, array = _BYTES.search(text), _ARRAY.search(text)
    told = ""
    if asked is not None:
        told = f" Tried to allocate {_size(int(asked[1]))}."
    elif array is not None:
        told = f" {array[0].rstrip('.')}."
    return f"host out of memory.{told}"


def _size(count: int) -> str:
    unit, name = (2**30, "GiB") if count >= 2**30 else (2**20, "MiB")
    return f"{count / unit:,.2f} {name}"
