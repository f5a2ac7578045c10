"""The real dashboard over a real study, and the report, in a real browser."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIRequestHandler, make_server

import optuna
import pytest
from small_studies import tiny

from hpo_mab import HpoMabWarning
from hpo_mab._attributes import EVIDENCE_KEY
from hpo_mab.advantage import Evidence
from hpo_mab.compare import ComparisonRuns, report_html
from hpo_mab.dashboard import application
from hpo_mab.dashboard._files import CURVES_FILE
from hpo_mab.dashboard._publish import publish_comparison, publish_study
from hpo_mab.search import StudyRunner
from hpo_mab.search._choice import stored_choice
from hpo_mab.storage import Storage, open_study, read_run

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page


@pytest.fixture(name="address", scope="module")
def _address(compared) -> Iterator[str]:
    assert publish_comparison(*compared) == ""
    with served(compared.storage) as address:
        yield address


def drawn(plot: Locator) -> int:
    """Lines, points and bars that a plot shows, with an extent."""
    return plot.evaluate(
        """node => [...node.querySelectorAll('path.js-line, path.point, .bars path')]
                  .filter(path => path.getBBox().width + path.getBBox().height > 0).length"""
    )


def test_figures_are_visible_in_order_and_not_empty(page: Page, address: str, compared) -> None:
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(f"{address}/dashboard/studies/1")
    names = [
        "00-incumbent-examples",
        "01-incumbent-seconds",
        "02-advantage-examples",
        "04-acceleration-examples",
        "06-fidelity",
        "07-cost-to-target",
        "09-knobs",
        "10-reward-rate",
        "11-concentration",
    ]
    for name in names:
        plot = page.locator(f'[id="user-defined-plot:{name}"]')
        plot.locator(".main-svg").first.wait_for(state="visible")
        assert (plot.locator(".gtitle").text_content() or "").strip(), name
        assert drawn(plot) > 0, name
    # All at once, as the page grows while it loads.
    boxes = page.evaluate(
        """ids => ids.map(id => {
             const box = document.getElementById('user-defined-plot:' + id).getBoundingClientRect();
             return [Math.round(box.y), Math.round(box.x), box.width, box.height];
           })""",
        names,
    )
    assert boxes == sorted(boxes)
    assert all(min(width, height) > 150 for _, _, width, height in boxes)
    legend = page.locator('[id$=":00-incumbent-examples"] .legendtext').all_text_contents()
    assert sorted(legend) == ["mab", "uniform"]
    assert errors == []


def test_our_figures_come_first_and_the_definition_is_no_attribute(
    page: Page, address: str
) -> None:
    if page.url != f"{address}/dashboard/studies/1":
        page.goto(f"{address}/dashboard/studies/1")
    page.locator('[id="user-defined-plot:11-concentration"] .main-svg').first.wait_for()
    page.get_by_role("heading", name="History").wait_for()
    page.get_by_role("heading", name="Timeline").wait_for()
    tops = page.evaluate(
        """() => {
             const top = node => node.getBoundingClientRect().y;
             const heading = text => [...document.querySelectorAll('h6')].find(
               node => node.textContent === text);
             return {ours: [...document.querySelectorAll('[id^="user-defined-plot:"]')].map(top),
                     history: top(heading('History')), timeline: top(heading('Timeline'))};
           }"""
    )
    assert len(tops["ours"]) >= 9
    assert max(tops["ours"]) < min(tops["history"], tops["timeline"])
    # Two in a row.
    assert tops["ours"][0] == tops["ours"][1]
    table = page.get_by_role("table").first
    table.get_by_text("hpo_mab:target").wait_for()
    assert table.get_by_text("hpo_mab:definition").count() == 0


def test_the_note_is_rendered_and_its_link_opens_the_comparison(
    page: Page, address: str, compared
) -> None:
    page.goto(f"{address}/dashboard/studies/1/note")
    page.get_by_role("heading", name=compared.runs[0].name).first.wait_for()
    assert page.get_by_role("cell", name="batch sampler").is_visible()
    assert page.get_by_role("heading", name="Verdict").is_visible()
    href = page.get_by_role("link", name="Report of the comparison").get_attribute("href")
    page.goto(f"{address}{href}")
    page.get_by_role("heading", name="Best configuration", exact=True).wait_for()
    plot = page.locator(".js-plotly-plot").first
    plot.locator(".main-svg").first.wait_for()
    assert drawn(plot) >= 2
    assert page.locator("details").filter(has_text=compared.runs[1].name).count() >= 1


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("?study=tiny-mab-seed9", "Unknown study 'tiny-mab-seed9'"),
        ("?study=tiny-mab-seed0&reference=b%C3%A4r", "Unknown reference 'bär'"),
        ("?study=", "Unknown study ''"),
        ("?ids=1,2", "study must be given, as in /hpo-mab/compare?study=ONE&study=OTHER."),
    ],
)
def test_a_comparison_that_cannot_be_made_is_one_line(
    page: Page, address: str, query: str, words: str
) -> None:
    answer = page.request.get(f"{address}/hpo-mab/compare{query}")
    assert answer.status == 400
    assert answer.text().startswith(words)
    assert "\n" not in answer.text()


def test_a_thousand_trials_draw_few_lines_and_offer_their_curves(
    page: Page, large: Storage, tmp_path: Path
) -> None:
    run = read_run(large, "large-mab-seed0")
    assert publish_study(large, run) == ""
    with served(large) as address:
        page.goto(f"{address}/dashboard/studies/1")
        for name in ("00-incumbent-examples", "09-knobs", "11-concentration"):
            plot = page.locator(f'[id="user-defined-plot:{name}"]')
            plot.locator(".main-svg").first.wait_for(state="visible")
            assert drawn(plot) > 0, name
        reports = page.locator('[id="graph-intermediate-values"]')
        reports.locator(".legendtext").first.wait_for(state="attached")
        # A line and a legend entry a trial is what takes a browser long.
        assert 100 <= reports.locator(".legendtext").count() <= 200
        with page.expect_download() as started:
            page.locator('[aria-label="download artifact"]').first.click()
        started.value.save_as(tmp_path / "curves.csv")
    rows = (tmp_path / "curves.csv").read_text().splitlines()
    assert started.value.suggested_filename == CURVES_FILE
    assert len(rows) == 1 + sum(len(trial.curve) for trial in run.trials)


@pytest.fixture(name="piloted", scope="module")
def _piloted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, optuna.Study]]:
    """Address of a study whose pilot has led to evidence and a choice, and the study."""
    storage = Storage(f"sqlite:///{tmp_path_factory.mktemp('piloted') / 'studies.db'}")
    spec = tiny(
        budget={"evaluations": 2, "trials": 10},
        sampler={"kind": "auto"},
        pruner={"kind": "advantage"},
        search={"initial": 4},
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "AdvantagePruner decides", HpoMabWarning)
        runner = StudyRunner(spec, storage)
        run = runner.run(score=False).run
    assert publish_study(storage, run, images=runner.objective.workload.images) == ""
    with served(storage) as address:
        yield address, open_study(storage, run.name)
    storage.close()


@contextlib.contextmanager
def served(storage: Storage) -> Iterator[str]:
    """The address of the dashboard of a storage."""
    server = make_server("127.0.0.1", 0, application(storage), handler_class=_Silent)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Silent(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


def test_evidence_and_autos_choice_are_shown(page: Page, piloted: tuple[str, optuna.Study]) -> None:
    address, study = piloted
    evidence = Evidence.from_json(study.user_attrs[EVIDENCE_KEY])
    choice = stored_choice(study)
    assert choice is not None
    page.goto(f"{address}/dashboard/studies/1/note")
    page.get_by_role("heading", name="Evidence").wait_for()
    assert page.get_by_text(f"auto chose {choice.sampler}").is_visible()
    assert page.get_by_text(choice.why).is_visible()
    # Evidence moves no rung of uniform trials.
    moves = page.get_by_text("By its evidence the pruner").is_visible()
    assert moves == (choice.sampler != "uniform")
    measured = page.locator("table", has=page.get_by_role("columnheader", name="D, points"))
    rows = measured.locator("tbody tr")
    assert rows.count() == len(evidence.budgets) == 2
    rungs = page.locator("table", has=page.get_by_role("columnheader", name="is decided at"))
    assert rungs.locator("tbody tr").count() == (2 if moves else 0)


def test_the_note_shows_suspicious_labels_as_pictures(
    page: Page, piloted: tuple[str, optuna.Study]
) -> None:
    address, _ = piloted
    page.goto(f"{address}/dashboard/studies/1/note")
    page.get_by_role("heading", name="Suspicious labels").wait_for()
    picture = page.get_by_role("img", name="the examples of the table, in its order")
    page.wait_for_function("[...document.images].some(one => one.naturalWidth === 8 * 104 - 8)")
    assert picture.is_visible()
    rows = page.locator("table", has=page.get_by_role("columnheader", name="visits"))
    assert rows.locator("tbody tr").count() == 8


def test_the_report_draws_every_figure_without_a_network(
    page: Page, compared, tmp_path: Path
) -> None:
    path = tmp_path / "report.html"
    found = ComparisonRuns(reference="uniform", runs=compared.runs)
    path.write_text(report_html(found, compared.summary, title="report"))
    page.context.set_offline(True)
    try:
        page.goto(path.as_uri())
        page.evaluate("document.querySelectorAll('details').forEach(part => (part.open = true))")
        plots = page.locator(".js-plotly-plot")
        plots.last.locator(".main-svg").first.wait_for()
        assert plots.count() >= 10
        for position in range(plots.count()):
            plot = plots.nth(position)
            title = plot.locator(".gtitle").first
            assert drawn(plot) > 0, title.text_content()
        assert page.evaluate("document.documentElement.scrollWidth") <= 1400
        page.set_viewport_size({"width": 390, "height": 800})
        page.reload()
        page.locator(".js-plotly-plot .main-svg").first.wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.set_viewport_size({"width": 1400, "height": 1000})
        # No label is cut off at the left edge of a figure.
        boxes = "[...document.querySelectorAll('.ytick text')].map(t => t.getBoundingClientRect())"
        lefts = page.evaluate(f"{boxes}.filter(box => box.width).map(box => box.x)")
        assert min(lefts) >= 0
    finally:
        page.context.set_offline(False)
