"""The documentation builds without a warning."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import hpo_mab
from hpo_mab import samplers

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


@pytest.fixture(name="site", scope="module")
def _site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("docs") / "site"
    done = build(ROOT, target)
    assert done.returncode == 0, done.stderr
    return target


def text_of(site: Path, name: str) -> str:
    return (site / name / "index.html").read_text(encoding="utf-8")


def test_the_site_builds_without_a_warning(site: Path) -> None:
    commands = text_of(site, "reference/cli")
    assert "--data-root" in commands
    for default in ("digits", "report.html", "exclude.json", "0.0"):
        assert f"Default <code>{default}</code>" in commands
    assert "hpo_mab.samplers.GradNormSampler" in text_of(site, "reference/samplers")
    assert "label_smoothing" in text_of(site, "reference/definitions")


def test_the_reference_has_public_names_only_and_every_sampler(site: Path) -> None:
    for name in ("api", "samplers", "search", "training", "compare"):
        text = text_of(site, f"reference/{name}")
        assert not re.findall(r"hpo_mab(?:\.\w+)*\._[a-z]\w*\.", text), name
    text = text_of(site, "reference/samplers")
    headings = re.findall(r'<h2 id="hpo_mab\.samplers\.(\w+)"', text)
    elsewhere = set(hpo_mab.__all__) & set(samplers.__all__)
    assert set(headings) == set(samplers.__all__) - elsewhere
    # Names for users come first, those for authors of samplers last.
    assert headings.index("create") < headings.index("GradNormSampler")
    assert headings.index("ImponSampler") < headings.index("BatchSampler")
    table = text.split('id="hpo_mabsamplers"')[0]
    assert all(f"<code>{kind}</code>" in table for kind in samplers.available())


def test_a_phone_shows_the_reference_folded_and_a_link_opens_it(site: Path, page: Any) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    address = f"file://{site}/reference/samplers/index.html"
    page.goto(address)
    assert page.locator("details.api[open]").count() == 0
    assert page.evaluate("document.documentElement.scrollHeight") < 20 * 844
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.goto(f"{address}#hpo_mab.samplers.BatchSampler.state_dict")
    page.reload()
    (opened,) = page.locator("details.api[open]").all()
    assert opened.get_by_text("state_dict").first.is_visible()


def test_signatures_have_one_argument_per_line(site: Path) -> None:
    text = re.sub(r"<[^>]+>", "", text_of(site, "reference/samplers"))
    start = (
        r"GradNormSampler\(\n    labels: .*,\n    \*,\n    batch_size: int,\n    seed: int = 0,\n"
    )
    assert re.search(start, text)
    assert "**common" not in text.partition("\nBatchSampler(")[0]
    text = re.sub(r"<[^>]+>", "", text_of(site, "reference/training"))
    signature = text.partition("\nTraining(")[2].partition("\n)")[0]
    assert "    steps: int,\n    evaluations: int = 8,\n    warmup: float = 0.1,\n" in signature
    assert "**curve" not in signature


def test_the_evidence_page_has_a_row_per_record_and_a_section_per_question(site: Path) -> None:
    text = text_of(site, "evidence")
    table = text[text.index('class="records"') :]
    records = [
        path
        for path in (ROOT / "studies").rglob("*.json")
        if isinstance(raw := json.loads(path.read_text(encoding="utf-8")), dict)
        and {"summary", "studies"} <= raw.keys()
    ]
    sets = json.loads((ROOT / "studies/rungs/tables.json").read_text(encoding="utf-8"))["sets"]
    replays = list((ROOT / "studies/replay").glob("*_record.json"))
    assert table.count("<tr>") == 1 + len(records) + len(sets) + len(replays)
    assert text.count("plotly.min.js") == 1
    questions = re.findall(r'<h2 id="[^"]+">([^<]+)<', text)
    assert len(questions) >= 6
    assert all(question.endswith("?") for question in questions)
    # Conclusions and commands are on a page of each folder.
    for link in set(re.findall(r'href="((?:\w+/)+)(?:#[^"]*)?"', table)):
        assert (site / "evidence" / link / "index.html").exists()
    assert (site / "assets/ranking.svg").exists()
