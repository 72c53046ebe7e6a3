"""Errors of stores, databases and places of files, each made for real: do they pass or not?"""

import contextlib
import http.client
import importlib
import json
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import mlflow
import pytest
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from mlflow.store.db.db_types import SQLITE
from mlflow.store.db.utils import _get_managed_session_maker
from sqlalchemy import Engine, create_engine, orm, text
from sqlalchemy.pool import QueuePool

from conftest import Run
from fmnist_tracking import tracking
from fmnist_tracking.errors import TrackingError
from fmnist_tracking.tracking import Store, open_store
from fmnist_tracking.tracking.error_messages import Fault, opening_error, sort, tracking_error
from servers import free_port, serving

SMALL = (
    *("--limit", "600", "--epochs", "1", "--filters", "4"),
    *("--strides", "2", "--kernel-sizes", "3", "--hidden-units", "8"),
)


def raised(action: Callable[[], object]) -> BaseException:
    try:
        action()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


Engines = Callable[..., Engine]


@pytest.fixture
def engine_of() -> Iterator[Engines]:
    """Makes SQLAlchemy's engines, and closes their connections at the end."""
    with contextlib.ExitStack() as stack:

        def make(uri: str, **options: Any) -> Engine:
            engine = create_engine(uri, **options)
            stack.callback(engine.dispose)
            return engine

        yield make


def session(engine: Engine) -> Any:
    """MLflow's own session, which turns SQLAlchemy's errors into its own."""
    maker = orm.sessionmaker(bind=engine)
    return _get_managed_session_maker(maker, SQLITE)  # type: ignore[no-untyped-call]


def test_a_pool_without_a_free_connection_passes(
    store: Store, tmp_path: Path, engine_of: Engines
) -> None:
    pool = {"poolclass": QueuePool, "pool_size": 1, "max_overflow": 0, "pool_timeout": 0.05}
    make = session(engine_of(f"sqlite:///{tmp_path}/mlflow.db", **pool))

    def two_at_once() -> None:
        with make() as first:
            first.execute(text("SELECT 1"))
            with make() as second:
                second.execute(text("SELECT 1"))

    error = raised(two_at_once)
    assert isinstance(error, MlflowException)
    assert "QueuePool limit" in str(error)
    assert error.error_code == "BAD_REQUEST"
    assert sort(error) is Fault.PASSING


@pytest.mark.parametrize(
    ("statement", "fault"),
    [
        ("SELECT * FROM no_such_table", Fault.FINAL),
        ("SELECT no_such_column FROM runs", Fault.FINAL),
        ("INSERT INTO experiments (experiment_id) VALUES ('x')", Fault.FINAL),
        ("SELEC 1", Fault.FINAL),
    ],
)
def test_what_a_database_refuses_is_final(
    store: Store, tmp_path: Path, engine_of: Engines, statement: str, fault: Fault
) -> None:
    make = session(engine_of(f"sqlite:///{tmp_path}/mlflow.db"))

    def run() -> None:
        with make() as opened:
            opened.execute(text(statement))

    assert sort(raised(run)) is fault


def test_a_locked_database_passes(store: Store, tmp_path: Path, engine_of: Engines) -> None:
    holder = sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    engine = engine_of(f"sqlite:///{tmp_path}/mlflow.db", connect_args={"timeout": 0.05})

    def write() -> None:
        with engine.begin() as opened:
            opened.execute(text("DELETE FROM runs"))

    error = raised(write)
    holder.close()
    assert "locked" in str(error)
    assert sort(error) is Fault.PASSING
    assert "is locked by another process" in str(tracking_error(store.uri, error))
    assert "is locked by another process" in str(opening_error(store.uri, error))


def test_a_database_that_may_not_be_written_is_final(
    store: Store, tmp_path: Path, engine_of: Engines
) -> None:
    engine = engine_of(f"sqlite:///file:{tmp_path}/mlflow.db?mode=ro&uri=true")

    def write() -> None:
        with engine.begin() as opened:
            opened.execute(text("DELETE FROM runs"))

    error = raised(write)
    assert "readonly database" in str(error)
    assert sort(error) is Fault.FINAL


