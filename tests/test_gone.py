"""What people delete, rename or remove for good: each command treats it as what it is."""

import dataclasses
import json
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

import fmnist_tracking as ft
from conftest import Run
from fmnist_tracking.errors import TrackingError
from fmnist_tracking.tracking import open_store
from fmnist_tracking.tracking.leases import Lease

pytestmark = pytest.mark.slow

SMALL = (
    *("--limit", "600", "--epochs", "2", "--filters", "4,6"),
    *("--strides", "2", "--kernel-sizes", "3", "--hidden-units", "8"),
)


def client_of(folder: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{folder}/mlflow.db")


def remove_for_good(folder: Path) -> None:
    """Run `mlflow gc`, which takes what was deleted out of the tables."""
    uri = f"sqlite:///{folder}/mlflow.db"
    done = subprocess.run(
        [sys.executable, "-m", "mlflow", "gc", "--backend-store-uri", uri],
        env={**os.environ, "MLFLOW_TRACKING_URI": uri},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def search(called: Run, *more: str) -> dict[str, object]:
    done = called("search", *SMALL, "--json", *more)
    assert done.returncode == 0, done.stderr
    result: dict[str, object] = json.loads(done.stdout)
    return result


def planned(called: Run) -> list[str]:
    done = called("search", *SMALL, "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    return sorted(point["state"] for point in json.loads(done.stdout)["points"])


@pytest.mark.parametrize("for_good", [False, True])
def test_a_deleted_trial_is_nobody_s_best_and_is_trained_again(
    called: Run, tmp_path: Path, for_good: bool
) -> None:
    first = search(called)
    best = first["best"]["run_id"]  # type: ignore[index]
    other = next(t["run_id"] for t in first["trials"] if t["run_id"] != best)  # type: ignore[attr-defined]
    ft.promote(best)
    client = client_of(tmp_path)
    client.delete_run(best)
    if for_good:
        remove_for_good(tmp_path)

    assert ft.load_trial().run_id == other
    (summary,) = ft.list_runs()
    assert (summary.finished, summary.points) == (1, 2)
    assert summary.val_accuracy == ft.load_trial().val_accuracy
    assert [t.run_id for t in ft.load_search("latest").finished] == [other]
    assert planned(called) == ["finished", "new"]
    written = called("report", "--run-id", "latest", "--json")
    assert written.returncode == 0, written.stderr
    assert json.loads(written.stdout)["trial_run_id"] == other
    with pytest.raises(TrackingError, match="There is no run" if for_good else "was deleted"):
        ft.promote(best)
    forced = ft.promote("latest", force=True)
    assert forced.champion.run_id == other

    again = search(called)
    assert (again["run_id"], again["finished"]) == (first["run_id"], 2)
    trained = {t["run_id"] for t in again["trials"]}  # type: ignore[attr-defined]
    assert other in trained
    assert best not in trained
    assert again["best"]["params"] == first["best"]["params"]  # type: ignore[index]
    assert planned(called) == ["finished", "finished"]
    assert "nothing is left to train" in called("search", *SMALL).stderr


@pytest.mark.parametrize("for_good", [False, True])
def test_the_trials_of_a_search_that_is_gone_are_used_again(
    called: Run, tmp_path: Path, for_good: bool
) -> None:
    first = search(called)
    client = client_of(tmp_path)
    client.delete_run(str(first["run_id"]))
    trials = {t["run_id"] for t in first["trials"]}  # type: ignore[attr-defined]
    for trial in trials:  # MLflow's page deletes a search's trials with it
        client.restore_run(trial)
    # A trial that was open when its search was deleted, and whose process is gone.
    orphan = client.create_run(
        str(first["experiment_id"]),
        tags={
            "fmnist.role": "trial",
            "mlflow.parentRunId": str(first["run_id"]),
            "fmnist.lease": dataclasses.replace(Lease.of_this_process(), pid=2**30).text(),
        },
    ).info.run_id
    if for_good:
        remove_for_good(tmp_path)
    with pytest.raises(TrackingError, match="There is no search"):
        ft.list_runs()
    assert planned(called) == ["finished", "finished"]
    assert [run_id for run_id, _ in ft.repair_runs()] == [orphan]
    again = search(called)
    assert again["run_id"] != first["run_id"]
    assert again["reused"] == 2
    assert {t["run_id"] for t in again["trials"]} == trials  # type: ignore[attr-defined]
    # Trials of another search, which are gone now, are missed too.
    client.delete_run(min(trials))
    (summary,) = ft.list_runs()
    assert (summary.finished, summary.points) == (1, 2)
    assert planned(called) == ["finished", "new"]
    assert search(called)["finished"] == 2


def test_models_and_versions_that_are_gone(called: Run, tmp_path: Path) -> None:
    first = search(called)
    best = str(first["best"]["run_id"])  # type: ignore[index]
    client = client_of(tmp_path)
    version = ft.promote(best).champion
    client.delete_model_version(version.name, version.version)
    done = ft.promote(best)
    assert (done.changed, done.registered) == (True, True)
    client.delete_registered_model(version.name)
    assert ft.promote(best).registered
    with open_store() as store:
        (model,) = [
            model
            for model in client.search_logged_models([str(first["experiment_id"])])
            if model.source_run_id == best
        ]
        file = next(tmp_path.glob(f"mlruns/**/{model.model_id}/**/model.keras"))
        assert store.can_be_written
    kept = file.read_bytes()
    file.unlink()
    client.delete_registered_model(version.name)
    for reference in (best, "best"):
        with pytest.raises(TrackingError, match=r"has no file data/model\.keras at"):
            ft.promote(reference)
    said = called("report", "--run-id", best).stderr
    assert "it was removed, or the place is not reached from here" in said
    file.write_bytes(kept)
    client.delete_logged_model(model.model_id)
    with pytest.raises(TrackingError, match="has no logged model"):
        ft.promote(best)
    assert client.search_registered_models() == []


def test_experiments_that_are_gone_or_renamed(called: Run, tmp_path: Path) -> None:
    first = search(called)
    client = client_of(tmp_path)
    experiment = str(first["experiment_id"])
    client.delete_experiment(experiment)
    for arguments in (("search", *SMALL), ("search", *SMALL, "--dry-run"), ("doctor",)):
        done = called(*arguments)
        assert done.returncode == 1
        assert "'fashion-mnist' was deleted" in done.stdout + done.stderr
    with pytest.raises(TrackingError, match="'fashion-mnist' was deleted"):
        ft.load_trial()
    client.restore_experiment(experiment)
    client.rename_experiment(experiment, "old")
    assert ft.load_trial(experiment="old").run_id == first["best"]["run_id"]  # type: ignore[index]
    assert planned(called) == ["new", "new"]
    assert called("search", *SMALL, "--dry-run", "--experiment", "old").returncode == 0
    client.delete_experiment(experiment)
    remove_for_good(tmp_path)
    assert search(called)["reused"] == 0


@pytest.mark.parametrize("whose", ["trial", "search"])
def test_a_run_that_is_deleted_while_it_is_written(called: Run, tmp_path: Path, whose: str) -> None:
    longer = ("40" if value == "2" and SMALL[place - 1] == "--epochs" else value
              for place, value in enumerate(SMALL))  # fmt: skip
    arguments = [sys.executable, "-m", "fmnist_tracking", "search", *longer]
    with subprocess.Popen(
        arguments, cwd=tmp_path, env=os.environ, stderr=subprocess.PIPE, text=True
    ) as running:
        deleted = None
        end = time.monotonic() + 120
        while deleted is None and time.monotonic() < end:
            time.sleep(0.1)
            if not (tmp_path / "mlflow.db").exists():
                continue
            try:
                trials = client_of(tmp_path).search_runs(["1"], "tags.`fmnist.role` = 'trial'")
            except sqlite3.Error:
                continue
            open_trials = [t for t in trials if "loss" in t.data.metrics]
            if open_trials:
                trial = open_trials[0]
                of_search = trial.data.tags["mlflow.parentRunId"]
                deleted = trial.info.run_id if whose == "trial" else of_search
                client_of(tmp_path).delete_run(deleted)
        _, said = running.communicate(timeout=300)
    assert deleted is not None
    assert running.returncode == 1
    assert f"The run {deleted[:8]}" in said
    if whose == "trial":
        assert "the store has runs for 1 of them. Run the same search again" in said
    else:
        assert f"mlflow runs restore --run-id {deleted}`, or leave it" in " ".join(said.split())
    assert "Traceback" not in said
    again = called(*arguments[3:], "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["finished"] == 2
    assert json.loads(again.stdout)["reused"] == (0 if whose == "trial" else 2)


def test_what_a_fresh_search_misses_is_planned_as_it_is_trained(
    called: Run, tmp_path: Path
) -> None:
    search(called)
    fresh = search(called, "--fresh")
    client_of(tmp_path).delete_run(fresh["best"]["run_id"])  # type: ignore[index]
    assert planned(called) == ["finished", "new"]
    again = search(called)
    assert (again["run_id"], again["finished"], again["reused"]) == (fresh["run_id"], 2, 0)


def test_a_grid_whose_search_cannot_be_read_is_searched_again(
    command: Run, called: Run, tmp_path: Path
) -> None:
    first = search(called)
    trials = {t["run_id"] for t in first["trials"]}  # type: ignore[attr-defined]
    client_of(tmp_path).log_param(str(first["run_id"]), "grid.padding", '["same", "valid"]')
    assert planned(called) == ["finished", "finished"]
    again = search(called)
    assert again["run_id"] != first["run_id"]
    assert (again["finished"], again["reused"]) == (2, 2)
    assert {t["run_id"] for t in again["trials"]} == trials  # type: ignore[attr-defined]
    said = command("search", *SMALL).stderr
    assert "nothing is left to train" in said
    assert f"cannot read or resume a run: {str(first['run_id'])[:8]} (its grid" in said
