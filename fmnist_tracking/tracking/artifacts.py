"""Files of runs and models: read and written where the opened store may have them, nowhere else.

A store says where the files of its runs are. Whoever may write to the store, or runs the server,
could name any folder of this machine, or another server, which would be given the password.
"""

import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from fmnist_tracking.config import TRUST_ARTIFACT_LOCATION
from fmnist_tracking.errors import TrackingError
from fmnist_tracking.files import open_untrusted
from fmnist_tracking.redact import printable
from fmnist_tracking.tracking import locations
from fmnist_tracking.tracking.store import Store

_SERVED = ("http", "https", "mlflow-artifacts")
# In bytes: a search's summary has 640 or so for each trial, if none failed.
_LARGEST_RECORD = 200_000_000
# The last two lead to where another run, or a version of a model, has its files.
_NOWHERE = ("", "file", "runs", "models")


def files_at(store: Store, location: str) -> ArtifactRepository:
    """Return MLflow's access to the files at a location that the store has named.

    Raises:
        TrackingError: the location is on this machine, but outside the artifact root of the store,
            or on another web server, or leads to another run.
    """
    require_trusted(store, location)
    return get_artifact_repository(location, tracking_uri=store.uri)


def files_of_run(store: Store, run_id: str) -> ArtifactRepository:
    """Return access to the files of a run; raise what `files_at` does."""
    if run_id not in store.artifact_uris:
        store.artifact_uris[run_id] = str(store.client.get_run(run_id).info.artifact_uri)
    return files_at(store, store.artifact_uris[run_id])


def without_files(store: Store, run_ids: Iterable[str]) -> list[str]:
    """Return those of the runs, written by this process, whose files on this machine are gone."""
    folders = {
        run_id: locations.local_path(store.artifact_uris.get(run_id, "")) for run_id in run_ids
    }
    return [run_id for run_id, folder in folders.items() if folder and not folder.exists()]


def log_files(store: Store, run_id: str, files: Mapping[str, bytes | str]) -> None:
    """Log files as artifacts of a run, given their contents by path."""
    with tempfile.TemporaryDirectory() as scratch:
        for name, content in files.items():
            path = Path(scratch, name)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        files_of_run(store, run_id).log_artifacts(scratch)  # type: ignore[no-untyped-call]


def read_file(store: Store, location: str, name: str) -> bytes:
    """Read a file at a location.

    Raises:
        OSError: it is too large to be one of a run's records, or cannot be read.
        TrackingError: see `files_at`.
    """
    with tempfile.TemporaryDirectory() as scratch:
        copy = fetch_file(store, location, name, Path(scratch), _LARGEST_RECORD)
        with open_untrusted(copy, _LARGEST_RECORD) as file:
            return file.read()


def fetch_file(
    store: Store, location: str, name: str, folder: Path, most: int | None = None
) -> Path:
    """Copy a file at a location into a folder, and return its path; raise what `files_at` does.

    One of this machine that has more than `most` bytes is refused, by an `OSError`.
    """
    require_trusted(store, location)
    folder.mkdir(parents=True, exist_ok=True)
    source = locations.local_path(location)
    if source is None:
        return Path(files_at(store, location).download_artifacts(name, str(folder)))  # type: ignore[no-untyped-call]
    # MLflow would start threads for each run whose files are read.
    copy = folder / name
    copy.parent.mkdir(parents=True, exist_ok=True)
    with open_untrusted(source / name, most) as file, copy.open("wb") as written:
        shutil.copyfileobj(file, written)
    return copy


def require_trusted(store: Store, location: str) -> None:
    """Raise `TrackingError` for a place that a store may not choose; see `files_at`."""
    if os.environ.get(TRUST_ARTIFACT_LOCATION) == "1":
        return
    folder = locations.local_path(location)
    try:
        parts = urlsplit(location)
    except ValueError:
        parts = urlsplit("")
    if folder is None and parts.scheme in _NOWHERE:
        raise _refused(store, location, "no place that this program can use")
    if folder is not None:
        _require_inside(store, location, folder)
    own = urlsplit(store.uri)
    # Without a host, it is the store's server.
    is_own = parts.netloc.lower() in ("", own.netloc.lower()) and (
        parts.scheme in ("mlflow-artifacts", own.scheme)
    )
    if parts.scheme in _SERVED and not is_own:
        raise _refused(store, location, "on another server, which would be given your password")


def _require_inside(store: Store, location: str, folder: Path) -> None:
    if any(old in folder.parents for old in store.moved_from):
        raise TrackingError(store.moved_line())
    root = locations.artifact_root(store.uri)
    # A link inside the root was put there by whoever owns it. MLflow decodes plain paths, too.
    spelled = {folder, Path(unquote(location))} if location.startswith("/") else {folder}
    places = [Path(os.path.normpath(one)) for one in spelled]
    if root is None or not all(root in place.parents for place in places):
        inside = "a store on a server has none here" if root is None else f"it is {root}"
        raise _refused(store, location, f"outside the artifact root of that store ({inside})")


def _refused(store: Store, location: str, why: str) -> TrackingError:
    return TrackingError(
        f"The store {store.public_uri} names {printable(location)!r} for these files, "
        f"which is {why}. Nothing is read or written there. If you know that place and mean it, "
        f"give --trust-artifact-location, or set {TRUST_ARTIFACT_LOCATION}=1 in a program."
    )
