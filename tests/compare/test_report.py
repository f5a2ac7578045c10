"""The HTML report: self-contained, complete, escaped."""

from __future__ import annotations

import html.parser
import json

import pytest

from hpo_mab.compare import environment, report_html, verdict


class Page(html.parser.HTMLParser):
    """Tags with their attributes, and the text outside scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self._inside = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside.append(tag)

    def handle_endtag(self, tag):
        while self._inside and self._inside.pop() != tag:
            pass

    def handle_data(self, data):
        if not {"script", "style"} & set(self._inside):
            self.text.append(data)


@pytest.fixture(name="text", scope="module")
def _text(runs, summary):
    return report_html(runs, summary, title="Bandit <b>or</b> uniform & co")


@pytest.fixture(name="page", scope="module")
def _page(text):
    return Page(text)


def test_nothing_is_loaded_from_elsewhere(text, page):
    for tag, attrs in page.tags:
        assert "src" not in attrs, tag
        assert tag not in {"link", "iframe", "img", "object", "embed", "base"}
        assert "href" not in attrs
    assert "@import" not in text.split("</style>")[0]
    assert "url(" not in text.split("</style>")[0]


def test_plotly_is_included_once(text):
    assert text.count("* plotly.js v") == 1
    assert text.count("Plotly.newPlot(") >= 14


def test_verdict_comes_first(page, summary):
    words = " ".join("".join(page.text).split())
    position = max(words.index(line) for line in verdict(summary).splitlines())
    assert position < words.index("Results") < words.index("Figures") < words.index("Record")


def test_title_is_escaped(text, page):
    assert "<b>or</b>" not in text
    assert "Bandit <b>or</b> uniform & co" in "".join(page.text)


def test_every_trial_is_on_record(page, runs):
    words = "".join(page.text)
    assert f"{sum(len(run.trials) for run in runs)} trials of {len(runs)} studies" in words
    for run in runs:
        assert run.name in words
        assert f"{run.best.value:.4f}" in words
    assert "sampler.memory=50" in words


def test_the_weights_that_were_evaluated_are_named(page):
    assert "Accuracies along the curves are of trained weights." in "".join(page.text)


def test_given_record_is_shown(runs, summary):
    text = report_html(runs[:2], summary, title="t", record={"gpu": "a <fast> one"})
    assert "a &lt;fast&gt; one" in text


def test_environment_is_json_without_names_or_paths(monkeypatch):
    monkeypatch.setattr("platform.node", lambda: "secret-host")
    found = environment()
    text = json.dumps(found)
    assert found["packages"]["numpy"]
    assert found["cpu_cores"] >= 1
    assert "secret-host" not in text
    assert "/" not in "".join(str(v) for k, v in found.items() if k != "gpus" and k != "cpu")
