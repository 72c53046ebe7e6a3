"""The artifact location of a store: update it after a move, and test that it works."""

import contextlib
import tempfile
import uuid
from pathlib import Path

from mlflow.entities import Experiment

from fmnist_tracking.errors import TrackingError
from fmnist_tracking.redact import without_user
from fmnist_tracking.tracking import locations, migrations
from fmnist_tracking.tracking.artifacts import files_at
from fmnist_tracking.tracking.experiments import all_experiments, name_in_use
from fmnist_tracking.tracking.resume import live_runs
from fmnist_tracking.tracking.sqlite_store import require_usable
from fmnist_tracking.tracking.store import Store


def relocate(store: Store) -> int:
    """Update the addresses of the runs' files in a SQLite store that was moved; count them.

    Raises:
        TrackingError: the store is not a SQLite store or cannot be written, or a search is running
            in it.
    """
    path = locations.sqlite_file(store.uri)
    if path is None:
        raise TrackingError(
            f"Only a SQLite store can be relocated, and {store.public_uri} is none: whoever runs "
            "it knows where its files are."
        )
    require_usable(path, "write")
    live = live_runs(store, all_experiments(store))
    if live:
        raise TrackingError(migrations.run_in_progress(live[0]))
    return locations.relocate(path, store.moved_from, path.parent)


def try_artifacts(store: Store, experiment_id: str | None) -> str | None:
    """Write a small file to an experiment's artifact location, read it back and delete it.

    Without an experiment, as before the first search, the location is the one it will get.

    Returns:
        The location, safe to show; None if it is not known before the first search.

    Raises:
        TrackingError: the content that was read differs, or the location is on a disk that is not
            there.
    """
    location = _location(store, experiment_id)
    if location is None:
        return None
    store.require_reached(location)
    name = f"fmnist-track-doctor-{uuid.uuid4().hex}.txt"
    folder = locations.local_path(location)
    with locations.without_new_folders(folder), tempfile.TemporaryDirectory() as scratch:
        repository = files_at(store, location)
        file, back = Path(scratch, name), Path(scratch, "back")
        file.write_text(name)
        back.mkdir()
        try:
            repository.log_artifact(str(file))  # type: ignore[no-untyped-call]
            repository.download_artifacts(name, str(back))  # type: ignore[no-untyped-call]
        except Exception:
            with contextlib.suppress(Exception):  # report the first error, not this one
                repository.delete_artifacts(name)  # type: ignore[no-untyped-call]
            raise
        same = (back / name).read_text() == name
        repository.delete_artifacts(name)  # type: ignore[no-untyped-call]
    if not same:
        raise TrackingError(f"{without_user(location)} gives back another file than was written.")
    return without_user(location)


def _location(store: Store, experiment_id: str | None) -> str | None:
    if experiment_id is None:
        path = locations.sqlite_file(store.uri)
        if path is not None:
            return locations.files_of(path, name_in_use(store, None))
        # A server puts a new experiment where it has put MLflow's default one.
        found = store.client.get_experiment_by_name(Experiment.DEFAULT_EXPERIMENT_NAME)
        return None if found is None else str(found.artifact_location)
    return str(store.client.get_experiment(experiment_id).artifact_location)
