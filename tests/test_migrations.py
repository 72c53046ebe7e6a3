"""Databases of other versions of MLflow, and other people's: refused, and not changed by a byte."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
from alembic import command as command_
from mlflow.store.db.utils import _get_alembic_config
from mlflow.store.tracking.dbmodels.initial_models import Base as InitialBase
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from conftest import Run
from fmnist_tracking.errors import TrackingError
from fmnist_tracking.tracking import Store, migrations, open_store, sqlite_store
from fmnist_tracking.tracking.leases import Lease

READING = (
    ("runs",),
    ("best",),
    ("runs", "--repair"),
    ("report", "--run-id", "latest"),
    ("predict", "--run-id", "best", "boot.png"),
    ("activations", "--run-id", "best"),
    ("predictions", "--run-id", "best"),
    ("promote", "--run-id", "best"),
    ("ui", "--port", "5999"),
    ("doctor",),
    ("search", "--limit", "600", "--epochs", "1", "--dry-run"),
    ("search", "--limit", "600", "--epochs", "1"),
)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def execute(path: Path, statement: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as rows, rows:
        rows.execute(statement)


def test_the_installed_version_s_revision_is_known(store: Store) -> None:
    with contextlib.closing(sqlite3.connect("mlflow.db")) as rows:
        ((revision,),) = rows.execute("SELECT version_num FROM alembic_version").fetchall()
    release = ".".join(mlflow.__version__.split(".")[:2])
    assert release in migrations._RELEASES[revision], "add it to _RELEASES"


def assert_refused_unchanged(folder: Path, create: bool, words: str) -> None:
    before = sha256(folder / "mlflow.db")
    with (
        pytest.raises(TrackingError, match=words),
        open_store(access="create" if create else "read", upgrade=True),
    ):
        pass
    assert sha256(folder / "mlflow.db") == before
    assert [entry.name for entry in folder.iterdir()] == ["mlflow.db"]


@pytest.mark.parametrize("create", [True, False])
def test_a_database_of_a_newer_version_is_refused(
    store: Store, tmp_path: Path, create: bool
) -> None:
    execute(tmp_path / "mlflow.db", "UPDATE alembic_version SET version_num = 'abcdef012345'")
    assert_refused_unchanged(tmp_path, create, rf"of a newer MLflow.*{mlflow.__version__}")


@pytest.mark.parametrize("tables", [("notes",), ("alembic_version", "users"), ("a", "b", "c", "d")])
@pytest.mark.parametrize("create", [True, False])
def test_somebody_else_s_database_is_refused(
    tmp_path: Path, tables: tuple[str, ...], create: bool
) -> None:
    for table in tables:
        execute(tmp_path / "mlflow.db", f"CREATE TABLE {table} (version_num TEXT)")
    execute(tmp_path / "mlflow.db", f"INSERT INTO {tables[0]} VALUES ('abc')")
    assert_refused_unchanged(tmp_path, create, f"not of MLflow.*{tables[0]}")


def test_an_empty_file_is_no_store_yet(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").touch()
    with pytest.raises(TrackingError, match="There is no MLflow store"), open_store():
        pass
    assert (tmp_path / "mlflow.db").stat().st_size == 0
    with open_store(access="create") as store:
        store.experiment_id("mine")


MAKES = """
from fmnist_tracking.tracking import open_store

with open_store(access="create") as store:
    print(store.experiment_id("mine"))
