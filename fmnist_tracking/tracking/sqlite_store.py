"""The file of a SQLite store: permissions, contents, creation and replacement."""

import contextlib
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from mlflow import MlflowClient

from fmnist_tracking.errors import TrackingError, setting
from fmnist_tracking.tracking.error_messages import damaged, is_locked, tracking_error
from fmnist_tracking.tracking.locations import (
    relocate,
    require_place_for_files,
    sqlite_uri,
    without_stray_folder,
    working_folder,
)

# What a store is opened for; `create` makes one where there is none.
Access = Literal["read", "write", "create"]
# How long to wait for another process's lock.
_LOCKED_SECONDS = 20
# Bytes: SQLite's 512, less 8 for what it appends to the names of its own files.
_LONGEST_PATH = 504
# SQLite's message for a file, opened read-only, whose writer was killed halfway.
_HALF_WRITTEN = "readonly database"


def is_yet_to_be_made(path: Path) -> bool:
    """Return whether the file is missing or empty."""
    return not path.exists() or path.stat().st_size == 0


def require_usable(path: Path, access: Access) -> None:
    """Refuse a file that this user cannot use as a SQLite store.

    Raises:
        TrackingError: it is missing, is not a file, or cannot be read or written.
    """
    if path.exists():
        if not path.is_file():
            raise TrackingError(
                f"Expected {path} to be a SQLite file, but it is a folder or a device. Name "
                f"another with {setting('tracking_uri')}."
            )
        if access != "read" and not can_be_written(path):
            raise TrackingError(
                f"The MLflow store {path} cannot be written by this user. Change the permissions "
                f"of the file and its folder, or name another with {setting('tracking_uri')}."
            )
        if not os.access(path, os.R_OK):
            raise TrackingError(
                f"The MLflow store {path} cannot be read by this user. Change its permissions, or "
                f"name another with {setting('tracking_uri')}."
            )
    elif access != "create":
        raise TrackingError(no_store(path))
    elif not os.access(path.parent, os.W_OK):
        raise TrackingError(
            f"The MLflow store {path} cannot be created: its folder is missing or cannot be "
            f"written. Work in another folder, or name a store with {setting('tracking_uri')}."
        )


def no_store(where: object) -> str:
    """Return a line that says that there is no store at a place yet."""
    return (
        f"There is no MLflow store {where} yet. Run `fmnist-track search` first, or go to the "
        f"folder where you ran it, or name the store with {setting('tracking_uri')}."
    )


def look(path: Path) -> tuple[set[str], str | None]:
    """Return the names of a file's tables, and the revision of MLflow's tables.

    Raises:
        TrackingError: it cannot be read, stays locked, or is not a database.
    """
    try:
        try:
            return _read(path, "ro")
        except sqlite3.OperationalError as error:
            if _HALF_WRITTEN not in str(error):
                raise
            if not can_be_written(path):
                raise TrackingError(
                    f"The MLflow store {path} is half written: a process that wrote to it was "
                    "killed. What it left is undone by the first command that may write, but the "
                    "file or its folder cannot be written by this user. Let its owner run "
                    "`fmnist-track runs` once."
                ) from None
            return _read(path, "rw")  # SQLite undoes the unfinished write
    except sqlite3.OperationalError as error:
        if is_locked(error):
            raise tracking_error(sqlite_uri(path), error) from None
        raise TrackingError(
            f"The MLflow store {path} cannot be read ({error}). Check the disk, and the "
            "permissions of the file and its folder."
        ) from None
    except sqlite3.DatabaseError as error:
        if "malformed" in str(error):
            raise damaged(str(path), str(error)) from None
        raise TrackingError(
            f"{path} cannot be read as a SQLite database ({error}). Name another file with "
            f"{setting('tracking_uri')}."
        ) from None


def _read(path: Path, mode: str) -> tuple[set[str], str | None]:
    address = f"file:{quote(str(path))}?mode={mode}"
    connection = sqlite3.connect(address, uri=True, timeout=_LOCKED_SECONDS)
    with contextlib.closing(connection):
        rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        tables = {name for (name,) in rows}
        if "alembic_version" not in tables:
            return tables, None
        versions = connection.execute("SELECT version_num FROM alembic_version").fetchall()
        return tables, versions[0][0] if versions else None


def can_be_written(path: Path) -> bool:
    """Return whether this user may write a SQLite file, which takes its folder too."""
    return os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)


def make(path: Path) -> None:
    """Create a store in a temporary folder, then copy it into a missing or empty file in one step.

    MLflow creates its tables one by one; if it is killed halfway, it can never open the file again.

    Raises:
        TrackingError: the file cannot be written or stays locked, or the files of runs have no
            place.
    """
    require_place_for_files(path)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".mlflow-") as folder:
        new = Path(folder).resolve() / path.name
        _require_openable(new, path)
        address = sqlite_uri(new)
        with without_stray_folder(address):
            MlflowClient(address).search_experiments(max_results=1)
        # MLflow puts its default experiment into the working folder, wherever the store is.
        relocate(new, {working_folder()}, path.parent)
        with held(path) as connection:
            (tables,) = connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
            if tables == 0:  # else another process was faster
                fill(connection, new)


def _require_openable(new: Path, path: Path) -> None:
    """Raise `TrackingError` if SQLite cannot make a file for a store: MLflow tries for minutes."""
    try:
        with contextlib.closing(sqlite3.connect(new)) as connection:
            connection.execute("PRAGMA user_version = 0")
    except sqlite3.Error as error:
        length = len(os.fsencode(new))
        way_out = f"Name another place with {setting('tracking_uri')}."
        if length > _LONGEST_PATH:
            way_out = f"SQLite takes paths of {_LONGEST_PATH} bytes, not of {length}. {way_out}"
        raise TrackingError(
            f"The MLflow store {path} cannot be made ({error}). {way_out}"
        ) from None


@contextlib.contextmanager
def held(path: Path) -> Iterator[sqlite3.Connection]:
    """Lock a SQLite file against all other processes, and yield a connection to it.

    Its write-ahead log is merged first.

    Raises:
        TrackingError: it stays locked, or cannot be written.
    """
    try:
        connection = sqlite3.connect(path, timeout=_LOCKED_SECONDS, isolation_level=None)
        with contextlib.closing(connection):
            (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
            # The lock must outlast a transaction: a backup cannot be made within one.
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            connection.execute("PRAGMA journal_mode = DELETE")
            connection.execute("BEGIN EXCLUSIVE")
            connection.execute("COMMIT")
            try:
                yield connection
            finally:
                connection.execute("PRAGMA locking_mode = NORMAL")
                if mode == "wal":
                    connection.execute("PRAGMA journal_mode = WAL")
    except (sqlite3.Error, OSError) as error:
        if is_locked(error):
            raise tracking_error(sqlite_uri(path), error) from None
        raise TrackingError(
            f"The MLflow store {path} cannot be written ({error}). Check the disk, and the "
            "permissions of the file and its folder."
        ) from None


def fill(connection: sqlite3.Connection, new: Path) -> None:
    """Replace the content of a SQLite file with another file's, completely or not at all."""
    with contextlib.closing(sqlite3.connect(new)) as content:
        content.backup(connection)


def copy(connection: sqlite3.Connection, path: Path) -> None:
    """Copy the content of a SQLite file to a new file."""
    path.unlink(missing_ok=True)
    with contextlib.closing(sqlite3.connect(path)) as copy:
        connection.backup(copy)
