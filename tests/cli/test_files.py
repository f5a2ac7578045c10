"""The files that commands write."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from hpo_mab._errors import ArgumentError
from hpo_mab.cli._files import write_file


def test_a_write_that_fails_leaves_the_earlier_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "good.pt"
    path.write_text("mine")

    def full(self: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(ArgumentError, match=r"good.pt cannot be written: No space left on"):
            write_file(path, "new")
    assert path.read_text() == "mine"
    with pytest.raises(ArgumentError, match=r"Not a directory. Give a file in an existing folder."):
        write_file(path / "below.pt", "new")
    write_file(path, "new")
    assert path.read_text() == "new"
    assert [one.name for one in tmp_path.iterdir()] == ["good.pt"]


def test_a_file_that_is_replaced_keeps_its_rights(tmp_path: Path) -> None:
    path, other = tmp_path / "report.html", tmp_path / "other"
    path.write_text("mine")
    path.chmod(0o600)
    # What another user of the folder could prepare.
    (tmp_path / ".report.html.part").symlink_to(other)
    write_file(path, "new")
    assert (path.read_text(), other.exists()) == ("new", False)
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_name_that_is_not_valid_unicode_is_written_with_its_code(tmp_path: Path) -> None:
    write_file(tmp_path / "report.md", "photos \udcff")
    assert (tmp_path / "report.md").read_text() == r"photos \udcff"
