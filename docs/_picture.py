"""Draw the README's picture from its record: ``python docs/_picture.py``; needs chromium."""

from __future__ import annotations

import json
import shutil
import urllib.parse
from pathlib import Path

from playwright.sync_api import sync_playwright
from plotly.offline import get_plotlyjs

from hpo_mab.compare import figures, read_record

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "studies/fashion_mnist/arms.json"
PICTURE = ROOT / "docs/images/fashion_mnist.svg"
ARMS = ("mab", "uniform")


def main() -> None:
    """Write the picture."""
    runs = [run for run in read_record(RECORD).runs if run.arm in ARMS]
    drawn = figures.anytime_incumbent(runs)
    drawn.update_layout(
        title="Fashion-MNIST: best configuration found so far, median and range of 5 seeds",
        width=860,
        height=380,
    )
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(_svg(drawn.to_json()), encoding="utf-8")


def _svg(figure: str) -> str:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--headless", "--no-sandbox"]
        )
        page = browser.new_page()
        page.add_script_tag(content=get_plotlyjs())
        url = page.evaluate("f => Plotly.toImage(f, {format: 'svg'})", json.loads(figure))
        browser.close()
    return urllib.parse.unquote(url.split(",", 1)[1])


if __name__ == "__main__":
    main()