"""


def test_an_empty_file_becomes_a_store_as_a_missing_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, elsewhere = tmp_path / "there", tmp_path / "elsewhere"
    for folder in (there, elsewhere):
        folder.mkdir()
    monkeypatch.chdir(elsewhere)
    (there / "mlflow.db").touch()
    with open_store(f"sqlite:///{there}/mlflow.db", access="create") as store:
        location = store.client.get_experiment("0").artifact_location
    assert location == (there / "mlruns" / "0").as_uri()
    assert [entry.name for entry in there.iterdir()] == ["mlflow.db"]
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("empty", [True, False])
def test_two_that_make_one_store_get_one(tmp_path: Path, empty: bool) -> None:
    if empty:
        (tmp_path / "mlflow.db").touch()
    both = [
        subprocess.Popen([sys.executable, "-c", MAKES], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert said[0] == said[1]
    assert [entry.name for entry in tmp_path.iterdir()] == ["mlflow.db"]


def test_a_store_is_made_where_there_are_no_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:  # as exFAT, SMB and some of FUSE do
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with open_store(access="create") as store:
        store.experiment_id("mine")
    assert [entry.name for entry in tmp_path.iterdir()] == ["mlflow.db"]


def test_reading_a_current_store_changes_no_byte(store: Store, tmp_path: Path) -> None:
    store.experiment_id("mine")
    before = sha256(tmp_path / "mlflow.db")
    for files in (True, False):
        with open_store(files=files) as opened:
            opened.client.search_experiments()
    assert sha256(tmp_path / "mlflow.db") == before


def python(code: str, *arguments: object) -> "subprocess.Popen[str]":
    """Run some lines in a process of its own, until they say that they are there."""
    started = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, text=True
    )
    assert started.stdout is not None
    assert started.stdout.readline() == "there\n"
    return started


def kill(process: "subprocess.Popen[str]") -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


OLDER = "b7e2c1a4d9f3"


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """A store as the release of MLflow before the installed one makes it."""
    path = tmp_path / "mlflow.db"
    engine = create_engine(f"sqlite:///{path}", poolclass=NullPool)
    InitialBase.metadata.create_all(engine)
    config = _get_alembic_config(f"sqlite:///{path}")  # type: ignore[no-untyped-call]
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command_.upgrade(config, OLDER)
    execute(path, "INSERT INTO experiments (experiment_id, name, artifact_location, "
                  f"lifecycle_stage, creation_time) VALUES (0, 'Default', '{tmp_path}/mlruns/0', "
                  "'active', 1)")  # fmt: skip
    return path


def experiments(path: Path) -> set[str]:
    with contextlib.closing(sqlite3.connect(path)) as rows:
        return {name for (name,) in rows.execute("SELECT name FROM experiments")}


def kept_copy(path: Path) -> Path:
    return path.with_name(f"mlflow.db.{OLDER}.bak")


@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_an_upgrade_loses_nothing_that_was_committed(older: Path, mode: str) -> None:
    kill(python(COMMITS, older, mode))
    assert (mode == "wal") == older.with_name("mlflow.db-wal").exists()
    inode = older.stat().st_ino
    for upgrade in (True, False):
        with open_store(upgrade=upgrade) as opened:
            assert {one.name for one in opened.client.search_experiments()} == {"Default", "last"}
    assert experiments(kept_copy(older)) == {"Default", "last"}
    assert older.stat().st_ino == inode
    assert {entry.name for entry in older.parent.iterdir()} <= {
        *("mlflow.db", kept_copy(older).name, "mlflow.db-wal", "mlflow.db-shm")
    }


@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_a_store_in_use_is_not_upgraded(
    older: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setattr(sqlite_store, "_LOCKED_SECONDS", 0.1)
    holder = python(WRITES, older, mode)
    words = "is locked by another process"
    with pytest.raises(TrackingError, match=words), open_store(upgrade=True):
        pass
    assert not kept_copy(older).exists()
    kill(holder)
    with open_store(upgrade=True):
        pass


@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_a_store_is_not_upgraded_under_a_search(older: Path, mode: str) -> None:
    execute(older, f"PRAGMA journal_mode = {mode}")
    lease = Lease.of_this_process()
    run = "0123456789abcdef0123456789abcdef"
    with contextlib.closing(sqlite3.connect(older)) as rows, rows:
        rows.execute("INSERT INTO runs (run_uuid, status, lifecycle_stage, experiment_id) "
                     "VALUES (?, 'RUNNING', 'active', 0)", (run,))  # fmt: skip
        rows.execute("INSERT INTO tags VALUES ('fmnist.lease', ?, ?)", (lease.text(), run))
    with pytest.raises(TrackingError, match=r"run 01234567.*in progress"), open_store(upgrade=True):
        pass
    with contextlib.closing(sqlite3.connect(older)) as rows:
        assert rows.execute("SELECT version_num FROM alembic_version").fetchall() == [(OLDER,)]
        assert rows.execute("PRAGMA journal_mode").fetchall() == [(mode,)]
    assert not kept_copy(older).exists()
    execute(older, "UPDATE runs SET status = 'KILLED'")
    with open_store(upgrade=True):
        pass


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_upgrade_that_is_killed_leaves_the_store_as_it_was(older: Path, when: str) -> None:
    done = subprocess.run([sys.executable, "-c", DIES, when], stdin=subprocess.DEVNULL)
    assert done.returncode == -signal.SIGKILL
    assert experiments(older) == {"Default"}
    with pytest.raises(TrackingError, match="--upgrade-store"), open_store():
        pass
    with open_store(upgrade=True) as opened:
        assert [one.name for one in opened.client.search_experiments()] == ["Default"]


def test_an_upgrade_that_was_done_meanwhile_leaves_the_copy(
    older: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = migrations._look
    looked: list[str] = []

    def look_and_be_late(uri: str) -> tuple[set[str], str | None]:
        found = look(uri)
        if not looked:
            looked.append(uri)
            with open_store(upgrade=True):
                pass
        return found

    monkeypatch.setattr(migrations, "_look", look_and_be_late)
    with open_store(upgrade=True):
        pass
    with contextlib.closing(sqlite3.connect(kept_copy(older))) as rows:
        assert rows.execute("SELECT version_num FROM alembic_version").fetchall() == [(OLDER,)]


def test_what_alembic_cannot_upgrade_is_told_in_a_line(older: Path) -> None:
    execute(older, "INSERT INTO alembic_version VALUES ('abcdef012345')")
    with pytest.raises(TrackingError) as caught, open_store(upgrade=True):
        pass
    assert "abcdef012345" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert experiments(older) == {"Default"}


@pytest.fixture(scope="module", params=["2.22.4", "3.1.4"])
def old_mlflow(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with an older MLflow."""
    version: str = request.param
    folder = tmp_path_factory.mktemp(f"mlflow-{version}")
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or "uv"
    subprocess.run([uv, "venv", "--python", sys.executable, str(folder)], check=True)
    python = folder / "bin" / "python"
    packages = (f"mlflow=={version}", "sqlalchemy<2.1", "setuptools<80")
    subprocess.run([uv, "pip", "install", "--python", str(python), *packages], check=True)
    return python


