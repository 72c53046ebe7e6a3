"""Where a SQLite store and the files of its runs are, and how addresses are updated after a move.

A SQLite store is a file, usually `mlflow.db`, with the files of its runs in `mlruns/` beside it.
Its tables hold the full address of each run's files, which becomes wrong when the folder is moved.
"""

import contextlib
import hashlib
import os
import re
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from mlflow import is_tracking_uri_set
from mlflow.environment_variables import MLFLOW_ALLOW_FILE_STORE
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from fmnist_tracking.errors import TrackingError, setting
from fmnist_tracking.redact import without_user

_SQLITE = "sqlite:///"
# SQLAlchemy before 2.1 does not percent-decode the path.
_IS_DECODED = make_url(f"{_SQLITE}%20").database == " "
# In any spelling: with the name of a driver, or in capitals.
_ANY_SQLITE = re.compile(r"^sqlite(\+\w+)?:", re.IGNORECASE)
_DEFAULT_FILE = "mlflow.db"
_FILES = "mlruns"
# The limit of common file systems, in bytes.
_LONGEST_NAME = 255
_HOST = re.compile(r"(localhost|[\w-]+(\.[\w-]+)*):\d+(/.*)?")
# The columns that hold addresses of files.
_ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
    ("trace_tags", "value"),
)


def default_uri() -> str | None:
    """Return the address of `mlflow.db` in the working folder; None if the environment names one.

    MLflow's own default is percent-encoded, which not every version of SQLAlchemy decodes.

    Raises:
        TrackingError: the working folder was removed.
    """
    if is_tracking_uri_set():  # type: ignore[no-untyped-call]
        return None
    return sqlite_uri(working_folder() / _DEFAULT_FILE)


def working_folder() -> Path:
    """Return the working folder; raise `TrackingError` if it was removed."""
    try:
        return Path.cwd()
    except FileNotFoundError:
        raise TrackingError(
            "The working folder is not there any more. Change to another folder, and give this "
            "command again."
        ) from None


def sqlite_file(uri: str) -> Path | None:
    """Return the full path of the file behind an address, None if it is not a SQLite address.

    Raises:
        TrackingError: the address names no file, or is relative to a working folder that was
            removed.
    """
    plain, many = _ANY_SQLITE.subn("sqlite:", uri)
    if not many:
        return None
    try:
        url = make_url(plain)
        database, is_plain = url.database, "uri" not in url.query
    except ArgumentError:
        database, is_plain = None, False
    if not database or database == ":memory:" or not plain.startswith(_SQLITE) or not is_plain:
        raise TrackingError(
            f"Expected the address of a SQLite file, got {uri!r}. "
            f"Example: {_SQLITE}{working_folder() / _DEFAULT_FILE}"
        )
    path = Path(database)
    if not _IS_DECODED:  # MLflow percent-encodes its default
        decoded = Path(unquote(database))
        path = decoded if decoded.exists() and not path.exists() else path
    path = path if path.is_absolute() else working_folder() / path
    if ".." in path.parts:  # after a symbolic link, `..` is not the folder before it
        path = path.parent.resolve() / path.name
    return Path(os.path.normpath(path))


def sqlite_uri(path: Path) -> str:
    """Return the address under which SQLAlchemy opens exactly this file.

    Raises:
        TrackingError: there is no such address.
    """
    for spelled in (str(path), quote(str(path), safe="/ #&+@:;=,!()'$[]~")):
        uri = _SQLITE + spelled
        if make_url(uri).database == str(path):
            return uri
    raise TrackingError(
        f"The installed SQLAlchemy cannot open {path}, because of the ? in it. Rename the folder, "
        "or install SQLAlchemy 2.1, which needs Python 3.11."
    )


def resolve(uri: str) -> str:
    """Return the full address of a store; for SQLite, one that is the same in every folder.

    Raises:
        TrackingError: the text is not an address (the message has the one that was probably meant),
            or it is relative to a working folder that was removed.
    """
    if not uri.strip():
        raise TrackingError(
            f"Expected the address of an MLflow store, got {uri!r}. Unset MLFLOW_TRACKING_URI for "
            f"{_DEFAULT_FILE} in the working folder, or name another with "
            f"{setting('tracking_uri')}."
        )
    path = sqlite_file(uri)
    if path is not None:
        _, mark, parameters = uri.partition("?")  # for SQLAlchemy, such as ?timeout=30
        return sqlite_uri(path) + mark + parameters
    meant = None
    if _HOST.fullmatch(uri):
        meant = f"http://{uri}"
    elif "://" not in uri and uri.endswith((".db", ".sqlite", ".sqlite3")):
        meant = sqlite_uri(working_folder() / uri)
    elif re.fullmatch(r"https?:/?[^/].*", uri):
        scheme, _, rest = uri.partition(":")
        meant = f"{scheme}://{rest.lstrip('/')}"
    elif uri.startswith(("file:", ".", "/")) or os.path.isfile(uri) or uri == _FILES:
        _refuse_files(uri)
    if meant is not None:
        raise TrackingError(
            f"Expected the address of an MLflow store, got {without_user(uri)!r}. "
            f"Did you mean {without_user(meant)}?"
        )
    return uri


