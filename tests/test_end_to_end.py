"""The whole way from the command line: real images, real processes, a real store."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from mlflow.entities import Run as MlflowRun

from conftest import Run
from fmnist_tracking import machine, tracking
from fmnist_tracking.config import FIELDS
from fmnist_tracking.data import Dataset, split_dataset, test_set
from fmnist_tracking.split_config import SplitConfig
from fmnist_tracking.tracking import Store, open_store
from processes import processes_of, wait_for
from reports import REPORT_FILES
from servers import free_port, serving

pytestmark = pytest.mark.slow

# Of a unit of the hidden layer behind 4 values: weights, gradients, Adam's two moments; and what
# the unit gives for a batch.
BYTES_A_UNIT = (4 + 1 + 10) * 4 * 4 + 32 * 4
LIMIT = 8 * 2**30
QUICK = ("--limit", "600", "--epochs", "2")
LONGER = ("--limit", "600", "--epochs", "30")


def runs_of(tmp_path: Path, experiment: str = "fashion-mnist") -> list[MlflowRun]:
    with open_store(f"sqlite:///{tmp_path}/mlflow.db") as store:
        found = store.client.get_experiment_by_name(experiment)
        assert found is not None
        return list(store.client.search_runs([found.experiment_id]))


def children(runs: list[MlflowRun], parent: str) -> list[MlflowRun]:
    return [r for r in runs if r.data.tags.get("mlflow.parentRunId") == parent]


def test_search_then_report(command: Run, called: Run, tmp_path: Path, dataset: Dataset) -> None:
    searched = command("search", *QUICK, "--json", timeout=500)
    assert searched.returncode == 0, searched.stderr
    result = json.loads(searched.stdout)
    assert (result["grid_points"], result["finished"], result["failed"]) == (12, 12, 0)
    assert "[12/12] f48 k4 s2  epoch 2/2" in searched.stderr

    runs = runs_of(tmp_path)
    trials = children(runs, result["run_id"])
    assert len(runs) == 13
    assert {t.info.run_id for t in trials} == {t["run_id"] for t in result["trials"]}
    assert {t.info.status for t in runs} == {"FINISHED"}
    points = {
        tuple(t.data.params[k] for k in ("filters", "strides", "kernel_size")) for t in trials
    }
    assert len(points) == 12
    split = split_dataset(dataset, SplitConfig(limit=600))
    with open_store(f"sqlite:///{tmp_path}/mlflow.db") as store:
        logged = store.client.search_logged_models([runs[0].info.experiment_id])
        assert {m.source_run_id for m in logged} == {t.info.run_id for t in trials}
        assert len(logged) == len(trials)
        for trial in trials:
            assert set(FIELDS) <= set(trial.data.params)
            for metric in ("loss", "accuracy", "val_loss", "val_accuracy", "epoch_seconds"):
                history = store.client.get_metric_history(trial.info.run_id, metric)
                assert [m.step for m in history] == [1, 2]
            model = mlflow.pyfunc.load_model(f"runs:/{trial.info.run_id}/model")
            right = model.predict(split.validation_images).argmax(axis=1)
            accuracy = np.mean(right == split.validation_labels)
            assert accuracy == trial.data.metrics["best_val_accuracy"]
        best = max(t.data.metrics["best_val_accuracy"] for t in trials)
        assert result["best"]["val_accuracy"] == best
        assert not any("test_accuracy" in t.data.metrics for t in runs)

    shown = json.loads(called("best", "--json").stdout)
    assert shown["run_id"] == result["best"]["run_id"]
    assert json.loads(called("runs", "--json").stdout)[0]["finished"] == 12
    listed = json.loads(called("runs", "--run-id", "latest", "--json").stdout)
    assert listed == result

    for reference, extra in ((result["run_id"], {"grid.png", "leaderboard.csv"}), ("best", set())):
        done = called("report", "--run-id", reference, "--json")
        assert done.returncode == 0, done.stderr
        written = json.loads(done.stdout)
        files = {Path(path).name for path in written["files"]}
        assert files == REPORT_FILES | extra
        assert all((tmp_path / path).stat().st_size > 100 for path in written["files"])
        assert written["trial_run_id"] == result["best"]["run_id"]
        run = next(r for r in runs_of(tmp_path) if r.info.run_id == written["run_id"])
        test = test_set(dataset, SplitConfig(limit=600))
        model = mlflow.pyfunc.load_model(f"runs:/{written['trial_run_id']}/model")
        accuracy = np.mean(model.predict(test.images).argmax(axis=1) == test.labels)
        assert run.data.metrics["test_accuracy"] == written["test_accuracy"] == accuracy
        with open_store(f"sqlite:///{tmp_path}/mlflow.db") as store:
            kept = {
                Path(f.path).name for f in store.client.list_artifacts(run.info.run_id, "report")
            }
        assert kept == files
    folder = tmp_path / "reports" / result["run_id"][:8]
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["test_images"] == 600
    assert len(metrics["sample_indices"]) == 16
    rows = list(csv.DictReader((folder / "leaderboard.csv").read_text().splitlines()))
    assert [float(r["val_accuracy"]) for r in rows] == sorted(
        (t["val_accuracy"] for t in result["trials"]), reverse=True
    )

    # Made again with the same seed, a report is the same to the last byte.
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    command("report", "--run-id", result["run_id"])
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    for part, expected in (
        ("activations", {"sample.png", "activations.png"}),
        ("predictions", {"predictions.png"}),
    ):
        done = called(part, "--run-id", result["run_id"][:8], "--output-dir", part, "--seed", "1")
        assert done.returncode == 0, done.stderr
        assert {p.name for p in (tmp_path / part).iterdir()} == expected
        assert (tmp_path / part / sorted(expected)[0]).read_bytes() != before[sorted(expected)[0]]


def test_train_is_tracked_as_a_trial_is(called: Run, tmp_path: Path, other_data: Path) -> None:
    names = ("a", "A", "accuracy", "macro avg", "é <b>", "../x", "=1+1", "7", "h", "i")
    (other_data / "class_names.txt").write_text("\n".join(names), "utf-8")
    done = called("train", *QUICK, "--filters", "4", "--strides", "2", "--json",
                  "--data-dir", str(other_data), "--experiment", "mine")  # fmt: skip
    assert done.returncode == 0, done.stderr
    summary = "2,400 training and 600 test images of 28x28 pixels in grey, 10 classes"
    assert f"Data: data set other-data ({other_data}), {summary}, protocol" in done.stderr
    result = json.loads(done.stdout)
    (run,) = runs_of(tmp_path, "mine")
    assert run.info.run_id == result["run_id"]
    assert run.data.tags["fmnist.role"] == "train"
    assert run.data.tags["fmnist.dataset"] == f"data set other-data ({other_data})"
    assert summary in run.data.tags["mlflow.note.content"]
    assert [run.data.params[f"split.{n}"] for n in ("train_images", "test_images", "classes")] == [
        "2400", "600", "10"
    ]  # fmt: skip
    # Names that are the same in small letters, or with which MLflow would name no metric.
    assert [run.data.metrics[f"val_f1_{label}"] for label in range(10)]
    # The real images are not what this run was trained on.
    elsewhere = called("report", "--run-id", "latest")
    assert elsewhere.returncode == 1
    assert "Those of 'mine' are shown with --experiment." in elsewhere.stderr
    latest = ("--run-id", "latest", "--experiment", "mine")
    refused = called("report", *latest)
    assert refused.returncode == 1
    assert "was trained on other data" in refused.stderr
    report = called("report", *latest, "--data-dir", str(other_data))
    assert report.returncode == 0, report.stderr
    (page,) = (tmp_path / "reports").glob("*/index.html")
    text = page.read_text()
    assert f"The data is not Fashion-MNIST but the data set other-data: {summary}." in text
    assert "é &lt;b&gt;" in text


def test_a_failing_point_does_not_stop_the_others(tmp_path: Path, cache: Path) -> None:
    # It would fit into this machine's memory, but not into what the processes may use of it.
    units = int(0.8 * machine.memory() / BYTES_A_UNIT)
    done = subprocess.run(
        ["prlimit", f"--as={LIMIT}", sys.executable, "-m", "fmnist_tracking", "search", *QUICK,
         "--filters", "4", "--strides", "2", "--kernel-sizes", "3",
         "--hidden-units", f"{units},8", "--workers", "1", "--json"],
        cwd=tmp_path,
        env={**os.environ, "FMNIST_CACHE_DIR": str(cache)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    result = json.loads(done.stdout)
    assert (result["finished"], result["failed"]) == (1, 1)
    assert "1 of 2 points failed" in done.stderr
    runs = runs_of(tmp_path)
    (failed,) = (r for r in children(runs, result["run_id"]) if r.info.status == "FAILED")
    assert "ResourceExhausted" in failed.data.tags["fmnist.error"]
    text = mlflow.artifacts.load_text(f"runs:/{failed.info.run_id}/traceback.txt")
    assert "Traceback (most recent call last)" in text
    parent = next(r for r in runs if r.info.run_id == result["run_id"])
    assert parent.info.status == "FAILED"


@pytest.fixture
def started(tmp_path: Path, cache: Path) -> Any:
    """A search with two workers that would take long, once its first trials are running."""
    arguments = ["search", "--limit", "6000", "--epochs", "500", "--workers", "2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "fmnist_tracking", *arguments],
        cwd=tmp_path,
        env={**os.environ, "FMNIST_CACHE_DIR": str(cache)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # as a terminal does: Ctrl-C then reaches the whole group
    )
    assert process.stderr is not None
    begun = 0
    for line in process.stderr:
        begun += "epoch 1/500" in line
        if begun == 2:
            break
    yield process
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize(
    ("stop", "status", "word"),
    [
        (lambda p: os.killpg(p.pid, signal.SIGINT), 130, "Interrupted"),
        (lambda p: p.terminate(), 143, "Stopped by a signal"),
        (lambda p: os.killpg(p.pid, signal.SIGHUP), 143, "Stopped by a signal"),
        (lambda p: os.killpg(p.pid, signal.SIGQUIT), 143, "Stopped by a signal"),
    ],
    ids=["ctrl-c", "sigterm", "terminal closed", "sigquit"],
)
def test_a_stopped_search_closes_every_run(
    started: "subprocess.Popen[str]",
    tmp_path: Path,
    stop: Callable[["subprocess.Popen[str]"], None],
    status: int,
    word: str,
) -> None:
    assert len(processes_of(started.pid)) >= 3
    begin = time.monotonic()
    stop(started)
    out, err = started.communicate(timeout=60)
    assert started.returncode == status, err
    assert time.monotonic() - begin < 15
    assert out == ""
    assert f"{word}. Go on with: fmnist-track search --limit 6000" in err
    assert "Traceback" not in err
    runs = runs_of(tmp_path)
    assert len(runs) == 3
    assert {r.info.status for r in runs} == {"KILLED"}
    wait_for(lambda: not processes_of(started.pid), seconds=10)


@pytest.fixture
def port() -> int:
    return free_port()


def test_ui_serves_the_store_and_leaves_nothing_behind(
    store: Store, tmp_path: Path, port: int, called: Run
) -> None:
    store.experiment_id("to be seen")
    address = f"http://127.0.0.1:{port}"
    with serving(port, tmp_path, "fmnist_tracking", "ui") as server:
        names = {e.name for e in mlflow.MlflowClient(address).search_experiments()}
        assert "to be seen" in names
        taken = called("ui", "--port", str(port))
        assert (taken.returncode, taken.stderr.count("\n")) == (2, 1)
        assert f"Cannot listen on port {port} of 127.0.0.1" in taken.stderr
        server.terminate()
        shown, _ = server.communicate(timeout=60)
        assert f"MLflow's page for sqlite:///{tmp_path}/mlflow.db: {address}" in shown
        wait_for(lambda: not processes_of(server.pid), seconds=20)


def test_over_a_tracking_server(tmp_path: Path, port: int, called: Run) -> None:
    """Two seeds of one point, on a server that keeps the artifacts too; then the report."""
    home = tmp_path / "server"
    home.mkdir()
    address = f"http://127.0.0.1:{port}"
    uri = f"sqlite:///{home}/mlflow.db"
    with serving(port, home, "mlflow", "server", "--backend-store-uri", uri):
        done = called(
            *("search", *QUICK, "--filters", "4", "--strides", "2", "--kernel-sizes", "3"),
            *("--repeats", "2", "--json"),
            MLFLOW_TRACKING_URI=address,
        )
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout)
        assert [t["params"]["seed"] for t in result["trials"]] == [0, 1]
        assert (result["grid_points"], result["finished"]) == (2, 2)
        report = called("report", "--run-id", "latest", "--tracking-uri", address, "--json")
        assert report.returncode == 0, report.stderr
        assert json.loads(report.stdout)["trial_run_id"] == result["best"]["run_id"]
        client = mlflow.MlflowClient(address)
        kept = {f.path for f in client.list_artifacts(result["run_id"], "report")}
        assert {f"report/{name}" for name in REPORT_FILES} <= kept
        assert not (tmp_path / "mlruns").exists()
        assert not (tmp_path / "mlflow.db").exists()


def losing_artifacts(tmp_path: Path, cache: Path, *words: str, **variables: str) -> str:
    """Run a command, and take the folder of artifacts away while it trains; give what it said.

    The folder is back afterwards.
    """
    artifacts, away = tmp_path / "mlruns", tmp_path / "away"
    log = tmp_path / "log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "fmnist_tracking", *words],
            cwd=tmp_path,
            env={**os.environ, "FMNIST_CACHE_DIR": str(cache), **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )
    wait_for(lambda: "epoch 1/" in log.read_text() or process.poll() is not None, seconds=120)
    runs = 2 if words[0] == "search" else 1
    wait_for(lambda: len(list(artifacts.rglob("environment.json"))) == runs, seconds=30)
    artifacts.rename(away)
    artifacts.touch()  # a file where the folder should be
    assert process.wait(timeout=120) == 1
    artifacts.unlink()
    away.rename(artifacts)
    return log.read_text()


def test_artifacts_that_can_no_longer_be_kept(called: Run, tmp_path: Path, cache: Path) -> None:
    train = ("train", *LONGER, "--filters", "4", "--strides", "2")
    said = losing_artifacts(tmp_path, cache, *train)
    assert "Error: MLflow failed at " in said
    assert "Traceback" not in said
    (run,) = runs_of(tmp_path)
    assert run.info.status == "KILLED"
    # Nothing is lost: with that put right, what was trained is kept, and not trained again.
    again = called(*train)
    assert again.returncode == 0, again.stderr
    assert "was trained to epoch 30 before" in again.stderr
    assert "  loss " not in again.stderr
    (run,) = runs_of(tmp_path)
    assert run.info.status == "FINISHED"


def test_artifacts_that_cannot_be_kept_at_all(called: Run, tmp_path: Path) -> None:
    (tmp_path / "mlruns").mkdir()
    (tmp_path / "mlruns" / "fashion-mnist").touch()  # where the folder of artifacts should be
    done = called("search", *QUICK, "--filters", "4", "--strides", "2")
    assert done.returncode == 1
    assert "Error: MLflow failed at " in done.stderr
    assert "Traceback" not in done.stderr
    assert "started" not in done.stderr  # nothing is trained that could not be kept


def test_what_has_finished_is_reused(called: Run, tmp_path: Path) -> None:
    small = ("search", *QUICK, "--strides", "2", "--kernel-sizes", "3", "--json")
    first = json.loads(called(*small, "--filters", "4").stdout)
    assert (first["finished"], first["reused"]) == (1, 0)

    more = called(*small, "--filters", "4,8")
    second = json.loads(more.stdout)
    assert (second["finished"], second["reused"]) == (2, 1)
    assert [t["reused"] for t in second["trials"]] == [True, False]
    assert second["trials"][0]["run_id"] == first["trials"][0]["run_id"]
    assert "f4 k3 s2 is trained already" in more.stderr
    assert json.loads(called("runs", "--run-id", "latest", "--json").stdout) == second
    runs = runs_of(tmp_path)
    assert len(runs) == 2 + 2  # two searches, two trials

    again = called(*small, "--filters", "4,8")
    assert "has finished all 2 points before" in again.stderr
    third = json.loads(again.stdout)
    assert (third["run_id"], third["reused"]) == (second["run_id"], 2)
    assert len(runs_of(tmp_path)) == len(runs)

    fresh = json.loads(called(*small, "--filters", "4", "--fresh").stdout)
    assert (fresh["finished"], fresh["reused"]) == (1, 0)
    assert fresh["run_id"] != first["run_id"]
    assert fresh["trials"][0]["val_accuracy"] == first["trials"][0]["val_accuracy"]
    alone = called("train", *QUICK, "--filters", "4", "--strides", "2", "--json")
    assert "it is reused" in alone.stderr
    assert json.loads(alone.stdout)["run_id"] == fresh["trials"][0]["run_id"]


def test_a_dry_run_writes_nothing(called: Run, tmp_path: Path) -> None:
    small = ("search", *QUICK, "--strides", "2", "--filters", "4", "--workers", "1", "--json")
    planned = json.loads(called(*small, "--kernel-sizes", "3,4,9", "--dry-run").stdout)
    assert not (tmp_path / "mlflow.db").exists()
    assert [p["state"] for p in planned["points"]] == ["new", "new", "refused"]
    assert "leaves nothing for layer conv2" in planned["points"][2]["reason"]
    assert planned["seconds"] is None
    assert called(*small, "--kernel-sizes", "3").returncode == 0
    before = (tmp_path / "mlflow.db").read_bytes()
    planned = json.loads(called(*small, "--kernel-sizes", "3,4", "--dry-run").stdout)
    assert [p["state"] for p in planned["points"]] == ["finished", "new"]
    assert planned["based_on"] == "1 finished trials on as many images"
    assert 0 < planned["seconds"] < 60
    assert (tmp_path / "mlflow.db").read_bytes() == before


def test_mlflow_run_goes_on_with_what_another_run_began(
    called: Run, tmp_path: Path, cache: Path, store: Store
) -> None:
    def made() -> str:
        tags = {"mlflow.project.entryPoint": "search"}
        experiment = store.experiment_id("mine")
        return str(store.client.create_run(experiment, tags=tags).info.run_id)

    first, second = made(), made()
    small = ("search", *LONGER, "--filters", "4", "--strides", "2", "--kernel-sizes", "3", "--json")
    losing_artifacts(tmp_path, cache, *small, MLFLOW_RUN_ID=first)
    (trial,) = children(runs_of(tmp_path, "mine"), first)
    done = called(*small, MLFLOW_RUN_ID=second)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["run_id"] == second
    assert "f4 k3 s2 was trained to epoch 30 before" in done.stderr
    runs = runs_of(tmp_path, "mine")
    assert [r.info.run_id for r in children(runs, second)] == [trial.info.run_id]
    assert children(runs, first) == []
    old = next(r for r in runs if r.info.run_id == first)
    assert old.data.tags["fmnist.continued_by"] == second
    new = next(r for r in runs if r.info.run_id == second)
    assert new.data.tags["fmnist.continues"] == first


def test_a_stopped_training_is_closed(tmp_path: Path, cache: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "fmnist_tracking", "train", "--limit", "6000", "--epochs", "900"],
        cwd=tmp_path,
        env={**os.environ, "FMNIST_CACHE_DIR": str(cache)},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "epoch 2/900" in line:
            break
    process.terminate()
    process.terminate()  # a second one must not cut the closing short
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert "Traceback" not in err
    (run,) = runs_of(tmp_path)
    assert run.info.status == "KILLED"
    assert run.data.metrics["val_accuracy"] > 0  # what was logged is kept


def test_mlflow_run_is_the_parent_of_its_trials(tmp_path: Path, cache: Path) -> None:
    project = Path(__file__).parent.parent
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    environment = {**os.environ, "PATH": path, "FMNIST_CACHE_DIR": str(cache)}

    def run_project(entry: str, **parameters: object) -> None:
        command = [sys.executable, "-m", "mlflow", "run", str(project), "-e", entry]
        command += ["--env-manager", "uv", "--experiment-name", "projects"]
        for name, value in parameters.items():
            command += ["-P", f"{name}={value}"]
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env={**environment, "MLFLOW_TRACKING_URI": uri},
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert done.returncode == 0, done.stderr

    run_project("search", limit=600, epochs=1, filters="4,8", strides=2, axis="dropout=0.1,0.2")
    runs = runs_of(tmp_path, "projects")
    (parent,) = (r for r in runs if "mlflow.parentRunId" not in r.data.tags)
    assert parent.data.tags["mlflow.project.entryPoint"] == "search"
    assert parent.data.tags["fmnist.role"] == "search"
    assert parent.info.status == "FINISHED"
    trials = children(runs, parent.info.run_id)
    assert len(trials) == 2 * 2 * 2
    assert {t.info.status for t in trials} == {"FINISHED"}
    assert {t.data.params["dropout"] for t in trials} == {"0.1", "0.2"}
    assert {t.data.params["epochs"] for t in trials} == {"1"}

    # And a report by the same way, after which the search is still the latest run.
    run_project("report", run_id="latest", output_dir=str(tmp_path / "shown"))
    assert {p.name for p in (tmp_path / "shown").iterdir()} >= REPORT_FILES
    runs = runs_of(tmp_path, "projects")
    (about,) = (r for r in runs if "fmnist.report_of" in r.data.tags)
    assert about.data.tags["fmnist.report_of"] == parent.info.run_id
    with open_store(uri) as store:
        assert tracking.find_run(store, "latest", "projects").run_id == parent.info.run_id
