"""The HTML report: self-contained, complete, escaped."""

from __future__ import annotations

import dataclasses
import html.parser

import pytest
from made_up import run, trial

from hpo_mab.compare import (
    ComparisonRuns,
    report_html,
    summarise,
    verdict,
)
from hpo_mab.compare._text import parameter_rows
from hpo_mab.search import make_spec


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


def _comparison(runs):
    return ComparisonRuns(reference="uniform", runs=tuple(runs))


@pytest.fixture(name="text", scope="module")
def _text(runs, summary):
    return report_html(_comparison(runs), summary, title="Bandit <b>or</b> uniform & co")


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


def test_what_a_reader_looks_for_comes_first(page, runs, summary):
    words = " ".join("".join(page.text).split())
    best = max((run for run in runs), key=lambda run: run.best.value)
    parts = [
        "Best configuration",
        f"{best.best.value:.2%} validation accuracy",
        "hyperparameter",
        "network",
        "made_up",
        "budget per trial",
        *verdict(summary).splitlines(),
        "Best configuration of each arm",
        "Figures",
        "More figures",
        "More tables",
        "Every trial",
        "Versions and hardware",
    ]
    places = [words.index(part) for part in parts]
    assert places == sorted(places)


def test_the_search_space_is_that_of_the_definition():
    spec = make_spec(
        {
            "name": "all",
            "budget": {"epochs": 0.5, "trials": 5},
            "model": {"name": "mlp", "width": {"low": 16, "high": 64}},
            "optimizer": {"name": "sgd", "lr": {"low": 0.01, "high": 1.0, "log": True}},
            "training": {"batch_size": {"choices": [32, 64]}, "average": {"low": 0.1, "high": 0.4}},
            "sampler": {"kind": "mab", "prior": [{"low": 0.5, "high": 5.0}, 1.0]},
        }
    )
    made = dataclasses.replace(run([], arm="mab"), spec=spec.model_dump(mode="json"))
    found = {name: searched for name, best, searched in parameter_rows(made) if best == "-"}
    names = {"model.width", "lr", "batch_size", "average", "sampler.prior_alpha"}
    assert found.keys() == names
    assert found["lr"] == "0.01 to 1 (log)"
    assert found["batch_size"] == "one of 32, 64"
    assert found["sampler.prior_alpha"] == "0.5 to 5"


def test_the_winner_has_its_values_and_their_ranges():
    spec = {"optimizer": {"name": "sgd", "lr": {"low": 0.01, "high": 1.0, "log": True}}}
    best = trial([0.7], params={"lr": 0.25, "x": 1})
    best = dataclasses.replace(best, attrs={"hpo_mab:sampler": "psgd"})
    runs = [
        dataclasses.replace(run([trial([0.5], params={"lr": 0.1})], arm="uniform"), spec=spec),
        dataclasses.replace(run([best], arm="mab"), spec=spec),
    ]
    words = "".join(Page(report_html(_comparison(runs), summarise(runs))).text)
    assert "70.00% validation accuracy: mab, seed 0, trial 0, batch sampler psgd." in words
    assert parameter_rows(runs[1]) == [("lr", "0.25", "0.01 to 1 (log)"), ("x", "1", "-")]
    runs = [dataclasses.replace(run([], arm=arm), spec=spec) for arm in ("uniform", "mab")]
    assert "No trial is complete yet." in report_html(_comparison(runs), summarise(runs))


def test_a_report_without_figures_says_so():
    runs = [run([], arm=arm) for arm in ("uniform", "mab")]
    words = "".join(Page(report_html(_comparison(runs), summarise(runs))).text)
    assert "Figures\nNone yet." in words
    assert "More figures" not in words
    assert "Accuracies along the curves" not in words


def test_title_is_escaped(text, page):
    assert "<b>or</b>" not in text
    assert "Bandit <b>or</b> uniform & co" in "".join(page.text)


def test_names_and_values_of_a_database_are_escaped(runs):
    name = "</script><img src=x>"
    trials = [dataclasses.replace(one, params={"<b>": "<b>"}) for one in runs[0].trials]
    changed = (dataclasses.replace(runs[0], name=name, arm=name, trials=tuple(trials)), *runs[1:])
    # JSON may hold a text in place of a number.
    shown = [dataclasses.replace(one, seed="<b>") for one in changed]
    page = Page(report_html(_comparison(shown), summarise(changed)))
    assert not {"img", "b"} & {tag for tag, _ in page.tags}
    words = "".join(page.text)
    assert name in words
    assert "<b>=<b>" in words


def test_every_trial_is_on_record(page, runs):
    words = "".join(page.text)
    assert f"{sum(len(run.trials) for run in runs)} trials of {len(runs)} studies" in words
    for one in runs:
        assert one.name in words
        assert f"{one.best.value:.4f}" in words
    assert "sampler.memory=50" in words


def test_examples_of_a_resumed_trial_are_those_since_it_was_resumed():
    resumed = dataclasses.replace(trial([0.1, 0.5], number=1), attrs={"hpo_mab:resumed_at": 1})
    runs = [run([trial([0.1], state="fail", examples=4_000), resumed], arm="uniform")]
    assert runs[0].examples == 8_000
    assert Page(report_html(_comparison(runs), summarise(runs))).text.count("4,000") == 2


def test_the_weights_that_were_evaluated_are_named(page):
    assert "Accuracies along the curves are of trained weights." in "".join(page.text)


def test_given_record_is_shown(runs, summary):
    known, unknown = (
        [dataclasses.replace(one, environment=its) for one in runs[:2]]
        for its in ({"gpu": "a <fast> one"}, {})
    )
    text = report_html(_comparison(known), summary)
    assert "a &lt;fast&gt; one" in text
    # Studies whose environment is not known do not get this machine's.
    assert "<pre>{}</pre>" in report_html(_comparison(unknown), summary)
