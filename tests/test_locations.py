"""SQLite stores in folders of any name, moved, copied, made anew, and named in odd ways."""

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
import sqlalchemy

from conftest import Run
from fmnist_tracking import tracking
from fmnist_tracking.errors import TrackingError
from fmnist_tracking.tracking import Store, locations, open_store, tracking_uri
from fmnist_tracking.tracking.artifacts import read_file
from fmnist_tracking.tracking.leases import Lease

NAMES = ("plain", "my project", "é", "a&b", "a?b", "a#b", "a%20b", "c%b", "a+b", "é my #1 project")


def fill(store: Store, text: str = "kept") -> str:
    """Make a run with a file in the usual experiment; give its id."""
    experiment = store.experiment_id("fashion-mnist")
    run = store.client.create_run(experiment)
    store.client.log_text(run.info.run_id, text, "folder/file.txt")
    return str(run.info.run_id)


def read(store: Store, run_id: str) -> str:
    uri = store.client.get_run(run_id).info.artifact_uri
    return str(mlflow.artifacts.load_text(f"{uri}/folder/file.txt"))


def inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder.mkdir()
    monkeypatch.chdir(folder)
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_every_folder_name_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = inside(tmp_path / name, monkeypatch)
    before = set(tmp_path.iterdir())
    if "?" in name and sqlalchemy.__version__.startswith("2.0."):
        with pytest.raises(TrackingError, match="SQLAlchemy"), open_store(access="create"):
            pass
        assert list(folder.iterdir()) == []
        return
    with open_store(access="create") as store:
        run_id = fill(store)
        assert read(store, run_id) == "kept"
    assert {entry.name for entry in folder.iterdir()} == {"mlflow.db", "mlruns"}
    assert set(tmp_path.iterdir()) == before  # nothing beside it
    assert len(list(folder.glob("mlruns/fashion-mnist/*/artifacts/folder/file.txt"))) == 1
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
    with open_store() as store:
        assert read(store, run_id) == "kept"
    # As MLflow itself spells the address of this folder, and hands it to what it starts.
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
    uri = mlflow.get_tracking_uri()
    with open_store(uri) as store:
        assert read(store, run_id) == "kept"
    assert set(tmp_path.iterdir()) == before


def test_files_lie_beside_the_database_wherever_one_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    folder = inside(tmp_path / "here", monkeypatch)
    with open_store(f"sqlite:///{elsewhere}/mlflow.db", access="create") as store:
        fill(store)
        default = store.client.get_experiment("0").artifact_location
        assert locations.local_path(default) == elsewhere / "mlruns" / "0"
    assert list(folder.iterdir()) == []
    assert {entry.name for entry in elsewhere.iterdir()} == {"mlflow.db", "mlruns"}


@pytest.mark.parametrize("how", ["moved", "copied"])
@pytest.mark.parametrize("name", ["new", "a new & é #2"])
def test_a_store_that_was_moved_is_recognised_and_put_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, name: str
) -> None:
    old, new = inside(tmp_path / "old one", monkeypatch), tmp_path / name
    with open_store(access="create") as store:
        run_id = fill(store)
        deleted = store.client.create_experiment("deleted", str(old / "mlruns" / "9"))
        store.client.delete_experiment(deleted)
    (shutil.move if how == "moved" else shutil.copytree)(old, new)
    monkeypatch.chdir(new)
    files = sorted(new.rglob("*"))
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
    words = f"was moved or copied here from {old}.*doctor --relocate"
    for create in (False, True):
        with (
            pytest.raises(TrackingError, match=words),
            open_store(access="create" if create else "read"),
        ):
            pass
    with open_store(files=False) as store:
        run = store.client.get_run(run_id)
        with pytest.raises(TrackingError, match=words):  # not that the place is a strange one
            read_file(store, run.info.artifact_uri, "a.txt")
        assert tracking.relocate(store) > 0
    with open_store() as store:
        assert store.moved_from == frozenset()
        assert read(store, run_id) == "kept"
        another = fill(store, "new")
        assert read(store, another) == "new"
        assert tracking.relocate(store) == 0
    assert (how == "moved") != old.exists()
    assert set(files) <= set(new.rglob("*"))
    if how == "copied":
        with open_store(locations.sqlite_uri(old / "mlflow.db")) as store:
            assert read(store, run_id) == "kept"
            assert not list(old.rglob(another))


def test_files_that_were_put_elsewhere_on_purpose_stay_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside(tmp_path / "here", monkeypatch)
    disk = tmp_path / "disk" / "mlruns"
    disk.mkdir(parents=True)
    with open_store(access="create") as store:
        store.client.create_experiment("large", disk.as_uri())
    with open_store() as store:
        assert store.moved_from == frozenset()


