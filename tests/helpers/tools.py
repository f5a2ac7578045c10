"""What tests of several parts look at or begin with."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import shlex
import sqlite3
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any
from unittest import mock
from wsgiref.util import setup_testing_defaults

import numpy as np
import sqlalchemy as sa
import torch
from PIL import Image
from torch import Tensor, nn

if TYPE_CHECKING:
    from hpo_mab.storage import Storage

STUDIES = Path(__file__).parents[2] / "studies"


def runs(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


#: Seconds to wait for an expected event; a busy machine may need them.
PATIENCE = 240.0


def until(condition: Callable[[], object], seconds: float = PATIENCE) -> bool:
    """Wait until a condition holds; false if it does not in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


def count(database: Path, rows: str) -> int:
    """Number of rows, as in SQL after ``FROM``; 0 while there is no such file or table."""
    if not database.exists():
        return 0
    with contextlib.closing(sqlite3.connect(database, timeout=10)) as connection:
        try:
            return int(connection.execute(f"SELECT count(*) FROM {rows}").fetchone()[0])
        except sqlite3.OperationalError:
            return 0


def statements_of(engine: sa.Engine) -> list[str]:
    """The SQL statements that an engine executes from now on."""
    statements: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    sa.event.listen(engine, "before_cursor_execute", note)
    return statements


def refreshed(storage: Storage) -> tuple[list[str], str]:
    """Names of the studies whose pages are written if the dashboard is refreshed; the problem."""
    from hpo_mab.dashboard import _publish

    publish = _publish._publish_one
    with mock.patch.object(_publish, "_publish_one", side_effect=publish) as written:
        problem = _publish.refresh(storage)
    return [call.args[1].name for call in written.call_args_list], problem


@contextlib.contextmanager
def no_waiting() -> Iterator[None]:
    """Every wait for the CUDA device is an error."""
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype feature")
        try:
            torch.cuda.set_sync_debug_mode("error")
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)


class Caching(nn.Linear):
    """Keeps a value of its weights in evaluation mode, as LeViT does."""

    kept: Tensor | None = None

    def train(self, mode: bool = True) -> Any:
        self.kept = None if mode else self.kept
        return super().train(mode)

    def forward(self, inputs: Tensor) -> Tensor:
        weight = 2 * self.weight
        if not self.training:
            self.kept = weight = weight if self.kept is None else self.kept
        return nn.functional.linear(inputs.flatten(1), weight, self.bias)


class Masked(nn.Linear):
    """Its last class is masked by an infinity."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__(inputs, classes)
        mask = torch.zeros(classes)
        mask[-1] = -torch.inf
        self.register_buffer("mask", mask)

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs.flatten(1)) + self.mask


def saved(state: Any) -> Any:
    """A state as it is read from a file."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def photo(path: Path, seed: int) -> None:
    """Write a picture of random pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def answer(
    served: Any,
    path: str,
    errors: io.StringIO | None = None,
    *,
    start: Any = lambda *_: io.BytesIO().write,
    host: str = "127.0.0.1",
    method: str = "GET",
    body: Any = None,
) -> bytes:
    """What a WSGI application answers to a request for a path; ``start`` gets status, headers.

    ``body`` is sent as JSON.
    """
    sent = b"" if body is None else json.dumps(body).encode()
    request: dict[str, Any] = {
        "PATH_INFO": path,
        "REQUEST_METHOD": method,
        "CONTENT_TYPE": "application/json",
        "CONTENT_LENGTH": str(len(sent)),
        "wsgi.input": io.BytesIO(sent),
        "wsgi.errors": errors or io.StringIO(),
    }
    setup_testing_defaults(request)
    parts = served({**request, "HTTP_HOST": host}, start)
    try:
        return b"".join(parts)
    finally:
        getattr(parts, "close", lambda: None)()


def next_commands(out: str) -> list[list[str]]:
    """Arguments of each ``hpo-mab`` command that an output ends with."""
    lines = out.partition("\nNext:\n")[2].splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [each[1:] for each in words if each[:1] == ["hpo-mab"]]


def load(name: str) -> ModuleType:
    """A script of a study, such as ``rungs/tables``, under a name of its own."""
    found = importlib.util.spec_from_file_location(name.replace("/", "_"), STUDIES / f"{name}.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    # Dataclasses look for their module there.
    sys.modules[found.name] = module
    folder = (STUDIES / name).parent
    path, known = list(sys.path), set(sys.modules)
    try:
        found.loader.exec_module(module)
    finally:
        # Scripts of several studies have the same names.
        sys.path[:] = path
        for other in set(sys.modules) - known:
            if Path(getattr(sys.modules[other], "__file__", None) or "").parent == folder:
                del sys.modules[other]
    return module
