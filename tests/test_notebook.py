"""The package in a notebook: real kernels, run by nbclient."""

import asyncio
import contextlib
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from environments import own_environment

DOCUMENT = Path(__file__).parents[1] / "docs" / "notebook.ipynb"
SECONDS = 300
SEARCH = """
import fmnist_tracking as ft
search = ft.search(
    {"filters": [8], "seed": [0, 1]}, epochs=40, limit=3000, strides=1, hidden_units=8, workers=2
)
"""
# Workers are forked from a child of the kernel.
LEFT = """
import psutil
[worker.pid for child in psutil.Process().children() for worker in child.children()]
"""
RUNS = """
print([(run.role, run.status) for run in ft.list_runs()])
print([trial.status for trial in ft.load_search().trials])
"""
FAILS = """
ft.search({"learning_rate": [1e30]}, epochs=2, limit=600, filters=4, strides=2)
"""
pytestmark = pytest.mark.slow


def notebook(*cells: str) -> Any:
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])


def client_of(content: Any, folder: Path, **settings: Any) -> NotebookClient:
    resources = {"metadata": {"path": str(folder)}}
    return NotebookClient(content, timeout=SECONDS, resources=resources, **settings)


def run(content: Any, folder: Path, cache: Path) -> None:
    environment = own_environment(FMNIST_CACHE_DIR=str(cache))
    client_of(content, folder).execute(env=environment)


def shown(cell: Any) -> str:
    """Everything that is below a cell, as text."""
    return "".join(
        output.get("text", "") or str(output.get("data", {}).get("text/html", ""))
        for output in cell.outputs
    )


def test_the_notebook_of_the_documents(tmp_path: Path, cache: Path) -> None:
    content = nbformat.read(DOCUMENT, as_version=4)
    nbformat.validate(content)
    assert all(
        cell.outputs for cell in content.cells[3:] if cell.cell_type == "code" and not tags(cell)
    )
    (size,) = (cell for cell in content.cells if "parameters" in tags(cell))
    size.source = 'SIZE = {"limit": 600, "epochs": 1}'
    run(content, tmp_path, cache)
    cells = {cell.source.splitlines()[0]: cell for cell in content.cells}
    table = cells["search = ft.search(**SIZE)"]
    kinds = [output.output_type for output in table.outputs]
    assert kinds.count("display_data") == 1  # one table, whatever happened
    assert set(kinds) == {"stream", "display_data"}
    drawn = table.outputs[kinds.index("display_data")]
    assert "12 of 12 points ended" in drawn["data"]["text/html"]
    assert "data:image/png;base64," in shown(cells["search"])
    assert "image/png" in cells["search.plot_grid()"].outputs[0]["data"]
    assert "<iframe srcdoc=" in shown(cells["report"])


def tags(cell: Any) -> list[str]:
    found: list[str] = cell.metadata.get("tags", [])
    return found


def test_an_interrupted_kernel_resumes_and_a_failure_is_told(tmp_path: Path, cache: Path) -> None:
    content = notebook(SEARCH, LEFT, RUNS, SEARCH, RUNS, FAILS)
    client = client_of(content, tmp_path, allow_errors=True)
    interrupted = threading.Event()

    def interrupt_in_the_middle() -> None:
        while epochs_logged(tmp_path / "mlflow.db") < 6:
            time.sleep(0.2)
        assert client.km is not None
        interrupting: Any = client.km.interrupt_kernel()
        asyncio.run(interrupting)
        interrupted.set()

    watcher = threading.Thread(target=interrupt_in_the_middle, daemon=True)
    watcher.start()
    client.execute(env=own_environment(FMNIST_CACHE_DIR=str(cache)))
    assert interrupted.is_set()
    stopped, left, before, again, after, failed = content.cells
    assert [output.ename for output in stopped.outputs if output.output_type == "error"] == [
        "KeyboardInterrupt"
    ]
    assert "Interrupted. Run the cell again," in shown(stopped)
    assert left.outputs[0]["data"]["text/plain"] == "[]"  # no worker is left
    assert "('search', 'KILLED')" in shown(before)
    assert "RUNNING" not in shown(before)
    assert "error" not in [output.output_type for output in again.outputs]
    assert "goes on after epoch" in shown(again)
    assert shown(after) == "[('search', 'FINISHED')]\n['FINISHED', 'FINISHED']\n"
    (error,) = (output for output in failed.outputs if output.output_type == "error")
    assert error.ename == "TrialsFailed"
    assert "diverged" in error.evalue


def epochs_logged(database: Path) -> int:
    with (
        contextlib.suppress(sqlite3.Error),
        contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as rows,
    ):
        found = rows.execute("SELECT count(*) FROM metrics WHERE key = 'val_loss'").fetchone()
        return int(found[0])
    return 0