@pytest.fixture
def away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store with an experiment whose files are on a disk that was taken away since."""
    here = inside(tmp_path / "here", monkeypatch)
    disk = tmp_path / "disk"
    (disk / "mlruns" / "5").mkdir(parents=True)
    with open_store(access="create") as store:
        fill(store)
        store.client.create_experiment("large", (disk / "mlruns" / "5").as_uri())
    disk.rename(tmp_path / "taken away")
    return here


@pytest.mark.parametrize("files", [True, False])
def test_a_disk_that_is_not_there_is_no_store_that_was_moved(
    away: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, files: bool
) -> None:
    with open_store(files=files) as store:
        assert store.moved_from == frozenset()
        assert tracking.choose_experiment(store, "fashion-mnist")
        another = fill(store)
        assert read(store, another) == "kept"
    (line,) = caplog.messages
    assert f"files at {tmp_path}/disk/mlruns are not reached" in line


def test_nothing_is_put_where_a_disk_is_not_there(
    away: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_store() as store:
        with pytest.raises(TrackingError, match=f"files at {tmp_path}/disk/mlruns are not reached"):
            tracking.choose_experiment(store, "large")
        large = store.client.get_experiment_by_name("large")
        assert large is not None
        with pytest.raises(TrackingError, match="are not reached"):
            tracking.try_artifacts(store, large.experiment_id)
    assert not (tmp_path / "disk").exists()
    (tmp_path / "taken away").rename(tmp_path / "disk")
    monkeypatch.setenv("FMNIST_TRUST_ARTIFACT_LOCATION", "1")  # it was put there on purpose
    with open_store() as store:
        assert tracking.choose_experiment(store, "large") == large.experiment_id


def test_a_store_that_was_moved_is_told_from_a_disk_that_is_not_there(
    away: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = tmp_path / "there"
    away.rename(there)
    monkeypatch.chdir(there)
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
    with open_store(files=False) as store:
        assert store.moved_from == {away}
        assert tracking.relocate(store) > 0
    with open_store() as store:
        large = store.client.get_experiment_by_name("large")
        assert large is not None
        assert large.artifact_location == f"file://{tmp_path}/disk/mlruns/5"


def test_a_store_is_not_relocated_under_a_search(store: Store) -> None:
    run = store.client.create_run(store.experiment_id("fashion-mnist"))
    store.client.set_tag(run.info.run_id, "fmnist.role", "search")
    lease = Lease.of_this_process()
    store.client.set_tag(run.info.run_id, "fmnist.lease", lease.text())
    with pytest.raises(TrackingError, match="is in progress"):
        tracking.relocate(store)


def test_a_store_is_known_by_what_it_is_not_by_its_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def identity(uri: str | None = None) -> str:
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
        with open_store(uri, access="create") as store:
            return store.identity(store.experiment_id("fashion-mnist"))

    first = inside(tmp_path / "first", monkeypatch)
    one = identity("sqlite:///mlflow.db")
    assert one == identity() == identity(f"sqlite:///{first}/../first/mlflow.db")
    (tmp_path / "link").symlink_to(first)
    assert one == identity(f"sqlite:///{tmp_path}/link/mlflow.db")
    second = inside(tmp_path / "second", monkeypatch)
    other = identity("sqlite:///mlflow.db")  # the same relative address
    assert other != one
    shutil.rmtree(second)
    inside(second, monkeypatch)
    assert identity() not in (one, other)  # made anew in the same place
    third = tmp_path / "third"
    first.rename(third)
    with open_store(f"sqlite:///{third}/mlflow.db", files=False) as store:
        assert store.identity(store.experiment_id("fashion-mnist")) == one


def test_copies_of_a_store_are_told_apart_on_whatever_disk(
    store: Store, tmp_path: Path, mount: Callable[[str], Path]
) -> None:
    known = [store.identity("0")]
    for name in ("one", "other"):
        disk = mount(name)
        shutil.copyfile(tmp_path / "mlflow.db", disk / "mlflow.db")
        with open_store(f"sqlite:///{disk}/mlflow.db", files=False) as opened:
            known.append(opened.identity("0"))
    inodes = {(tmp_path / name / "mlflow.db").stat().st_ino for name in ("one", "other")}
    assert len(inodes) == 1  # the first file of either
    assert len(set(known)) == 3


@pytest.mark.parametrize(
    ("uri", "meant"),
    [
        ("127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("localhost:5000", "http://localhost:5000"),
        ("tracking.example.org:8080/mlflow", "http://tracking.example.org:8080/mlflow"),
        ("http:/127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("https:example.org", "https://example.org"),
        ("mlflow.db", "sqlite:///{here}/mlflow.db"),
        ("folder/runs.sqlite", "sqlite:///{here}/folder/runs.sqlite"),
        ("sqlite://mlflow.db", "Example: sqlite:///{here}/mlflow.db"),
        ("sqlite:mlflow.db", "Example: sqlite:///{here}/mlflow.db"),
        ("sqlite://", "Example: sqlite:///{here}/mlflow.db"),
        ("sqlite:///:memory:", "Example: sqlite:///{here}/mlflow.db"),
        ("./mlruns", "Did you mean sqlite:///{here}/mlflow.db?"),
        ("./some/folder", "Did you mean sqlite:///{here}/some/folder/mlflow.db?"),
        ("file:///some/folder", "Did you mean sqlite:////some/folder/mlflow.db?"),
    ],
)
@pytest.mark.parametrize("by", ["option", "environment"])
def test_an_address_that_is_nearly_one_leads_to_the_right_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, meant: str, by: str
) -> None:
    if by == "environment":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    for create in (True, False):
        with (
            pytest.raises(TrackingError) as caught,
            open_store(uri if by == "option" else None, access="create" if create else "read"),
        ):
            pass
        assert meant.format(here=tmp_path) in str(caught.value)
    assert list(tmp_path.iterdir()) == []


SPELLED = (
    *("sqlite+pysqlite:///{}", "SQLite:///{}", "SQLITE+PYSQLITE:///{}"),
    *("sqlite:///{}?timeout=30", "sqlite+pysqlite:///{}?timeout=30&check_same_thread=false"),
)


@pytest.mark.parametrize("spelled", SPELLED)
def test_however_a_sqlite_address_is_spelled_the_file_is_looked_at_first(
    tmp_path: Path, spelled: str
) -> None:
    theirs = tmp_path / "theirs.db"
    for create in (True, False):
        if not create:
            with (
                pytest.raises(TrackingError, match="There is no MLflow store"),
                open_store(spelled.format(theirs)),
            ):
                pass
            assert list(tmp_path.iterdir()) == []
        theirs.touch()
        with contextlib.closing(sqlite3.connect(theirs)) as rows:
            rows.execute("CREATE TABLE IF NOT EXISTS notes (text TEXT)")
        before = theirs.read_bytes()
        with (
            pytest.raises(TrackingError, match="not of MLflow"),
            open_store(spelled.format(theirs), access="create" if create else "read"),
        ):
            pass
        assert theirs.read_bytes() == before
        theirs.unlink()


@pytest.mark.parametrize("spelled", SPELLED)
def test_however_a_sqlite_address_is_spelled_it_is_the_same_store(
    store: Store, tmp_path: Path, spelled: str
) -> None:
    with open_store(spelled.format("mlflow.db")) as opened:
        assert opened.identity("0") == store.identity("0")
        assert opened.uri.startswith(store.uri)
        assert opened.uri.partition("?")[2] == spelled.partition("?")[2]
        assert opened.can_be_written


@pytest.mark.parametrize(
    "uri", ["sqlite:///file:mlflow.db?mode=ro&uri=true", "sqlite:///mlflow.db?uri=true"]
)
def test_sqlite_s_own_kind_of_address_is_refused(store: Store, tmp_path: Path, uri: str) -> None:
    for create in (True, False):
        with (
            pytest.raises(TrackingError, match=rf"Example: sqlite:///{tmp_path}/mlflow.db"),
            open_store(uri, access="create" if create else "read"),
        ):
            pass


@pytest.mark.parametrize("uri", ["databricks", "databricks://profile", "odd://x"])
def test_an_address_that_another_package_serves_is_left_to_mlflow(tmp_path: Path, uri: str) -> None:
    with pytest.raises(TrackingError) as caught, open_store(uri):
        pass
    assert "There is no MLflow store" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("letter", ["n", "é", "長"])
def test_an_experiment_s_name_may_be_longer_than_a_folder_s(store: Store, letter: str) -> None:
    for name in (letter * 300, letter * 299 + "m"):
        run = store.client.create_run(store.experiment_id(name))
        store.client.log_text(run.info.run_id, name, "name.txt")
        uri = store.client.get_run(run.info.run_id).info.artifact_uri
        assert mlflow.artifacts.load_text(f"{uri}/name.txt") == name
    folders = {location.parent.name for location in Path.cwd().glob("mlruns/*/*")}
    assert len(folders) == 2
    assert all(folder.startswith(letter * 50) for folder in folders)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("file", "is not a folder"),
        ("link to a file", "is not a folder"),
        ("link", "is a link that leads nowhere"),
    ],
)
def test_no_store_is_made_where_its_files_have_no_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, why: str
) -> None:
    folder = inside(tmp_path / "here", monkeypatch)
    if kind == "file":
        (folder / "mlruns").write_text("mine")
    else:
        (folder / "mlruns").symlink_to(tmp_path / "there")
    if kind == "link to a file":
        (tmp_path / "there").write_text("mine")
    with (
        pytest.raises(TrackingError, match=f"mlruns, which {why}"),
        open_store(access="create"),
    ):
        pass
    with pytest.raises(TrackingError, match=why):  # what `doctor` asks
        tracking.require_can_be_made()
    assert [entry.name for entry in folder.iterdir()] == ["mlruns"]
    (folder / "mlruns").unlink()
    (tmp_path / "disk").mkdir()
    (folder / "mlruns").symlink_to(tmp_path / "disk")
    with open_store(access="create") as store:
        assert read(store, fill(store)) == "kept"


def test_no_folder_is_made_by_looking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    for uri in (
        "./mlruns",
        f"file://{tmp_path}/mlruns",
        "sqlite:///a/b.db",
        "sqlite:///c%20d/e.db",
    ):
        with pytest.raises(TrackingError, match="There is no MLflow store"), open_store(uri):
            pass
    assert list(tmp_path.iterdir()) == []


def test_a_working_folder_that_was_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    for uri in (
        *(None, "mlflow.db", "sqlite:mlflow.db", "sqlite://", "sqlite:///mlflow.db"),
        *("sqlite+pysqlite:///a/b.db", "./mlruns", f"sqlite:///{tmp_path}/mlflow.db"),
    ):
        for create in (True, False):
            with (
                pytest.raises(TrackingError, match="The working folder is not there any more"),
                open_store(uri, access="create" if create else "read"),
            ):
                pass


def test_a_stray_folder_is_removed_when_opening_fails(tmp_path: Path) -> None:
    with (
        contextlib.suppress(ValueError),
        locations.without_stray_folder(f"sqlite:///{tmp_path}/a%20b/c/mlflow.db"),
    ):
        (tmp_path / "a%20b" / "c").mkdir(parents=True)
        raise ValueError
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_place_of_the_file(tmp_path: Path) -> None:
    os.mkdir(tmp_path / "mlflow.db")
    with pytest.raises(TrackingError, match="is a folder or a device"), open_store(access="create"):
        pass


@pytest.mark.skipif(not locations._IS_DECODED, reason="SQLAlchemy 2.0 leaves that to us")
def test_a_folder_whose_name_is_another_s_encoded_has_a_store_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a b", "a%20b"):
        (tmp_path / name).mkdir()
    (tmp_path / "a b" / "mlflow.db").touch()
    monkeypatch.chdir(tmp_path / "a%20b")
    assert locations.sqlite_file(tracking_uri()) == tmp_path / "a%20b" / "mlflow.db"


def test_the_way_up_from_a_link_is_that_of_the_system(tmp_path: Path) -> None:
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "link").symlink_to(tmp_path / "real" / "deep")
    file = locations.sqlite_file(f"sqlite:///{tmp_path}/here/link/../x.db")
    assert file == tmp_path / "real" / "x.db"


def test_an_address_of_blanks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", " ")
    with pytest.raises(TrackingError, match=r"got ' '\. Unset MLFLOW_TRACKING_URI"), open_store():
        pass


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("MLFLOW_SQLALCHEMYSTORE_POOL_SIZE", "abc", "MLFLOW_SQLALCHEMYSTORE_POOL_SIZE"),
        ("MLFLOW_SQLALCHEMYSTORE_POOLCLASS", "Foo", "Invalid poolclass parameter: Foo"),
        ("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db?timeout=abc", "float: 'abc'"),
    ],
)
def test_a_setting_that_mlflow_cannot_use_is_told_in_a_line(
    command: Run, store: Store, variable: str, value: str, said: str
) -> None:
    done = command("runs", **{variable: value})
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    assert said in done.stderr


def test_a_level_of_logging_that_is_none_is_another_program_s(command: Run, store: Store) -> None:
    done = command("runs", MLFLOW_LOGGING_LEVEL="foo")
    assert done.stderr.startswith("Error: There is no search in the experiment")
