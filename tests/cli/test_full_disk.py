"""A disk that becomes full during a study: one line, and no trial lost or doubled after it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from _faults import count_faults
from tools import refreshed

from hpo_mab.storage import Storage, StudyRun, read_run

Cli = Callable[..., "tuple[int, str, str]"]
NAME = "tiny-uniform-seed0"
TRIALS = "20"
ROOM = 300_000
OPTIONS = ("--sampler", "uniform", "--pruner", "none", "--set", "search.sampler=random")

LIMITED = """
import resource, sys
from hpo_mab.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)),) * 2)
main()
"""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of sixteen megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.name != "posix" or os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("mounting a file system of sixteen megabytes needs root")
    options = ["-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
    made = subprocess.run(["mount", *options], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"mounting a file system of sixteen megabytes is not allowed: {made.stderr}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _run(path: Path) -> StudyRun:
    storage = Storage(str(path))
    run = read_run(storage, NAME)
    storage.close()
    return run


def _finished(run: StudyRun) -> dict[int, object]:
    """Value and curve of every finished trial, by its number; none may be lost."""
    return {
        t.number: (t.slot, t.value, [dataclasses.astuple(e) for e in t.curve])
        for t in run.trials
        if t.state == "complete"
    }


def _is_one_line(said: str, words: list[str]) -> None:
    assert said.count("\n") == 1, said
    assert said.startswith("hpo-mab: ")
    for word in words:
        assert word in said


def _goes_on(cli: Cli, tiny: str, path: Path) -> None:
    """The same command finishes the study: no trial is lost or doubled."""
    before = _finished(_run(path))
    # Otherwise the disk was not full during the study, and nothing was tested.
    assert 1 < len(before) < int(TRIALS)
    rest = ("--trials", TRIALS, "--storage", str(path), "--quiet")
    assert cli("run", tiny, *OPTIONS, *rest) == (0, "", "")
    run = _run(path)
    after = _finished(run)
    assert {number: after[number] for number in before} == before
    report = count_faults(run, kills=0)
    assert (report.lost, report.doubled, report.inconsistent) == ((), (), ())
    assert report.trials == len(after) == int(TRIALS)


@pytest.mark.skipif(sys.platform != "linux", reason="needs limits of a file's size")
def test_a_study_whose_file_cannot_grow_continues_when_it_can(
    cli: Cli, tiny: str, tmp_path: Path
) -> None:
    path = tmp_path / "studies.db"
    command = ["run", tiny, *OPTIONS, "--storage", str(path), "--quiet"]
    assert cli(*command, "--trials", "1")[0] == 0
    # This process may still have the file open, and its log would be larger than the limit.
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    limited = subprocess.run(
        [sys.executable, "-c", LIMITED, str(ROOM), *command, "--trials", TRIALS],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (limited.returncode, limited.stdout) == (2, "")
    _is_one_line(limited.stderr, ["disk I/O error", "Is the disk full", str(path)])
    _goes_on(cli, tiny, path)


def test_pages_that_a_full_disk_prevents_are_written_later(
    cli: Cli, tiny: str, small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hpo_mab.dashboard import _publish

    monkeypatch.setenv("HPO_MAB_ARTIFACTS", str(small_disk))
    # As of a thousand evaluations.
    monkeypatch.setattr(_publish, "LARGE", 1)
    free = shutil.disk_usage(small_disk).free
    (small_disk / "other").write_bytes(b"x" * free)
    status, out, err = cli("run", tiny, *OPTIONS, "--trials", "2")
    # The study is what was asked for, and it is there.
    assert status == 0
    assert "2 complete" in out
    _is_one_line(
        err.splitlines(keepends=True)[-1],
        ["studies are stored", "No space left", "next 'hpo-mab dash"],
    )
    (small_disk / "other").unlink()
    storage = Storage(str(tmp_path / "hpo_mab.db"))
    written = refreshed(storage)
    storage.close()
    assert written == ([NAME], "")
    whole = [f.read_text().count("\n") for f in small_disk.iterdir() if f.stat().st_size]
    assert whole == [1 + 2 * 3]
