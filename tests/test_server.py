"""The same on a tracking server for several people: PostgreSQL, proxied artifacts, passwords.

The server is the one that `server/compose.yaml` starts, without its containers.
"""

import json
import os
import re
import secrets
import subprocess
import sys
import tempfile
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import yaml
from mlflow import MlflowClient
from PIL import Image

import fmnist_tracking as ft
from conftest import Run
from fmnist_tracking.config import FIELDS
from fmnist_tracking.data import Dataset, split_dataset
from fmnist_tracking.split_config import SplitConfig
from fmnist_tracking.tracking import open_store, schema
from reports import REPORT_FILES
from searches import (
    EPOCHS,
    LIMIT,
    POINTS,
    Outcome,
    Place,
    assert_as_undisturbed,
    finish,
    outcome,
)
from servers import COMPOSE, Composed, composed

pytestmark = pytest.mark.service


@dataclass(frozen=True, kw_only=True)
class Server(Composed):
    """A server that answers, and what the tests ask of it."""

    def variables(self, user: str = "admin", password: str = "") -> dict[str, str]:
        return {
            "MLFLOW_TRACKING_URI": self.address,
            "MLFLOW_TRACKING_USERNAME": user,
            "MLFLOW_TRACKING_PASSWORD": password or self.admin_password,
        }

    def ask(self, method: str, path: str, **content: str) -> None:
        """Call MLflow's own API as the administrator."""
        word = b64encode(f"admin:{self.admin_password}".encode()).decode()
        request = urllib.request.Request(
            f"{self.address}/api/2.0/mlflow/{path}",
            json.dumps(content).encode(),
            {"Authorization": f"Basic {word}", "Content-Type": "application/json"},
            method=method,
        )
        urllib.request.urlopen(request, timeout=30).close()

    def new_user(self, name: str) -> str:
        password = secrets.token_urlsafe(12)
        self.ask("POST", "users/create", username=name, password=password)
        return password


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    # Not a folder of pytest's: the user that PostgreSQL runs as, under root, may not enter those.
    with tempfile.TemporaryDirectory(prefix="fmnist-server-") as folder:
        Path(folder).chmod(0o711)
        with composed(Path(folder)) as started:
            yield Server(**vars(started))


