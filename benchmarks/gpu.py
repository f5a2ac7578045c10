"""All checks and benchmarks that need a GPU, in one command of at most nine minutes.

    python benchmarks/gpu.py --json gpu.json
    python benchmarks/gpu.py --only steps --only draw
    python benchmarks/gpu.py --device cpu --tiny        # the same code, very small

Each part has its own process and time limit, so the others run even if one fails, hangs or breaks
the device. The command prints one table, each row as soon as it is known, and below it the output
of parts that failed. The exit status is 1 if a target is missed or a part failed.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import _shared

LIMIT = 530.0


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of the whole.

    Attributes:
        module: Where it is.
        function: Its name there; yields rows.
        limit: Seconds it may take of `LIMIT`.
    """

    module: str
    function: str
    limit: float


#: The most important parts come first.
PARTS = {
    "checks": Part("_gpu_checks", "checks", 60),
    "studies": Part("_gpu_study", "studies", 150),
    "trials": Part("_gpu_trials", "trials", 60),
    "steps": Part("_gpu_steps", "steps", 45),
    "draw": Part("_gpu_steps", "draw", 15),
    "against": Part("_gpu_steps", "against", 35),
    "floor": Part("_gpu_floor", "floor", 25),
    "tests": Part("_gpu_checks", "tests", 80),
}
#: Headings of the table.
HEAD = ("part", "what", "value", "target", "")
Found = list[dict[str, Any]]


def run_part(name: str, *, device: str, tiny: bool, path: Path, limit: float) -> None:
    """Run a part in this process; each row is written to the file as soon as it is known."""
    import importlib

    end = time.perf_counter() + limit
    import torch
    from _gpu_shared import Place

    torch.set_num_threads(1)
    part = PARTS[name]
    rows: Callable[[Any], Iterator[Any]] = getattr(
        importlib.import_module(part.module), part.function
    )
    with path.open("w") as file:
        for row in rows(Place(torch.device(device), tiny, end)):
            file.write(json.dumps(dataclasses.asdict(row)) + "\n")
            file.flush()


def supervise(
    name: str,
    *,
    device: str,
    tiny: bool,
    limit: float,
    on_rows: Callable[[Found], None] = lambda _: None,
) -> tuple[Found, str]:
    """Run a part in a process of its own.

    Args:
        name: The part.
        device: Where to run it.
        tiny: Whether to run its smallest version.
        limit: Seconds it may take.
        on_rows: Called with all rows so far when there are new ones.

    Returns:
        Its rows, with one more if it failed; and the end of its output.
    """
    started, found = time.perf_counter(), []
    with tempfile.TemporaryDirectory() as folder:
        path, errors = Path(folder) / "rows.jsonl", Path(folder) / "errors"
        command = [sys.executable, __file__, "--part", name, "--rows", str(path)]
        command += ["--device", device, "--limit", str(limit), *(["--tiny"] if tiny else [])]
        with errors.open("w") as said:
            # Output goes to a file: a process that a part leaves behind must not keep a pipe open.
            child = subprocess.Popen(command, stdout=said, stderr=said, start_new_session=True)
            try:
                while child.poll() is None and time.perf_counter() - started < limit:
                    time.sleep(0.1)
                    found = _known_rows(name, path, found, on_rows)
                status = child.poll()
            finally:
                _end(child)
        found = _known_rows(name, path, found, on_rows)
        last = errors.read_text(errors="replace").strip().splitlines()[-40:]
    problem = f"stopped after {limit:.0f} s" if status is None else f"status {status}: {last[-1:]}"
    if status != 0:
        row = {"name": "the part itself", "value": problem, "target": "", "met": False}
        found.append({"part": name, **row})
        on_rows(found)
    seconds = round(time.perf_counter() - started, 1)
    return [{**row, "part_seconds": seconds} for row in found], "\n".join(last)


def _known_rows(name: str, path: Path, found: Found, on_rows: Callable[[Found], None]) -> Found:
    """The rows that are in the file; ``on_rows`` gets them if there are new ones."""
    text = path.read_text() if path.exists() else ""
    # Up to the last whole line.
    rows = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    if len(rows) > len(found):
        found = [{"part": name, **row} for row in rows]
        on_rows(found)
    return found


def _end(child: subprocess.Popen[bytes]) -> None:
    """End a part with all that it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", choices=PARTS, help="repeat for several")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="the smallest version of everything")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds for all parts")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    where = {"device": options.device, "tiny": options.tiny}
    if options.part:
        run_part(options.part, path=options.rows, limit=options.limit, **where)
        return 0
    end = time.perf_counter() + options.limit
    found: Found = []
    said: dict[str, str] = {}
    table = Table(options.json)
    print(_shared.table(HEAD, ()), flush=True)
    for name in options.only or PARTS:
        left = end - time.perf_counter()
        if left < 5:
            row = {"part": name, "name": "-", "value": "no time left", "target": "", "met": False}
            found.append(row)
        else:
            share = PARTS[name].limit * options.limit / LIMIT
            limit, before = min(left, share), list(found)
            rows, last = supervise(
                name, **where, limit=limit, on_rows=lambda rows, had=before: table.show(had + rows)
            )
            found += rows
            if any(row["met"] is False for row in rows):
                said[name] = last
        table.show(found, said)
    for name, last in said.items():
        print(f"\n--- {name}\n{last}", file=sys.stderr)
    print(f"\n{_shared.machine()}")
    return int(any(row["met"] is False for row in found))


class Table:
    """The table on standard output, row by row, and as a whole in a file.

    Args:
        path: The file; None for none.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._shown = 0

    def show(self, found: Found, said: dict[str, str] | None = None) -> None:
        """Print the new rows at once, so that they are not lost if the command is stopped."""
        lines = as_table(found).splitlines()[2:]
        for line in lines[self._shown :]:
            print(line, flush=True)
        self._shown = len(lines)
        _shared.write_json(self._path, {"rows": found, "said": said or {}})


def as_table(found: Found) -> str:
    """All rows as a Markdown table."""
    words = {True: "met", False: "MISSED", None: ""}
    rows = [
        (row["part"], row["name"], row["value"], row["target"], words[row["met"]]) for row in found
    ]
    return _shared.table(HEAD, rows)


if __name__ == "__main__":
    sys.exit(main())
