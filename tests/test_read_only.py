"""A store that this user may read and not write: another user's, on a shared disk."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from PIL import Image

from conftest import Run
from fmnist_tracking.data import Dataset
from fmnist_tracking.tracking import schema
from servers import free_port

# Commands one after the other in one process, which loads the libraries once.
SEVERAL = """
import contextlib, io, json, sys
from fmnist_tracking.cli import main

ended = []
for words in json.load(sys.stdin):
    sys.argv = ["fmnist-track", *words]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            ended.append([int(end.code or 0), out, err])
print(json.dumps([[status, out.getvalue(), err.getvalue()] for status, out, err in ended]))
"""
# Root, but held to what the modes of files say, as every other user is.
AS_ANYBODY = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search")
Done = subprocess.CompletedProcess[str]
Commands = Callable[..., list[Done]]
SMALL = ("--limit", "600", "--epochs", "1", "--filters", "4", "--strides", "2",
         "--kernel-sizes", "3", "--hidden-units", "8")  # fmt: skip


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give its powers away"),
]


@pytest.fixture
def shared(called: Run, tmp_path: Path) -> Path:
    """A folder with a store of one trained trial, none of which may be written."""
    searched = called("search", *SMALL)
    assert searched.returncode == 0, searched.stderr
    runs = tmp_path / "mlruns"
    for entry in (tmp_path / "mlflow.db", runs, *runs.rglob("*")):
        entry.chmod(0o555 if entry.is_dir() else 0o444)
    (tmp_path / "home").mkdir()
    tmp_path.chmod(0o555)
    return tmp_path


@pytest.fixture
def home(shared: Path) -> Path:
    """The folder that its reader works in."""
    return shared / "home"


@pytest.fixture
def environment(shared: Path, home: Path, cache: Path) -> dict[str, str]:
    return {
        **os.environ,
        "HOME": str(home),
        "MLFLOW_TRACKING_URI": f"sqlite:///{shared}/mlflow.db",
        "FMNIST_CACHE_DIR": str(cache),
        "FMNIST_STATE_DIR": str(home / "state"),
    }


@pytest.fixture
def run(home: Path, environment: dict[str, str]) -> Commands:
    """Runs commands of `fmnist-track` as one who may write into `home` alone."""

    def run(*commands: tuple[str, ...]) -> list[Done]:
        done = subprocess.run(
            [*AS_ANYBODY, sys.executable, "-c", SEVERAL],
            cwd=home,
            env=environment,
            input=json.dumps(commands),
            capture_output=True,
            text=True,
            timeout=180,
        )
        assert done.returncode == 0, done.stderr
        return [
            subprocess.CompletedProcess(words, *ended)
            for words, ended in zip(commands, json.loads(done.stdout), strict=True)
        ]

    return run


def test_a_store_that_may_only_be_read(
    run: Commands, shared: Path, home: Path, environment: dict[str, str], dataset: Dataset
) -> None:
    Image.fromarray(dataset.test_images[0]).save(home / "boot.png")
    before = (shared / "mlflow.db").read_bytes()
    version, runs, best, predicted = run(
        ("--version",), ("runs", "--json"), ("best",), ("predict", "--run-id", "best", "boot.png")
    )
    assert (version.returncode, best.returncode, predicted.returncode) == (0, 0, 0)
    assert json.loads(runs.stdout)[0]["finished"] == 1
    for done in run(
        ("report", "latest", "--json"),
        ("activations", "latest", "--json"),
        ("predictions", "best", "--json"),
    ):
        assert done.returncode == 0, done.stderr
        written = json.loads(done.stdout)
        assert not written["kept"]
        assert all((home / file).is_file() for file in written["files"])
        assert "cannot be written by this user" in done.stderr
    for done in run(("promote", "best"), ("search", *SMALL), ("runs", "--repair")):
        assert "Traceback" not in done.stderr
        assert done.returncode == 1
        assert "cannot be written by this user" in done.stderr
    port = free_port()
    with subprocess.Popen(
        [*AS_ANYBODY, sys.executable, "-m", "fmnist_tracking", "ui", "--port", str(port)],
        cwd=home,
        env=environment,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as page:
        try:
            asked = f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/get-by-name"
            end = time.monotonic() + 90
            while True:
                try:
                    with urllib.request.urlopen(f"{asked}?experiment_name=fashion-mnist") as answer:
                        assert json.load(answer)["experiment"]["name"] == "fashion-mnist"
                    break
                except OSError:
                    assert page.poll() is None
                    assert time.monotonic() < end
                    time.sleep(0.5)
        finally:
            os.killpg(page.pid, signal.SIGKILL)
    assert (shared / "mlflow.db").read_bytes() == before


def test_files_that_may_not_be_written_do_not_hide_that_test_images_were_opened(
    run: Commands, shared: Path
) -> None:
    (shared / "mlflow.db").chmod(0o644)
    shared.chmod(0o755)
    before = tags(shared)
    (looked,) = run(("predictions", "latest", "--json"))
    assert not json.loads(looked.stdout)["kept"]
    assert tags(shared) == before
    (reported,) = run(("report", "latest", "--json"))
    assert reported.returncode == 0, reported.stderr
    content = json.loads(reported.stdout)
    assert not content["kept"]
    opened = {run_id for run_id, name in tags(shared) - before if name == schema.TEST_OPENED}
    assert opened == {content["run_id"], content["trial_run_id"]}
    (told,) = (line for line in reported.stderr.splitlines() if "not kept" in line)
    assert f"Permission denied: {shared}/mlruns/" in told


def test_a_report_that_cannot_be_written_has_opened_the_test_images(
    small_disk: Path, run: Commands, shared: Path
) -> None:
    (shared / "mlflow.db").chmod(0o644)
    shared.chmod(0o755)
    (small_disk / "filler").write_bytes(b"x" * 1_000_000)
    before = tags(shared)
    (reported,) = run(("report", "latest", "--output-dir", str(small_disk)))
    assert reported.returncode == 1
    assert "No space left on device" in reported.stderr
    assert len({r for r, name in tags(shared) - before if name == schema.TEST_OPENED}) == 2


def tags(folder: Path) -> set[tuple[str, str]]:
    """The tags of a store's runs, each with its run's id."""
    with closing(sqlite3.connect(folder / "mlflow.db")) as rows:
        return set(rows.execute("SELECT run_uuid, key FROM tags"))
