"""Every check and every benchmark that needs a GPU, in one command of at most nine minutes.

    python benchmarks/gpu.py --json gpu.json
    python benchmarks/gpu.py --only steps --only draw
    python benchmarks/gpu.py --device cpu --tiny        # the same code on next to nothing

Each part runs in a process and a time limit of its own: one that fails, hangs or breaks the device
does not keep the others from running. Prints one table; the exit status is 1 where a target is
missed or a part failed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
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
        limit: Seconds it may take.
    """

    module: str
    function: str
    limit: float


#: In the order of what must be known first.
PARTS = {
    "checks": Part("_gpu_checks", "checks", 60),
    "steps": Part("_gpu_steps", "steps", 90),
    "draw": Part("_gpu_steps", "draw", 40),
    "trials": Part("_gpu_trials", "trials", 190),
    "against": Part("_gpu_steps", "against", 60),
    "floor": Part("_gpu_floor", "floor", 45),
    "tests": Part("_gpu_checks", "tests", 120),
}


def run_part(name: str, *, device: str, tiny: bool, path: Path) -> None:
    """Run a part in this process; every row is in the file as soon as it is known."""
    import importlib

    import torch
    from _gpu_shared import Place

    torch.set_num_threads(1)
    part = PARTS[name]
    rows: Callable[[Any], Iterator[Any]] = getattr(
        importlib.import_module(part.module), part.function
    )
    with path.open("w") as file:
        for row in rows(Place(torch.device(device), tiny)):
            file.write(json.dumps(dataclasses.asdict(row)) + "\n")
            file.flush()


def supervise(name: str, *, device: str, tiny: bool, limit: float) -> list[dict[str, Any]]:
    """Run a part in a process of its own; its rows, and one more if it did not end well."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        command = [sys.executable, __file__, "--part", name, "--rows", str(path)]
        command += ["--device", device, *(["--tiny"] if tiny else [])]
        try:
            done = subprocess.run(
                command, stderr=subprocess.PIPE, text=True, timeout=limit, check=False
            )
            said = done.stderr.strip().splitlines()
            problem = f"status {done.returncode}: {said[-1:]}" if done.returncode else ""
        except subprocess.TimeoutExpired as error:
            raw = error.stderr or b""
            said = (raw.decode() if isinstance(raw, bytes) else raw).strip().splitlines()
            problem = f"stopped after {limit:.0f} s"
        lines = path.read_text().splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines]
    if problem:
        rows.append({"name": "the part itself", "value": problem, "target": "", "met": False})
    if problem or any(row["met"] is False for row in rows):
        print(f"--- {name}\n" + "\n".join(said[-40:]), file=sys.stderr)
    seconds = time.perf_counter() - started
    return [{"part": name, **row, "part_seconds": round(seconds, 1)} for row in rows]


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
    if options.part:
        run_part(options.part, device=options.device, tiny=options.tiny, path=options.rows)
        return 0
    end = time.perf_counter() + options.limit
    found: list[dict[str, Any]] = []
    for name in options.only or PARTS:
        left = end - time.perf_counter()
        if left < 5:
            found.append({"part": name, "name": "-", "value": "no time left", "target": ""})
            continue
        found += supervise(
            name, device=options.device, tiny=options.tiny, limit=min(left, PARTS[name].limit)
        )
        # At once: what stops the command from outside must not take all of it along.
        _shared.write_json(options.json, {"rows": found})
    print(f"{_shared.machine()}\n\n{as_table(found)}")
    return int(any(row.get("met") is False for row in found))


def as_table(found: list[dict[str, Any]]) -> str:
    """All rows as a Markdown table."""
    words = {True: "met", False: "MISSED", None: ""}
    rows = [
        (row["part"], row["name"], row["value"], row["target"], words[row.get("met")])
        for row in found
    ]
    return _shared.table(("part", "what", "value", "target", ""), rows)


if __name__ == "__main__":
    sys.exit(main())
