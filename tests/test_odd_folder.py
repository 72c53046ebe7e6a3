"""The whole way in a folder with an odd name, and again after the folder was moved."""

import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from conftest import Run
from fmnist_tracking.data import Dataset
from servers import model_server, post

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
SETTINGS = {"limit": "600", "epochs": "1", "filters": "4,6", "strides": "2", "hidden_units": "8"}
GRID = [word for name, value in SETTINGS.items() for word in (f"--{name.replace('_', '-')}", value)]


def caller(folder: Path, cache: Path) -> Run:
    """Runs a module in a folder as a person does there."""

    def call(module: str, *words: str) -> "subprocess.CompletedProcess[str]":
        environ = {**os.environ, "FMNIST_CACHE_DIR": str(cache)}
        if module == "mlflow":  # the command of an entry point is looked for there
            environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environ['PATH']}"
        return subprocess.run(
            [sys.executable, "-m", module, *words],
            cwd=folder,
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )

    return call


def use(folder: Path, call: Run) -> None:
    """Report, promote, predict and serve, from the store of a folder."""
    reported = call("report", "latest", "--json")
    assert reported.returncode == 0, reported.stderr
    assert (folder / json.loads(reported.stdout)["files"][0]).is_file()
    promoted = call("promote", "latest")
    assert promoted.returncode == 0, promoted.stderr
    predicted = call("predict", "--run-id", "champion", "boot.png", "--json")
    assert predicted.returncode == 0, predicted.stderr
    assert len(json.loads(predicted.stdout)["pictures"]) == 1
    (hint,) = (line for line in promoted.stderr.splitlines() if line.startswith("Next: "))
    with model_server(hint, folder) as address:
        served = post(address, {"inputs": [[[[0]] * 28] * 28]})
        assert len(served["predictions"]) == 1


def assert_nothing_beside(folder: Path) -> None:
    """Allow the empty folder, by the encoded name, that MLflow's own commands make."""
    left = set(folder.parent.iterdir()) - {folder, folder.parent / "state"}
    assert [path for place in left for path in place.rglob("*")] == []


def test_the_whole_way_in_a_folder_with_an_odd_name(
    called: Run, tmp_path: Path, cache: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "é my #1 project"
    folder.mkdir()
    for name in ("fmnist_tracking", "MLproject", "conda.yaml"):
        source = ROOT / name
        if source.is_dir():  # without what other processes compile meanwhile
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    Image.fromarray(dataset.test_images[0]).save(folder / "boot.png")
    call = caller(folder, cache)
    searched = call("fmnist_tracking", "search", *GRID, "--kernel-sizes", "3", "--json")
    assert searched.returncode == 0, searched.stderr
    assert json.loads(searched.stdout)["finished"] == 2
    use(folder, partial(call, "fmnist_tracking"))
    assert_nothing_beside(folder)

    moved = tmp_path / "moved & renamed #2"
    folder.rename(moved)
    monkeypatch.chdir(moved)
    for words in (("report", "latest"), ("promote", "latest"), ("search", *GRID)):
        done = called(*words)
        assert done.returncode == 1
        assert "`fmnist-track doctor --relocate` puts that right" in done.stderr
    assert called("doctor", "--relocate").returncode == 0
    assert not folder.exists()
    use(moved, called)
    again = called("search", *GRID, "--kernel-sizes", "3", "--json")
    assert json.loads(again.stdout)["reused"] == 2
    call = caller(moved, cache)

    parameters = [word for name, value in SETTINGS.items() for word in ("-P", f"{name}={value}")]
    ran = call("mlflow", "run", ".", "-e", "search", "--env-manager", "local", *parameters)
    assert ran.returncode == 0, ran.stderr
    for experiment in ("fashion-mnist", "Default"):
        words = ("fmnist_tracking", "runs", "--experiment", experiment, "--json")
        listed = json.loads(call(*words).stdout)
        assert {run["status"] for run in listed} == {"FINISHED"}
    assert_nothing_beside(moved)
