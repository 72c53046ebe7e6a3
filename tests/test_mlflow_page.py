"""MLflow's own page, in a real browser, on what a search has recorded."""

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from browsers import NEEDS_CHROMIUM, launch_chromium
from conftest import Run
from servers import free_port

pytestmark = [pytest.mark.browser, pytest.mark.slow, NEEDS_CHROMIUM]

MILLISECONDS = 60_000
TRIALS = ("f4 k3 s2", "f8 k3 s2")


@dataclass(frozen=True, kw_only=True)
class Served:
    """The page as `fmnist-track ui` announced it: its table of runs, and the latest search."""

    table: str
    search: str


@pytest.fixture
def served(called: Run, tmp_path: Path) -> Iterator[Served]:
    grid = ("--filters", "4,8", "--strides", "2", "--kernel-sizes", "3", "--hidden-units", "8")
    done = called("search", *grid, "--limit", "600", "--epochs", "3")
    assert done.returncode == 0, done.stderr
    port = free_port()
    log = tmp_path / "ui.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "fmnist_tracking", "ui", "--port", str(port)],
            cwd=tmp_path,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        while "startup complete" not in log.read_text():
            assert process.poll() is None, log.read_text()
            time.sleep(0.2)
        addresses = re.findall(
            r"^(?:All searches|The latest search): (\S+)$", log.read_text(), re.M
        )
        yield Served(table=addresses[0], search=addresses[1])
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
def page() -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = launch_chromium(playwright)
        page = browser.new_page(viewport={"width": 1700, "height": 1000})
        page.set_default_timeout(MILLISECONDS)
        expect.set_options(timeout=MILLISECONDS)
        yield page
        browser.close()


def test_a_person_finds_trials_curves_and_model(served: Served, page: Page) -> None:
    page.goto(served.table)
    page.get_by_label("Close", exact=True).click()  # the assistant, which hides half of the table
    row = page.locator(".ag-row", has_text="search of 2 points").first
    for column in ("best_val_accuracy", "filters", "kernel_size"):
        expect(page.locator(".ag-header-cell", has_text=column).first).to_be_attached()
    row.locator("button").first.click()
    names = page.locator(".ag-row a", has_text=re.compile(r"^f\d k\d s\d"))
    expect(names).to_have_count(len(TRIALS))
    shown = [name.inner_text() for name in names.all()]
    assert sorted(shown) == sorted(TRIALS)
    # The parent comes before its children, though it was created first and the newest lead.
    tops = [cell.bounding_box() for cell in (row, *names.all())]
    assert tops == sorted(tops, key=lambda box: box["y"] if box else 0)

    page.goto(served.search)
    expect(page.get_by_role("heading", name="search of 2 points")).to_be_visible()
    expect(page.get_by_text("validation accuracy", exact=False).first).to_be_visible()
    # The description's link opens a tab of its own.
    best = TRIALS[0]
    link = page.get_by_role("link", name=best, exact=True).first
    page.goto(served.search.partition("#")[0] + str(link.get_attribute("href")))
    expect(page.get_by_role("heading", name=best)).to_be_visible()
    expect(page.get_by_text("fashion-mnist-training")).to_be_visible()

    page.get_by_role("tab", name="Model metrics").click()
    for metric in ("accuracy", "epoch_seconds"):
        expect(page.get_by_text(metric, exact=True).first).to_be_visible()
    expect(page.locator(".js-plotly-plot").first).to_be_visible()
    page.get_by_role("tab", name="System metrics").click()
    expect(page.get_by_text("process_memory_megabytes", exact=True)).to_be_visible()

    page.get_by_role("tab", name="Overview").click()
    page.locator("a[href*='/models/m-']:not([target])").first.click()
    expect(page.get_by_text("About this logged model")).to_be_visible()
    expect(page.get_by_text("Ready", exact=True)).to_be_visible()
    expect(page.get_by_text("best_val_accuracy", exact=True)).to_be_visible()
    expect(page.get_by_text("fashion-mnist-validation").first).to_be_visible()
    expect(page.get_by_text("mlflow.pyfunc.load_model")).to_be_visible()
