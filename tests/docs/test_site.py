"""The documentation builds, and a link that leads nowhere fails the build."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mkdocs", reason="mkdocs is not installed; pip install -e '.[test]' brings it")

ROOT = Path(__file__).parents[2]


def build(root: Path, target: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(target)],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    done = build(ROOT, tmp_path / "site")
    assert done.returncode == 0, done.stderr
    cli = (tmp_path / "site/reference/cli/index.html").read_text(encoding="utf-8")
    assert "--data-root" in cli
    samplers = (tmp_path / "site/reference/samplers/index.html").read_text(encoding="utf-8")
    assert "hpo_mab.samplers.GradNormSampler" in samplers
    definitions = (tmp_path / "site/reference/definitions/index.html").read_text(encoding="utf-8")
    assert "label_smoothing" in definitions


def test_a_broken_link_fails_the_build(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    for page in (tmp_path / "docs/reference").glob("*.md"):
        page.write_text("# Empty\n", encoding="utf-8")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    index = tmp_path / "docs/index.md"
    index.write_text(index.read_text(encoding="utf-8") + "\n[gone](no-such-page.md)\n")
    (tmp_path / "docs/evidence.md").write_text("# Evidence\n", encoding="utf-8")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode != 0
    assert "no-such-page.md" in done.stderr