def _refuse_files(uri: str) -> None:
    """Raise `TrackingError` for a store of files, which MLflow refuses unless it is told not to."""
    if MLFLOW_ALLOW_FILE_STORE.get():  # type: ignore[no-untyped-call]
        return
    place = local_path(uri) or Path(uri.removeprefix("file:"))
    folder = place.parent if place.name == _FILES or place.is_file() else place
    meant = sqlite_uri((working_folder() / folder).resolve() / _DEFAULT_FILE)
    raise TrackingError(
        f"Expected the address of an MLflow store, got {without_user(uri)!r}, which names files: "
        f"MLflow keeps runs in a database, unless {MLFLOW_ALLOW_FILE_STORE.name} is true. Did you "
        f"mean {meant}?"
    )


@contextlib.contextmanager
def without_stray_folder(uri: str) -> Iterator[None]:
    """Remove the empty folders that MLflow creates because it does not decode an address."""
    literal = Path(uri.removeprefix(_SQLITE)).parent if uri.startswith(_SQLITE) else None
    with without_new_folders(literal):
        yield


@contextlib.contextmanager
def without_new_folders(folder: Path | None) -> Iterator[None]:
    """Remove a folder and its parents afterwards, those that were missing and are empty."""
    missing = []
    while folder is not None and not folder.exists():
        missing.append(folder)
        folder = folder.parent
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            for made in missing:
                made.rmdir()


def files_of(database: Path, name: str) -> str:
    """Return the address for an experiment's files: below `mlruns` beside the database."""
    folder = re.sub(r"[^\w.-]+", "-", name).strip("-.") or "experiment"
    if len(folder.encode()) > _LONGEST_NAME:
        start = folder.encode()[: _LONGEST_NAME - 17].decode(errors="ignore")
        folder = f"{start}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    return (database.parent / _FILES / folder).as_uri()


def require_place_for_files(database: Path) -> None:
    """Raise `TrackingError` if `mlruns`, for the files of a new store, exists but is no folder."""
    folder = database.parent / _FILES
    if os.path.lexists(folder) and not folder.is_dir():
        what = "is not a folder" if folder.exists() else "is a link that leads nowhere"
        raise TrackingError(
            f"The files of runs are to be kept in {folder}, which {what}. Remove or mend it, or "
            "work in another folder."
        )


def artifact_root(uri: str) -> Path | None:
    """Return the folder for the files of a store's runs, None for a store on a server.

    For a database that is no file, it is where MLflow puts them: in the working folder.
    """
    path = sqlite_file(uri)
    if path is not None:
        return path.parent / _FILES
    if uri.startswith(("http://", "https://")):
        return None
    return local_path(uri) or working_folder() / (_FILES if "://" in uri else uri)


def local_path(address: str) -> Path | None:
    """Return the folder that an artifact address names, None if it names none on this machine."""
    try:
        path = unquote(urlsplit(address).path) if address.startswith("file:") else address
    except ValueError:  # not an address at all, such as file://[
        return None
    return Path(path) if path.startswith("/") and "\0" not in path else None


def elsewhere(
    database: Path | None, addresses: Iterable[str]
) -> tuple[frozenset[Path], frozenset[Path]]:
    """Find the missing folders, other than its own, that a SQLite store names for `mlruns`.

    The addresses are the artifact locations of its experiments.

    Returns:
        First, the folders that held the database before it was moved or copied: their files are
        here now, or no experiment has its files here. Second, the folders that cannot be reached,
        for instance on a disk that is not mounted. A folder that exists was chosen on purpose, and
        is in neither set.
    """
    if database is None:
        return frozenset(), frozenset()
    here = database.parent
    moved_from: set[Path] = set()
    missing: set[Path] = set()
    some_are_here = False
    for address in addresses:
        location = local_path(address)
        if location is None or _FILES not in location.parts:
            continue
        parts = location.parts
        at = len(parts) - 1 - parts[::-1].index(_FILES)
        base, rest = Path(*parts[:at]), Path(*parts[at:])
        if base == here or _is_same(base, here):
            some_are_here = True
        elif (here / rest).exists():
            moved_from.add(base)
        elif not base.exists():
            missing.add(base)
    if some_are_here or moved_from:
        return frozenset(moved_from), frozenset(missing - moved_from)
    return frozenset(missing), frozenset()


def not_reached_line(folder: Path) -> str:
    """Return a line that says that a folder for the files of runs is missing."""
    return (
        f"The files at {folder / _FILES} are not reached: {folder} is not there. If it is on "
        f"another disk, mount it; else work in another experiment, with {setting('experiment')}."
    )


def relocate(database: Path, bases: Iterable[Path], to: Path) -> int:
    """Replace old folders by the new one in the addresses of files; return how many there were."""
    changed = 0
    with contextlib.closing(sqlite3.connect(database, timeout=20)) as connection, connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        for old in bases:
            # Old addresses are plain paths or file: URLs; new ones are URLs.
            for spelled in dict.fromkeys((str(old / _FILES), (old / _FILES).as_uri())):
                for table, column in _ADDRESSES:
                    if table in tables:
                        changed += connection.execute(
                            f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                            f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                            (
                                (to / _FILES).as_uri(),
                                len(spelled) + 1,
                                spelled,
                                len(spelled) + 1,
                                f"{spelled}/",
                            ),
                        ).rowcount
    return changed


def identity(path: Path) -> str:
    """Return what distinguishes a file from all others on this machine, whatever its name.

    The inode number alone does not: files on two disks may have the same.
    """
    return f"inode {path.stat().st_ino} of file system {os.statvfs(path).f_fsid}"


def _is_same(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False