@pytest.mark.slow
def test_a_store_of_an_older_version_is_refused_or_upgraded_as_told(
    old_mlflow: Path, tmp_path: Path, called: Run
) -> None:
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}

    def with_the_old_one(code: str) -> str:
        done = subprocess.run(
            [str(old_mlflow), "-c", f"import mlflow\n{code}"],
            cwd=tmp_path,
            env=clean,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    with_the_old_one(
        "mlflow.set_tracking_uri('sqlite:///mlflow.db')\n"
        "mlflow.set_experiment('theirs')\n"
        "with mlflow.start_run(): mlflow.log_metric('a', 1.5)"
    )
    before = sha256(tmp_path / "mlflow.db")
    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db")) as rows:
        dump = list(rows.iterdump())
    files = sorted(tmp_path.rglob("*"))
    for arguments in READING:
        done = called(*arguments)
        assert done.returncode == 1
        said = done.stdout + done.stderr
        assert "is of MLflow " in said, said
        assert mlflow.__version__ in said
        assert "doctor --upgrade-store" in said
        assert "Traceback" not in said
        assert sha256(tmp_path / "mlflow.db") == before
    left = set(tmp_path.rglob("*")) - set(files)
    assert {path.relative_to(tmp_path).parts[0] for path in left} <= {"state"}

    done = called("doctor", "--upgrade-store", "--json")
    assert done.returncode == 0, done.stdout
    (kept,) = tmp_path.glob("mlflow.db.*.bak")
    with contextlib.closing(sqlite3.connect(kept)) as rows:
        assert list(rows.iterdump()) == dump
    small = ("--filters", "4", "--strides", "2", "--kernel-sizes", "3", "--hidden-units", "8")
    done = called("search", "--limit", "600", "--epochs", "1", *small, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["finished"] == 1
    with open_store(f"sqlite:///{tmp_path}/mlflow.db") as store:
        theirs = store.client.get_experiment_by_name("theirs")
        assert theirs is not None
        (run,) = store.client.search_runs([theirs.experiment_id])
        assert run.data.metrics == {"a": 1.5}
    seen = with_the_old_one(
        f"mlflow.set_tracking_uri('sqlite:///{kept}')\n"
        "print(mlflow.search_runs(experiment_names=['theirs'])['metrics.a'].tolist())"
    )
    assert seen.strip() == "[1.5]"


WRITES_FOR_EVER = """
import sqlite3, sys, time
rows = sqlite3.connect(sys.argv[1], isolation_level=None)
rows.execute(f"PRAGMA journal_mode = {sys.argv[2]}")
rows.execute("PRAGMA cache_size = 5")
rows.execute("BEGIN")
for number in range(2000):
    rows.execute("INSERT INTO experiments (name) VALUES (?)", (f"{number} " + "x" * 200,))
print("there", flush=True)
time.sleep(600)
"""


COMMITS = """
import sqlite3, sys, time
rows = sqlite3.connect(sys.argv[1], isolation_level=None)
rows.execute(f"PRAGMA journal_mode = {sys.argv[2]}")
rows.execute("INSERT INTO experiments (name, artifact_location, lifecycle_stage, creation_time) "
             "SELECT 'last', artifact_location, 'active', 2 FROM experiments")
print("there", flush=True)
time.sleep(600)
"""
# Not more than is kept in memory: readers are not shut out yet.
WRITES = """
import sqlite3, sys, time
rows = sqlite3.connect(sys.argv[1], isolation_level=None)
rows.execute(f"PRAGMA journal_mode = {sys.argv[2]}")
rows.execute("BEGIN IMMEDIATE")
rows.execute("UPDATE experiments SET name = 'another'")
print("there", flush=True)
time.sleep(600)
"""
DIES = """
import os, signal, sys
from fmnist_tracking.tracking import migrations, open_store

upgrade = migrations._upgrade_db

def die(engine):
    if sys.argv[1] == "after":
        upgrade(engine)
    os.kill(os.getpid(), signal.SIGKILL)

migrations._upgrade_db = die
with open_store(upgrade=True):
    pass
"""


def leave_half_written(path: Path, mode: str = "delete") -> None:
    """Kill a process while it writes, more than it keeps in memory."""
    kill(python(WRITES_FOR_EVER, path, mode))
    assert path.with_name(f"{path.name}-{'journal' if mode == 'delete' else 'wal'}").stat().st_size


@pytest.mark.parametrize("mode", ["delete", "wal"])
@pytest.mark.parametrize("create", [True, False])
def test_a_store_whose_writer_was_killed_is_opened(
    store: Store, tmp_path: Path, mode: str, create: bool
) -> None:
    experiment = store.experiment_id("mine")
    leave_half_written(tmp_path / "mlflow.db", mode)
    with open_store(access="create" if create else "read") as opened:
        found = {one.experiment_id for one in opened.client.search_experiments()}
    assert found == {"0", experiment}
    assert not (tmp_path / "mlflow.db-journal").exists()


@pytest.fixture
def read_only(mount: Callable[[str], Path]) -> Path:
    """A file system that can be made to take no more writing, whoever asks."""
    return mount("disk")


def test_a_half_written_store_that_may_only_be_read_is_told(
    store: Store, tmp_path: Path, read_only: Path
) -> None:
    shutil.copyfile(tmp_path / "mlflow.db", read_only / "mlflow.db")
    leave_half_written(read_only / "mlflow.db")
    subprocess.run(["mount", "-o", "remount,ro", str(read_only)], check=True)
    words = "a process that wrote .* was killed.*cannot be written by this user"
    with (
        pytest.raises(TrackingError, match=words) as caught,
        open_store(f"sqlite:///{read_only}/mlflow.db"),
    ):
        pass
    assert "\n" not in str(caught.value)


def test_a_store_that_cannot_be_read_where_it_lies_is_told(
    store: Store, tmp_path: Path, read_only: Path
) -> None:
    shutil.copyfile(tmp_path / "mlflow.db", read_only / "mlflow.db")
    execute(read_only / "mlflow.db", "PRAGMA journal_mode = wal")  # wants files beside it
    subprocess.run(["mount", "-o", "remount,ro", str(read_only)], check=True)
    with (
        pytest.raises(TrackingError, match=r"cannot be read \(.*permissions of the file"),
        open_store(f"sqlite:///{read_only}/mlflow.db"),
    ):
        pass


LOCKS = """
import sqlite3, sys, time
rows = sqlite3.connect(sys.argv[1], isolation_level=None)
rows.execute("BEGIN EXCLUSIVE")
print("there", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("create", [True, False])
def test_a_database_that_is_locked_is_waited_for_when_it_is_opened(
    store: Store, tmp_path: Path, create: bool
) -> None:
    holder = python(LOCKS, tmp_path / "mlflow.db")
    later = threading.Timer(1, kill, [holder])
    later.start()
    with open_store(access="create" if create else "read") as opened:
        assert holder.poll() is not None
        opened.client.search_experiments()
    later.join()


@pytest.mark.parametrize("create", [True, False])
def test_a_database_that_stays_locked_is_called_so(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, create: bool
) -> None:
    monkeypatch.setattr(sqlite_store, "_LOCKED_SECONDS", 0.1)
    holder = python(LOCKS, tmp_path / "mlflow.db")
    words = r"mlflow.db is locked by another process \(database is locked\)"
    with (
        pytest.raises(TrackingError, match=words) as caught,
        open_store(access="create" if create else "read"),
    ):
        pass
    kill(holder)
    assert "another file" not in str(caught.value)


@pytest.mark.parametrize("content", [b"no database at all", b"SQLite format 3\0" + b"x" * 5000])
def test_what_is_no_database_is_called_so(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "mlflow.db").write_bytes(content)
    assert_refused_unchanged(tmp_path, True, "cannot be read as a SQLite database.*another file")
