"""``hpo-mab examples``: lists, a page with pictures, a table, and a list to leave out."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from optuna_dashboard import get_note
from PIL import Image
from sklearn.datasets import load_digits

from hpo_mab.cli._examples import _examples_page
from hpo_mab.search._examples import Example
from hpo_mab.storage import Storage, open_study

Cli = Any


@pytest.fixture(name="study")
def _study(run_once: Callable[..., None], tiny: str) -> str:
    run_once(("run", tiny, "--quiet"))
    return "tiny-mab-seed0"


def test_the_lists(cli: Cli, study: str) -> None:
    status, out, err = cli("examples", study, "--top", "3")
    assert (status, err) == (0, "")
    assert "4 trials saw 1,149 training examples" in out
    for heading, score in (
        ("Most likely mislabelled", "another class's logit minus the label's"),
        ("Hardest", "the loss divided by the average loss"),
        ("Most ambiguous", "standard deviation of the label's probability"),
    ):
        assert f"{heading}\nscore: {score}" in out
    found = json.loads(cli("examples", study, "--top", "3", "--json")[1])
    assert found["trials"] == 4
    scores = [one["score"] for one in found["suspicious"]]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)
    assert all(one["label"] != one["predicted"] for one in found["suspicious"])


def test_a_page_and_a_table(cli: Cli, study: str, tmp_path: Path) -> None:
    status, *_ = cli("examples", study, "--html", "e.html", "--csv", "e.csv", "--top", "4")
    assert status == 0
    page = (tmp_path / "e.html").read_text()
    assert page.count('src="data:image/png;base64,') == 12
    assert page.count("<p>score: ") == 3
    assert re.search(r'(src|href)="http', page) is None
    rows = list(csv.DictReader((tmp_path / "e.csv").read_text().splitlines()))
    suspicious = [float(row["suspicious"]) for row in rows]
    assert suspicious == sorted(suspicious, reverse=True)
    assert len({row["index"] for row in rows}) == len(rows) > 1000


def test_names_on_the_page_are_escaped() -> None:
    found: Any = SimpleNamespace(
        name="<b>study</b>",
        record=SimpleNamespace(summary=lambda: "<b>1</b> trial"),
        picture=lambda one: torch.zeros(1, 2, 2, dtype=torch.uint8),
    )
    names = {"label": "<b>", "predicted": "<b>", "file": "<img src=x>.png"}
    one = Example(index=0, row=0, score=1.0, visits=1, **names)
    page = _examples_page(found, {"suspicious": [one]})
    assert "<b>" not in page
    assert page.count("<img ") == 1
    assert "&lt;img src=x&gt;.png" in page


def test_the_lists_name_the_sample_that_they_show(
    cli: Cli, tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpo_mab._examples.MOST_EXAMPLES", 100)
    assert cli("run", tiny, "--quiet", "--trials", "1")[0] == 0
    out = cli.out("examples", "tiny-mab-seed0")
    assert "1 trial saw a fixed random sample of 100 of 1,149 training examples" in out
    note = get_note(open_study(Storage("hpo_mab.db"), "tiny-mab-seed0"))
    assert "1 trial saw a fixed random sample of 100 of 1,149 training examples" in note


def test_what_is_dropped_is_not_trained_on(cli: Cli, study: str, tmp_path: Path) -> None:
    assert cli("examples", study, "--drop", "7", "-o", "out.json")[0] == 0
    dropped = json.loads((tmp_path / "out.json").read_text())["indices"]
    assert len(dropped) == 7
    status, _, err = cli("run", "tiny.toml", "-q", "--set", "data.exclude=out.json")
    assert status == 2  # Other data than those of the study.
    assert "another definition: data.exclude" in err
    named = ("--name", "clean", "--set", "data.exclude=out.json")
    assert cli("run", "tiny.toml", "-q", *named)[0] == 0
    found = json.loads(cli("examples", "clean", "--top", "2000", "--json")[1])
    assert found["total"] == 1142
    assert not {one["index"] for one in found["suspicious"]} & set(dropped)
    # A second list has what the first one has, which the study needs as it is.
    status, _, err = cli("examples", "clean", "--drop", "2", "-o", "out.json")
    assert (status, "--output must be another file" in err) == (2, True)
    assert "and 7 that the study leaves out" in cli("examples", "clean", "--drop", "2")[1]
    # Another study may need the file.
    assert "exclude.json exists; name a file" in cli.refusal("examples", study, "--drop", "2")
    both = json.loads((tmp_path / "exclude.json").read_text())["indices"]
    assert set(dropped) < set(both)
    assert len(both) == 9
    assert cli("run", "tiny.toml", "-q", *named)[0] == 0


def test_a_list_of_other_labels_is_refused(cli: Cli, study: str, tmp_path: Path) -> None:
    assert cli("examples", study, "--drop", "1", "-o", "out.json")[0] == 0
    listed = json.loads((tmp_path / "out.json").read_text())
    for change, message in (
        ({"labels": "0" * 32}, "other training labels"),
        ({"format": 9}, "has format 9"),
        ({"indices": "x"}, "not a list of images"),
    ):
        (tmp_path / "out.json").write_text(json.dumps(listed | change))
        named = ("--name", "n", "--set", "data.exclude=out.json")
        err = cli.refusal("run", "tiny.toml", "-q", *named)
        assert message in err
    status, _, err = cli("run", "tiny.toml", "-q", "--name", "n", "--set", "data.exclude=no.json")
    assert (status, "cannot be read" in err) == (2, True)


def test_mistakes_in_one_line(cli: Cli, study: str) -> None:
    refused = cli.refusal("examples", study, "--drop", "5000", "--csv", "all.csv")
    assert "--drop must be in [1, 1149]" in refused
    assert not Path("all.csv").exists()
    out = cli.out("examples", study, "--drop", "1149", "-o", "most.json")
    assert "1139 examples in most.json (without 10: the last one of a class stays)" in out
    assert len(json.loads(Path("most.json").read_text())["indices"]) == 1139
    off = ("--name", "off", "--set", "training.examples=false")
    assert cli("run", "tiny.toml", "-q", *off)[0] == 0
    assert "has no record of examples" in cli.refusal("examples", "off")


def test_flipped_labels_of_a_folder_come_first_with_their_files(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digits = load_digits()
    kept = digits.target < 2
    pixels = (digits.images[kept] * 15.9).astype(np.uint8)
    for number, (image, label) in enumerate(zip(pixels, digits.target[kept], strict=True)):
        given = 1 - label if number % 30 == 0 else label
        name = "flipped-\x1b[2J" if given != label else "right"
        path = tmp_path / "photos" / ("zero", "one")[given] / f"{name}-{'x' * 60}-{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    (tmp_path / "folder.toml").write_text(
        'name = "folder"\n[data]\nname = "image_folder"\nroot = "photos"\n'
        '[budget]\nepochs = 3\ntrials = 3\n[model]\nname = "mlp"\n'
        "[optimizer]\nlr = 0.05\n[training]\nbatch_size = 16\n"
        '[sampler]\nkind = "uniform"\n[search]\ninitial = 2\n'
    )
    assert cli("run", "folder.toml", "-q")[0] == 0
    found = json.loads(cli("examples", "folder-uniform-seed0", "--top", "5", "--json")[1])
    assert len(found["suspicious"]) == 5
    assert all("flipped-" in one["file"] for one in found["suspicious"])
    for one in found["suspicious"]:
        assert (tmp_path / "photos" / one["file"]).is_file()
        assert one["file"].startswith(f"{one['label']}/")
    out = cli.out("examples", "folder-uniform-seed0", "--top", "5")
    assert not {"…", "\x1b"} & set(out)
    assert r"flipped-\x1b[2J-" in out
    # The second time images and names come from the cache.
    assert json.loads(cli("examples", "folder-uniform-seed0", "--top", "5", "--json")[1]) == found
    assert cli("examples", "folder-uniform-seed0", "--drop", "3", "-o", "out.json")[0] == 0
    again = ("run", "folder.toml", "-q", "--name", "again", "--set", "data.exclude=~/out.json")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cli(*again)[0] == 0
    refused = cli.refusal("examples", "again", "--drop", "1", "-o", "out.json")
    assert "--output must be another file" in refused
    # Each class has as many images as before, but in another order.
    first = min((tmp_path / "photos" / "one").iterdir())
    first.rename(first.with_name("zzz.png"))
    assert "on other data" in cli.refusal("examples", "folder-uniform-seed0")
    refused = cli.refusal(*again[:4], "other", *again[5:])
    assert "lists images of a data set with other training files (image_folder)" in refused


def test_a_file_of_none_is_refused_and_a_name_with_spaces_is_quoted(cli: Cli, study: str) -> None:
    status, _, err = cli("examples", study, "-o", "bad.json")
    assert (status, "--output needs --drop N, got --output bad.json alone." in err) == (2, True)
    out = cli.out("examples", study, "--drop", "5", "-o", "my list.json")
    assert "--set 'data.exclude=my list.json' --name NAME" in " ".join(out.split())
