"""The place where a store keeps the files of runs: is it right, and can it be used."""

import contextlib
import tempfile
import uuid
from pathlib import Path

from mlflow.entities import Experiment
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from fmnist_tracking.errors import TrackingError
from fmnist_tracking.redact import without_user
from fmnist_tracking.tracking import locations, migrations
from fmnist_tracking.tracking.experiments import experiment_ids, name_in_use
from fmnist_tracking.tracking.resume import live_runs
from fmnist_tracking.tracking.sqlite_store import require_usable
from fmnist_tracking.tracking.store import Store


def relocate(store: Store) -> int:
    """Give a SQLite store that was moved the addresses of where the files of its runs are now.

    Returns:
        How many addresses were changed.

    Raises:
        TrackingError: it is no SQLite store, cannot be written, or a search is working on it.
    """
    path = locations.sqlite_file(store.uri)
    if path is None:
        raise TrackingError(
            f"Only a SQLite store can be relocated, and {store.public_uri} is none: whoever runs "
            "it knows where its files are."
        )
    require_usable(path, create=False, write=True)
    live = live_runs(store, experiment_ids(store, None))
    if live:
        raise TrackingError(migrations.run_in_progress(live[0]))
    return locations.relocate(path, store.moved_from)


def try_artifacts(store: Store, experiment_id: str | None) -> str | None:
    """Write a small file where an experiment keeps those of its runs, read it and remove it.

    Args:
        store: the store.
        experiment_id: of the experiment; None if the first search is yet to make it.

    Returns:
        The place, as it may be shown; None if only a first search will tell.

    Raises:
        TrackingError: another content came back, or the place is on a disk that is not there.
    """
    location = _location(store, experiment_id)
    if location is None:
        return None
    store.require_reached(location)
    folder = locations.local_path(location)
    missing = []
    while folder is not None and not folder.exists():
        missing.append(folder)
        folder = folder.parent
    repository = get_artifact_repository(location, tracking_uri=store.uri)
    name = f"fmnist-track-doctor-{uuid.uuid4().hex}.txt"
    try:
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch, name)
            file.write_text(name)
            back = Path(scratch, "back")
            back.mkdir()
            try:
                repository.log_artifact(str(file))  # type: ignore[no-untyped-call]
                repository.download_artifacts(name, str(back))  # type: ignore[no-untyped-call]
            except Exception:
                with contextlib.suppress(Exception):  # the first error is the one to tell
                    repository.delete_artifacts(name)  # type: ignore[no-untyped-call]
                raise
            same = (back / name).read_text() == name
        repository.delete_artifacts(name)  # type: ignore[no-untyped-call]
    finally:
        with contextlib.suppress(OSError):
            for made in missing:
                made.rmdir()
    if not same:
        raise TrackingError(f"{without_user(location)} gives back another file than was written.")
    return without_user(location)


def _location(store: Store, experiment_id: str | None) -> str | None:
    if experiment_id is None:
        path = locations.sqlite_file(store.uri)
        if path is not None:
            return locations.files_of(path, name_in_use(store, None))
        # A server puts a new experiment where it has put MLflow's own.
        found = store.client.get_experiment_by_name(Experiment.DEFAULT_EXPERIMENT_NAME)
        return None if found is None else str(found.artifact_location)
    return str(store.client.get_experiment(experiment_id).artifact_location)