@pytest.fixture
def as_admin(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test itself speaks to the server."""
    for name, value in server.variables().items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def track(tmp_path: Path, cache: Path, server: Server) -> Run:
    """Runs `fmnist-track` on the server, in an empty folder."""

    def run(*arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        done = subprocess.run(
            [sys.executable, "-m", "fmnist_tracking", *arguments],
            cwd=tmp_path,
            env={**os.environ, "FMNIST_CACHE_DIR": str(cache)} | server.variables() | variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=180,
        )
        assert server.admin_password not in done.stdout + done.stderr
        return done

    return run


@dataclass(frozen=True, kw_only=True)
class Searched:
    """A search through the server: its folder, what it printed, and what is in the store."""

    place: Place
    result: dict[str, Any]
    outcome: Outcome


@pytest.fixture(scope="session")
def searched(server: Server, tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Searched:
    place = Place(tmp_path_factory.mktemp("searched"), cache, uri=server.address)
    result = finish(place.start(**server.variables()), place)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.variables().items():
            patch.setenv(name, value)
        return Searched(place=place, result=result, outcome=outcome(place))


def test_no_secret_has_a_default_and_the_port_is_for_this_machine_alone() -> None:
    plan = COMPOSE.read_text()
    defaults = re.findall(r"\$\{(\w+):-", plan)
    assert defaults == ["MLFLOW_ALLOWED_HOSTS"]
    for name in set(re.findall(r"\$\{(\w+)", plan)) - set(defaults):
        assert f"${{{name}:?" in plan  # Compose refuses to start without it
    services = yaml.safe_load(plan)["services"].values()
    ports = [port for service in services for port in service.get("ports", ())]
    assert ports == ["127.0.0.1:5000:5000"]


def test_no_secret_is_in_the_logs(server: Server) -> None:
    for log in server.folder.glob("*.log"):
        assert server.admin_password not in log.read_text()
        assert server.database_password not in log.read_text()


@pytest.mark.usefixtures("as_admin")
def test_a_search_is_recorded_whole(server: Server, searched: Searched, dataset: Dataset) -> None:
    """`outcome` has looked at the runs, every step of every metric, and every model."""
    split = split_dataset(dataset, SplitConfig(limit=LIMIT))
    assert searched.result["finished"] == POINTS == len(searched.outcome.weights)
    assert {p.name for p in searched.place.folder.iterdir()} <= {"log", "out", "state"}
    written = json.dumps(searched.result) + searched.place.said()
    with open_store(server.address) as store:
        search = store.client.get_run(searched.result["run_id"])
        assert search.info.artifact_uri.startswith("mlflow-artifacts:/")
        kept = {f.path for f in store.client.list_artifacts(search.info.run_id)}
        assert kept == {"environment.json", "leaderboard.csv", "search.json", "figures"}
        for told in searched.result["trials"]:
            trial = store.client.get_run(told["run_id"])
            assert set(FIELDS) <= set(trial.data.params)
            kept = {f.path for f in store.client.list_artifacts(trial.info.run_id)}
            assert {"history.json", "figures"} <= kept
            model = mlflow.pyfunc.load_model(f"runs:/{told['run_id']}/model")
            right = model.predict(split.validation_images).argmax(axis=1)
            accuracy = np.mean(right == split.validation_labels)
            assert accuracy == trial.data.metrics["best_val_accuracy"]
            written += json.dumps(trial.to_dictionary())
        written += json.dumps(search.to_dictionary())
    artifacts = [p for p in (server.folder / "artifacts").rglob("*") if p.is_file()]
    assert len(artifacts) > 10 * POINTS
    assert server.admin_password not in written
    assert not any(server.admin_password.encode() in p.read_bytes() for p in artifacts)


@pytest.mark.usefixtures("as_admin")
def test_what_was_searched_can_be_shown(
    server: Server, searched: Searched, track: Run, tmp_path: Path
) -> None:
    best = searched.result["best"]["run_id"]
    (listed,) = json.loads(track("runs", "--experiment", "fashion-mnist", "--json").stdout)
    assert (listed["run_id"], listed["finished"]) == (searched.result["run_id"], POINTS)
    assert json.loads(track("runs", "--run-id", "latest", "--json").stdout) == searched.result
    assert json.loads(track("best", "--json").stdout)["run_id"] == best
    assert "nothing to repair" in track("runs", "--repair").stdout
    report = track("report", "--run-id", searched.result["run_id"], "--json")
    assert report.returncode == 0, report.stderr
    assert json.loads(report.stdout)["trial_run_id"] == best
    client = mlflow.MlflowClient(server.address)
    kept = {f.path for f in client.list_artifacts(searched.result["run_id"], "report")}
    assert {f"report/{name}" for name in REPORT_FILES} <= kept
    assert track("activations", "--run-id", "best").returncode == 0
    assert {p.name for p in tmp_path.iterdir()} <= {"reports", "state"}


def test_the_database_itself_can_be_read(server: Server, searched: Searched, track: Run) -> None:
    (listed,) = json.loads(track("runs", "--tracking-uri", server.database, "--json").stdout)
    assert listed["run_id"] == searched.result["run_id"]
    best = json.loads(track("best", "--tracking-uri", server.database, "--json").stdout)
    assert best["run_id"] == searched.result["best"]["run_id"]
    # The artifacts are behind the server.
    report = track("report", "--run-id", "latest", "--tracking-uri", server.database)
    assert report.returncode == 1
    assert "which only a tracking server can reach" in report.stderr
    assert server.database_password not in report.stderr


@pytest.mark.usefixtures("as_admin")
def test_two_searches_at_once_of_which_one_is_killed(
    server: Server, searched: Searched, tmp_path: Path, cache: Path
) -> None:
    """Two people, each in an experiment of their own."""
    mine, theirs = (
        Place(tmp_path / name, cache, uri=server.address, experiment=name)
        for name in ("mine", "theirs")
    )
    other = server.variables("ada", server.new_user("ada"))
    mine_running, theirs_running = mine.start(**server.variables()), theirs.start(**other)
    mine.wait_until_said(f"epoch 2/{EPOCHS}", 2, mine_running)
    mine_running.kill()
    mine_running.wait()
    assert finish(mine.start(**server.variables()), mine)["finished"] == POINTS
    assert "goes on after epoch" in mine.said()
    assert finish(theirs_running, theirs)["finished"] == POINTS
    for place in (mine, theirs):
        assert_as_undisturbed(place, searched.outcome)


def test_a_password_that_is_wrong_or_missing(server: Server, track: Run) -> None:
    for variables, words in (
        ({"MLFLOW_TRACKING_PASSWORD": "wrong"}, "does not accept the name 'admin' with the"),
        (
            {"MLFLOW_TRACKING_USERNAME": "", "MLFLOW_TRACKING_PASSWORD": ""},
            "asks for a user name and a password",
        ),
    ):
        done = track("best", **variables)
        assert done.returncode == 1
        last = done.stderr.splitlines()[-1]
        assert words in last
        assert "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in last
        assert "Traceback" not in done.stderr


def test_a_password_in_the_address(server: Server, searched: Searched, track: Run) -> None:
    uri = server.address.replace("//", f"//admin:{server.admin_password}@")
    nothing = {"MLFLOW_TRACKING_USERNAME": "", "MLFLOW_TRACKING_PASSWORD": ""}
    run_id = searched.result["run_id"]
    done = track("runs", "--run-id", run_id, "--tracking-uri", uri, "--json", **nothing)
    assert json.loads(done.stdout) == searched.result


def test_no_permission(server: Server, searched: Searched, track: Run) -> None:
    own = server.variables("eve", server.new_user("eve"))
    assert track("runs", **own).returncode == 0  # to look is allowed
    done = track("train", "--limit", "600", "--epochs", "1", "--filters", "16", **own)
    assert done.returncode == 1
    assert "does not let the user 'eve' do this (403)" in done.stderr.splitlines()[-1]
    assert "--experiment" in done.stderr.splitlines()[-1]


def test_no_permission_for_a_registered_model(
    server: Server, searched: Searched, track: Run
) -> None:
    own = server.variables("joe", server.new_user("joe"))
    best = searched.result["best"]["run_id"]
    other = next(t["run_id"] for t in searched.result["trials"] if t["run_id"] != best)
    assert track("promote", "--run-id", best).returncode == 0
    done = track("promote", "--run-id", other, "--force", **own)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert "does not let the user 'joe' change the registered model 'fashion-mnist' (403)" in last
    assert last.endswith("with --name.")
    # The trial is another's, and that does not matter.
    done = track("promote", "--run-id", other, "--name", "joe-s", **own)
    assert (done.returncode, done.stdout.split()[:2]) == (0, ["champion:", "joe-s"]), done.stderr


def test_a_password_that_is_changed_meanwhile(server: Server, tmp_path: Path, cache: Path) -> None:
    place = Place(tmp_path / "search", cache, uri=server.address, experiment="changed")
    process = place.start(**server.variables("bob", server.new_user("bob")))
    place.wait_until_said(f"epoch 2/{EPOCHS}", 1, process)
    server.ask("PATCH", "users/update-password", username="bob", password="a new long one")
    assert process.wait(timeout=60) == 1
    assert "does not accept the name 'bob'" in place.said().splitlines()[-1]
    assert list(Path(place.state).rglob("checkpoint"))  # to go on from, with the new one


def test_a_program_names_the_password_once(server: Server, tmp_path: Path) -> None:
    host = server.address.partition("://")[2]
    search = ft.search(
        {"filters": [4]},
        epochs=1,
        limit=600,
        strides=2,
        hidden_units=8,
        tracking_uri=f"http://admin:{server.admin_password}@{host}",
        experiment="program",
        echo=None,
    )
    assert search.best is not None
    assert len(search.best.history()) == 1
    assert ft.report(search, output_dir=tmp_path, echo=None).test_accuracy is not None
    assert server.admin_password not in repr(search) + str(search.best) + repr(search.best)
    for file in tmp_path.iterdir():
        if file.is_file():
            assert server.admin_password.encode() not in file.read_bytes()
    assert not [name for name in os.environ if name.startswith("MLFLOW_TRACKING")]


SMALL = ("--limit", "600", "--epochs", "1", "--filters", "4,5", "--strides", "2")


@pytest.mark.usefixtures("as_admin")
def test_nothing_that_another_user_writes_changes_what_a_command_answers_or_writes(
    server: Server, searched: Searched, tmp_path: Path, dataset: Dataset, track: Run
) -> None:
    Image.fromarray(dataset.test_images[0]).save(tmp_path / "boot.png")
    commands = (
        ("runs", "--run-id", "latest", "--json"),
        ("best", "--json"),
        ("predict", "boot.png", "--run-id", "best", "--json"),
        ("runs", "--json"),
    )
    before = [track(*words).stdout for words in commands]
    assert all(before)
    ours = MlflowClient(server.address).get_run(searched.result["run_id"]).data

    folder, mallory = tmp_path / "chosen by another", server.variables(
        "mallory", server.new_user("mallory")
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for name, value in mallory.items():
            patch.setenv(name, value)
        client = MlflowClient(server.address)
        experiment = client.create_experiment("mallory's", artifact_location=str(folder))
        client.create_run(experiment, tags={schema.ROLE: schema.SEARCH})  # empty, and the newest
        twin = client.create_run(experiment, tags={**ours.tags, schema.ASKED_AT: "9999"})
        for name, text in ours.params.items():
            client.log_param(twin.info.run_id, name, text)
        client.set_terminated(twin.info.run_id, "FINISHED")
        hostile = {schema.ROLE: schema.TRAIN, schema.LEASE: "[" * 900, schema.ERROR: "\x1b[2J"}
        odd = client.create_run(experiment, 2**63 - 1, hostile, "\x1b]52;c;x\x07\u202e")
        client.log_metric(odd.info.run_id, "best_val_accuracy", float("nan"))

    assert [track(*words).stdout for words in commands] == before
    # Asked for by name, it is said where the files would go; nothing goes there.
    for words in (("search", *SMALL), ("report", "--run-id", twin.info.run_id)):
        done = track(*words, "--experiment", "mallory's")
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
    assert not folder.exists()
    listed = track("runs", "--experiment", "mallory's")
    assert "Traceback" not in listed.stderr
    assert "\x1b" not in listed.stdout + listed.stderr
