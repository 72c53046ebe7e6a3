"""The report's page in a real browser, cut off from the network."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import sync_playwright

from fmnist_tracking import plots
from fmnist_tracking.report import Picture, render_html
from test_report import evaluation, page
from test_results import training

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)

NEEDS_CHROMIUM = pytest.mark.skipif(
    CHROMIUM is None and not os.environ.get("CI"), reason="no Chromium on this machine"
)

pytestmark = [pytest.mark.browser, NEEDS_CHROMIUM]
__all__ = ["evaluation"]  # the fixture


@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_shows_all_and_asks_for_nothing(
    tmp_path: Path, evaluation: object, width: int
) -> None:
    maps = np.random.default_rng(0).random((12, 26, 26), dtype=np.float32)
    pictures = [
        Picture(file="c.png", heading="Curves", caption="", png=plots.png(figure))
        for figure in (
            plots.learning_curves(training(0.5, 0.6), "curves"),
            plots.activations(maps, "maps"),
        )
    ]
    file = tmp_path / "index.html"
    file.write_text(render_html(page(evaluation, pictures=pictures)))  # type: ignore[arg-type]
    requests: list[str] = []
    complaints: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-background-networking"]
        )
        view = browser.new_page(viewport={"width": width, "height": 900})
        view.on("request", lambda request: requests.append(request.url))
        view.on("console", lambda message: complaints.append(message.text))
        view.goto(file.as_uri())
        assert view.title() == "A title"
        sizes = view.eval_on_selector_all("img", "all => all.map(i => i.naturalWidth)")
        assert len(sizes) == 2
        assert min(sizes) > 300
        assert view.locator("tbody tr").count() == 1 + 10 + 3
        # Wide tables scroll in their own frame; the page itself never does.
        assert view.evaluate("document.documentElement.scrollWidth") <= width
        browser.close()
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
    assert complaints == []
