"""Where a SQLite store and the files of its runs lie, and moving the addresses after them.

A SQLite store is a file, usually `mlflow.db`, with the files of its runs in `mlruns/` beside it.
Its tables hold the full address of each run's files, which is wrong once the folder is moved.
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
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from fmnist_tracking.addresses import without_user
from fmnist_tracking.errors import TrackingError

_SQLITE = "sqlite:///"
# SQLAlchemy before 2.1 does not decode what is percent-encoded.
_IS_DECODED = make_url(f"{_SQLITE}%20").database == " "
# However it is spelled: with a driver's name in it, or in capitals.
_ANY_SQLITE = re.compile(r"^sqlite(\+\w+)?:", re.IGNORECASE)
_DEFAULT_FILE = "mlflow.db"
_FILES = "mlruns"
# Bytes in the name of a folder, on the file systems in use.
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

    MLflow's own is percent-encoded, which not every version of SQLAlchemy undoes.

    Raises:
        TrackingError: the working folder was removed.
    """
    if is_tracking_uri_set():  # type: ignore[no-untyped-call]
        return None
    return sqlite_uri(working_folder() / _DEFAULT_FILE)


def working_folder() -> Path:
    """Return the working folder.

    Raises:
        TrackingError: it was removed.
    """
    try:
        return Path.cwd()
    except FileNotFoundError:
        raise TrackingError(
            "The working folder is not there any more. Change to another folder, and give this "
            "command again."
        ) from None


def sqlite_file(uri: str) -> Path | None:
    """Return the full path of the file behind an address; None if it is not SQLite's.

    Raises:
        TrackingError: it names no file, or is relative to a working folder that was removed.
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
    if ".." in path.parts:  # after a link, it leads elsewhere than the text says
        path = path.parent.resolve() / path.name
    return Path(os.path.normpath(path))


def sqlite_uri(path: Path) -> str:
    """Return the address under which SQLAlchemy opens this very file.

    Raises:
        TrackingError: there is none.
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
    """Return the address in full; of a SQLite store, one that means the same in every folder.

    Raises:
        TrackingError: it is none, and then the message has the one that was probably meant; or it
            is relative to a working folder that was removed.
    """
    if not uri.strip():
        raise TrackingError(
            f"Expected the address of an MLflow store, got {uri!r}. Unset MLFLOW_TRACKING_URI for "
            f"{_DEFAULT_FILE} in the working folder, or name another with --tracking-uri."
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
    if meant is not None:
        raise TrackingError(
            f"Expected the address of an MLflow store, got {without_user(uri)!r}. "
            f"Did you mean {without_user(meant)}?"
        )
    return uri


@contextlib.contextmanager
def without_stray_folder(uri: str) -> Iterator[None]:
    """Remove the empty folders that MLflow makes for an address whose encoding it does not undo."""
    literal = Path(uri.removeprefix(_SQLITE)).parent if uri.startswith(_SQLITE) else None
    made = []
    while literal is not None and not literal.exists():
        made.append(literal)
        literal = literal.parent
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            for folder in made:
                folder.rmdir()


def files_of(database: Path, name: str) -> str:
    """Return the address for the files of an experiment: below `mlruns` beside the database."""
    folder = re.sub(r"[^\w.-]+", "-", name).strip("-.") or "experiment"
    if len(folder.encode()) > _LONGEST_NAME:
        start = folder.encode()[: _LONGEST_NAME - 17].decode(errors="ignore")
        folder = f"{start}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    return (database.parent / _FILES / folder).as_uri()


def require_place_for_files(database: Path) -> None:
    """Refuse a folder in which a store is to be made, and something else is where its files go.

    Raises:
        TrackingError: `mlruns` is there, and is no folder.
    """
    folder = database.parent / _FILES
    if os.path.lexists(folder) and not folder.is_dir():
        what = "is not a folder" if folder.exists() else "is a link that leads nowhere"
        raise TrackingError(
            f"The files of runs are to be kept in {folder}, which {what}. Remove or mend it, or "
            "work in another folder."
        )


def local_path(address: str) -> Path | None:
    """Return the folder that an address of files means; None if it is not on this machine."""
    if address.startswith("file:"):
        return Path(unquote(urlsplit(address).path))
    return Path(address) if address.startswith("/") else None


def elsewhere(database: Path, addresses: Iterable[str]) -> tuple[frozenset[Path], frozenset[Path]]:
    """Find the folders, other than its own, that a store names for `mlruns` and that are gone.

    Args:
        database: the store's file.
        addresses: of its experiments' files, as the store has them.

    Returns:
        Folders that held the database before it was moved or copied: their files are here, or none
        of the experiments has its place here. And folders that are out of reach, on a disk that is
        not mounted for instance. A folder that is there was chosen on purpose, and is in neither.
    """
    here = database.parent
    held: set[Path] = set()
    gone: set[Path] = set()
    some_lie_here = False
    for address in addresses:
        location = local_path(address)
        if location is None or _FILES not in location.parts:
            continue
        parts = location.parts
        at = len(parts) - 1 - parts[::-1].index(_FILES)
        base, rest = Path(*parts[:at]), Path(*parts[at:])
        if base == here or _is_same(base, here):
            some_lie_here = True
        elif (here / rest).exists():
            held.add(base)
        elif not base.exists():
            gone.add(base)
    if some_lie_here or held:
        return frozenset(held), frozenset(gone - held)
    return frozenset(gone), frozenset()


def not_reached_line(folder: Path) -> str:
    """Say, in a line, that a folder that a store names for the files of its runs is not there."""
    return (
        f"The files at {folder / _FILES} are not reached: {folder} is not there. If it is on "
        "another disk, mount it; else work in another experiment: --experiment NAME."
    )


def relocate(database: Path, bases: Iterable[Path], *, to: Path | None = None) -> int:
    """Write, in all tables, the addresses of files anew: those below old folders, for this one.

    Args:
        database: the store's file.
        bases: folders that held it before.
        to: the folder that holds it; by default the one that it is in.

    Returns:
        How many addresses were changed.
    """
    new = to or database.parent
    changed = 0
    with contextlib.closing(sqlite3.connect(database, timeout=20)) as connection, connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        for old in bases:
            # As a plain path and as a file's address, which is how the new one is written too.
            for spelled in dict.fromkeys((str(old / _FILES), (old / _FILES).as_uri())):
                for table, column in _ADDRESSES:
                    if table in tables:
                        changed += connection.execute(
                            f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                            f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                            (
                                (new / _FILES).as_uri(),
                                len(spelled) + 1,
                                spelled,
                                len(spelled) + 1,
                                f"{spelled}/",
                            ),
                        ).rowcount
    return changed


def identity(path: Path) -> str:
    """Return what tells a file from all others on this machine, whatever it is called.

    The number of a file alone does not: on two disks, two files may have the same.
    """
    return f"inode {path.stat().st_ino} of file system {os.statvfs(path).f_fsid}"


def _is_same(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False
