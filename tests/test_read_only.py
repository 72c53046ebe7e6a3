"""A store that this user may read and not write: another user's, on a shared disk."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from PIL import Image

from conftest import Run
from fmnist_tracking.data import Dataset
from test_end_to_end import free_port

# Root, but held to what the modes of files say, as every other user is.
AS_ANYBODY = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search")
SMALL = ("--limit", "600", "--epochs", "1", "--filters", "4", "--strides", "2",
         "--kernel-sizes", "3", "--hidden-units", "8")  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give its powers away")
def test_a_store_that_may_only_be_read(
    command: Run, tmp_path: Path, cache: Path, dataset: Dataset
) -> None:
    searched = command("search", *SMALL)
    assert searched.returncode == 0, searched.stderr
    home = tmp_path / "home"
    home.mkdir()
    Image.fromarray(dataset.test_images[0]).save(home / "boot.png")
    shared = tmp_path / "mlruns"
    for entry in (tmp_path, tmp_path / "mlflow.db", shared, *shared.rglob("*")):
        entry.chmod(0o555 if entry.is_dir() else 0o444)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    before = (tmp_path / "mlflow.db").read_bytes()
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "MLFLOW_TRACKING_URI": uri,
        "FMNIST_CACHE_DIR": str(cache),
        "FMNIST_STATE_DIR": str(home / "state"),
    }

    def run(*words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [*AS_ANYBODY, sys.executable, "-m", "fmnist_tracking", *words],
            cwd=home,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=180,
        )

    assert run("--version").returncode == 0
    assert json.loads(run("runs", "--json").stdout)[0]["finished"] == 1
    assert run("best").returncode == 0
    for words in (("report", "latest"), ("activations", "latest"), ("predictions", "best")):
        done = run(*words, "--json")
        assert done.returncode == 0, done.stderr
        written = json.loads(done.stdout)
        assert not written["kept"]
        assert all((home / file).is_file() for file in written["files"])
        assert "cannot be written by this user" in done.stderr
    assert run("predict", "--run-id", "best", "boot.png").returncode == 0
    refused: tuple[tuple[str, ...], ...] = (
        ("promote", "best"),
        ("search", *SMALL),
        ("runs", "--repair"),
    )
    for refusal in refused:
        done = run(*refusal)
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
    assert (tmp_path / "mlflow.db").read_bytes() == before