def test_a_damaged_database_is_final_and_told(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    content = bytearray(path.read_bytes())
    content[4096:] = os.urandom(len(content) - 4096)
    path.write_bytes(content)
    with pytest.raises(TrackingError) as caught, open_store():
        pass
    assert "\n" not in str(caught.value)
    assert sort(caught.value) is Fault.FINAL


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("mlflow-artifacts:/here", "only a tracking server can reach"),
        ("s3://bucket/here", "needs the Python package boto3"),
        ("gs://bucket/here", "pip install google-cloud-storage"),
        ("wasbs://container@account.blob.core.windows.net/x", "pip install azure-storage-blob"),
        ("odd://somewhere", "Could not find a registered artifact repository"),
    ],
)
def test_a_place_of_files_that_can_never_work_is_final(
    store: Store, location: str, words: str
) -> None:
    experiment = store.client.create_experiment("elsewhere", location)
    run = store.client.create_run(experiment)

    def write() -> None:
        store.client.log_text(run.info.run_id, "text", "file.txt")

    error = raised(write)
    assert sort(error) is Fault.FINAL
    assert words in str(tracking_error(store.uri, error))
    with pytest.raises(TrackingError, match=words), open_store() as opened:
        tracking.try_artifacts(opened, experiment)


@pytest.mark.slow
@pytest.mark.parametrize("location", ["mlflow-artifacts:/here", "s3://bucket/here"])
def test_a_search_says_at_once_that_files_cannot_be_kept(
    called: Run, store: Store, location: str
) -> None:
    experiment = store.client.create_experiment("fashion-mnist", location)
    done = called("search", *SMALL)
    assert done.returncode == 1
    assert "epoch 1/" not in done.stderr
    assert done.stderr.count("Error: ") == 1
    assert "Traceback" not in done.stderr
    assert {run.info.status for run in store.client.search_runs([experiment])} <= {"FAILED"}
    told = called("doctor", "--json")
    assert told.returncode == 1
    (found,) = (check for check in json.loads(told.stdout) if check["name"] == "MLflow store")
    assert not found["ok"]


def test_files_are_written_read_and_removed_without_a_trace(store: Store, tmp_path: Path) -> None:
    experiment = store.experiment_id("fashion-mnist")
    place = tracking.try_artifacts(store, experiment)
    assert place is not None
    assert "mlruns/fashion-mnist" in place
    assert not (tmp_path / "mlruns").exists()
    run = store.client.create_run(experiment)
    store.client.log_text(run.info.run_id, "text", "file.txt")
    before = sorted((tmp_path / "mlruns").rglob("*"))
    tracking.try_artifacts(store, experiment)
    assert sorted((tmp_path / "mlruns").rglob("*")) == before


@pytest.mark.parametrize("name", [None, "mine"])
def test_before_the_first_search_its_own_place_is_tried(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str | None
) -> None:
    if name is not None:
        monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", name)
    # MLflow's own experiment is none of the search's: it may be anywhere, or not be there.
    for statement in (
        "UPDATE experiments SET artifact_location = 's3://bucket/here'",
        "DELETE FROM experiments",
    ):
        with contextlib.closing(sqlite3.connect("mlflow.db")) as rows, rows:
            rows.execute(statement)
        place = tracking.try_artifacts(store, None)
        assert place == (tmp_path / "mlruns" / (name or "fashion-mnist")).as_uri()
    assert not (tmp_path / "mlruns").exists()


