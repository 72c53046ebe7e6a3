"""The report's page in a real browser, cut off from the network."""

from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import sync_playwright

from browsers import NEEDS_CHROMIUM, launch_chromium
from fmnist_tracking import plots
from fmnist_tracking.reports.page import Picture, render_html
from fmnist_tracking.results import Evaluation
from records import training
from reports import page

pytestmark = [pytest.mark.browser, NEEDS_CHROMIUM]


@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_shows_all_and_asks_for_nothing(
    tmp_path: Path, evaluation: Evaluation, width: int
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
    file.write_text(render_html(page(evaluation, pictures=pictures)))
    requests: list[str] = []
    complaints: list[str] = []
    with sync_playwright() as playwright:
        browser = launch_chromium(playwright)
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
