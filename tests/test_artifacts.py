"""The files of runs are read and written where the opened store may have them, nowhere else."""

import contextlib
import dataclasses
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import SMALL, Run
from fmnist_tracking import tracking
from fmnist_tracking.errors import TrackingError
from fmnist_tracking.tracking import Store, open_store
from fmnist_tracking.tracking.artifacts import files_at, log_files, read_file
from runs import SEARCH, SPACE, finish_quickly, start_search, start_trial

Place = Callable[[Path], str]
OUTSIDE: dict[str, Place] = {
    "a folder": lambda folder: str(folder / "elsewhere"),
    "a URL": lambda folder: (folder / "elsewhere").as_uri(),
    "upwards": lambda folder: (folder / "mlruns").as_uri() + "/../elsewhere",
    "encoded": lambda folder: (folder / "mlruns").as_uri() + "/%2e%2e/elsewhere",
    "beside": lambda folder: str(folder / "mlruns-of-others"),
    "the root itself": lambda folder: str(folder / "mlruns"),
    "relative": lambda folder: "elsewhere",
    "nothing": lambda folder: "",
    "no URL": lambda folder: "file://[",
    "a plain path, encoded": lambda folder: f"{folder}/mlruns/%2e%2e/elsewhere",
    "another run": lambda folder: "runs:/0123456789abcdef0123456789abcdef/x",
    "a registered model": lambda folder: "models:/fashion-mnist/1",
}


@pytest.mark.parametrize("what", OUTSIDE)
def test_a_place_outside_the_root_is_refused(store: Store, tmp_path: Path, what: str) -> None:
    place = OUTSIDE[what](tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(TrackingError, match="Nothing is read or written there") as caught:
        files_at(store, place)
    assert repr(place) in str(caught.value)
    with pytest.raises(TrackingError):
        read_file(store, place, "mlflow.db")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "place",
    ["http://example.org/x", "https://127.0.0.1:1/x", "mlflow-artifacts://example.org/x",
     "http://mine.org/x", "https://mine.org:444/x", "https://mine.org@example.org/x"],
)  # fmt: skip
@pytest.mark.parametrize("uri", [None, "https://mine.org"])
def test_another_server_is_not_given_the_password(
    store: Store, place: str, uri: str | None
) -> None:
    store = dataclasses.replace(store, uri=uri or store.uri)
    with pytest.raises(TrackingError, match="which would be given your password"):
        files_at(store, place)


def test_a_place_inside_the_root_and_a_link_there_are_used(store: Store, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    (tmp_path / "mlruns").mkdir()
    (tmp_path / "mlruns" / "large").symlink_to(disk)
    location = (tmp_path / "mlruns" / "large").as_uri()
    run = store.client.create_run(store.client.create_experiment("large", location))
    log_files(store, run.info.run_id, {"a.txt": "words"})
    assert read_file(store, run.info.artifact_uri, "a.txt") == b"words"
    assert list(disk.rglob("a.txt"))


def test_what_is_told_to_be_trusted_is_used(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = store.client.create_experiment("large", str(tmp_path / "disk"))
    with pytest.raises(TrackingError, match=f"'{tmp_path}/disk'.*{tmp_path}/mlruns"):
        tracking.choose_experiment(store, "large")
    monkeypatch.setenv("FMNIST_TRUST_ARTIFACT_LOCATION", "1")
    assert tracking.choose_experiment(store, "large") == experiment
    run = store.client.create_run(experiment)
    log_files(store, run.info.run_id, {"a.txt": "words"})
    assert list((tmp_path / "disk").rglob("a.txt"))


def test_a_changed_address_of_a_run_is_not_followed(store: Store, tmp_path: Path) -> None:
    search = start_search(store)
    trial = start_trial(store, SPACE.points(SMALL)[0], search)
    finish_quickly(store, trial, 0.5)
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "report").mkdir()
    (secret / "report" / "index.html").write_text("theirs")
    with contextlib.closing(sqlite3.connect("mlflow.db")) as rows, rows:
        rows.execute("UPDATE runs SET artifact_uri = ?", (str(secret),))
    page = tmp_path / "index.html"
    page.write_text("ours")
    with open_store() as opened:
        with pytest.raises(TrackingError, match="outside the artifact root"):
            tracking.log_report(opened, trial, [page], {})
        with pytest.raises(TrackingError, match="outside the artifact root"):
            tracking.read_history(opened, tracking.find_run(opened, trial))
        # What is read for a list is left out instead.
        result = tracking.read_search(opened, tracking.find_run(opened, search))
        assert len(result.trials) == 1
    assert (secret / "report" / "index.html").read_text() == "theirs"


def test_a_record_that_is_too_large_to_be_one_is_not_read(store: Store) -> None:
    search = start_search(store)
    run = store.client.get_run(search)
    log_files(store, search, {"search.json": "{}"})
    file = Path(run.info.artifact_uri.removeprefix("file://"), "search.json")
    os.truncate(file, 10**12)
    with pytest.raises(OSError, match="it has 1,000,000,000,000 bytes"):
        read_file(store, run.info.artifact_uri, "search.json")
    assert tracking.list_runs(store)  # which makes up for it


@pytest.mark.slow
def test_a_search_in_an_experiment_with_files_elsewhere_makes_nothing(
    called: Run, store: Store, tmp_path: Path
) -> None:
    store.client.create_experiment("theirs", str(tmp_path / "disk"))
    words = ("search", "--limit", "600", "--epochs", "1", "--experiment", "theirs")
    done = called(*words)
    assert done.returncode == 1
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("Error: "))
    assert "give --trust-artifact-location" in line
    assert not (tmp_path / "disk").exists()
    assert tracking.find_searches(store, store.experiment_id("theirs"), [SEARCH.grid]) == []