def test_a_file_that_cannot_be_read_back_is_removed(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = store.experiment_id("fashion-mnist")

    def fail(*_: object, **__: object) -> str:
        raise MlflowException("cannot be read back")

    monkeypatch.setattr(LocalArtifactRepository, "download_artifacts", fail)
    with pytest.raises(TrackingError, match="cannot be read back"), open_store() as opened:
        tracking.try_artifacts(opened, experiment)
    assert not (tmp_path / "mlruns").exists()


@pytest.mark.parametrize(
    "action",
    [
        lambda: Path("folder").read_text(),
        lambda: Path("nowhere", "at", "all").read_text(),
        lambda: Path("folder").mkdir(),
        lambda: importlib.import_module("no_such_package"),
    ],
)
def test_an_error_of_other_files_and_packages_is_not_the_store_s(
    store: Store, action: Callable[[], object]
) -> None:
    Path("folder").mkdir()
    kind = type(raised(action))
    with pytest.raises(kind), open_store():
        action()


def test_an_error_of_the_files_of_runs_is_the_store_s(store: Store, tmp_path: Path) -> None:
    run = store.client.create_run(store.experiment_id("fashion-mnist"))
    (tmp_path / "mlruns").touch()  # a file in place of the folder
    for action in (
        lambda: store.client.log_text(run.info.run_id, "text", "file.txt"),
        lambda: mlflow.artifacts.load_text(f"{run.info.artifact_uri}/file.txt"),
    ):
        with pytest.raises(TrackingError, match="MLflow failed at"), open_store():
            action()


@pytest.mark.parametrize(
    "error", [TypeError("no"), KeyError("k"), AssertionError(), ZeroDivisionError()]
)
def test_a_defect_of_ours_is_called_one(error: Exception) -> None:
    assert sort(error) is Fault.OURS
    said = str(tracking_error("sqlite:///mlflow.db", error))
    assert said.startswith("A defect of fmnist-track")
    assert type(error).__name__ in said
    with pytest.raises(type(error)), open_store(access="create"):
        raise error


class Proxy(BaseHTTPRequestHandler):
    """Passes requests for one name that no resolver knows on to a port of this machine."""

    port = 0
    asked: list[str] = []  # noqa: RUF012  # one for each server, by `proxy`

    def _pass_on(self) -> None:
        address = urlsplit(self.path)
        self.asked.append(f"{address.scheme}://{address.netloc}")
        length = int(self.headers.get("Content-Length") or 0)
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        path = address.path + (f"?{address.query}" if address.query else "")
        headers = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "connection")}
        connection.request(self.command, path, self.rfile.read(length), headers)
        with contextlib.closing(connection), connection.getresponse() as answer:
            content = answer.read()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _pass_on

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def proxy() -> Iterator[tuple[str, type[Proxy]]]:
    handler = type("Handler", (Proxy,), {"port": free_port(), "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", handler
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.slow
def test_a_server_behind_a_proxy_is_reached(
    called: Run, tmp_path: Path, proxy: tuple[str, type[Proxy]]
) -> None:
    address, handler = proxy
    folder = tmp_path / "server"
    folder.mkdir()
    with serving(handler.port, folder, "mlflow", "server"):
        behind = {"HTTP_PROXY": address, "http_proxy": address, "NO_PROXY": ""}
        uri = ("--tracking-uri", "http://tracking.invalid")
        done = called("search", *SMALL, *uri, "--json", **behind)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["finished"] == 1
        assert called("best", *uri, **behind).returncode == 0
    assert set(handler.asked) == {"http://tracking.invalid"}
    done = called("runs", *uri)
    assert done.returncode == 1
    assert "cannot be reached" in done.stderr
    assert "Failed to resolve 'tracking.invalid'" in done.stderr


class TooOld(BaseHTTPRequestHandler):
    """Says of itself that it is an old MLflow, and answers nothing else."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/version" else 404)
        self.end_headers()
        self.wfile.write(b"2.22.4")

    def log_message(self, *_: object) -> None:
        pass


def test_a_server_that_is_too_old_says_so_before_anything_else() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), TooOld)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        uri = f"http://127.0.0.1:{server.server_port}"
        for create in (True, False):
            with (
                pytest.raises(TrackingError, match=r"is version 2\.22\.4, too old.*3\.1 or newer"),
                open_store(uri, access="create" if create else "read"),
            ):
                pass
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
def test_a_store_that_was_cut_short_says_how_to_save_what_can_be(
    store: Store, tmp_path: Path, called: Run, kept: float
) -> None:
    file = tmp_path / "mlflow.db"
    os.truncate(file, int(file.stat().st_size * kept))
    for words in (("runs",), ("search", *SMALL), ("doctor",)):
        done = called(*words)
        assert done.returncode == 1
        said = done.stdout + done.stderr
        assert "Traceback" not in said
        (line,) = (line for line in said.splitlines() if "is malformed" in line)
        assert "`sqlite3 mlflow.db .recover | sqlite3 recovered.db`" in line
