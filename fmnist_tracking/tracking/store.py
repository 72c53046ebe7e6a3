"""Reaching the MLflow store, and saying clearly why when it cannot be reached."""

import contextlib
import logging
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

import mlflow
from alembic.util import CommandError
from mlflow import MlflowClient
from mlflow.entities import Experiment, ViewType
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE
from mlflow.utils.rest_utils import http_request
from mlflow.utils.uri import is_local_uri
from sqlalchemy.exc import SQLAlchemyError

from fmnist_tracking.addresses import without_user
from fmnist_tracking.errors import FmnistTrackingError, TrackingError, first_line
from fmnist_tracking.tracking import database, places, sqlite_store
from fmnist_tracking.tracking.failures import (
    Fault,
    is_of_store,
    opening_error,
    sort,
    tracking_error,
)

_log = logging.getLogger(__name__)

# The first that the tests have passed with.
_OLDEST_SERVER = (3, 1)
_ANSWER_SECONDS = 10
_VERSION = re.compile(r"(\d+)\.(\d+)[\w.]*$")
_MANY = 1000
# Runs that are named when some are left out.
_NAMED = 3
# The package that holds a database driver's module, where the names differ.
_DRIVERS = {
    "psycopg": "'psycopg[binary]'",
    "psycopg2": "psycopg2-binary",
    "MySQLdb": "mysqlclient",
}
_MLFLOW_SETTINGS = {
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # Trying again is the recorder's task: MLflow's own way takes minutes a call, and may make two
    # runs of one.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}
_EXPERIMENT_TAGS = {
    # Without this, MLflow's page opens the experiment as one of language models.
    "mlflow.experimentKind": "custom_model_development",
    MLFLOW_RUN_NOTE: "Grid searches on Fashion-MNIST. Each search is a run, its trials are the "
    "runs below it: press the plus sign before its name. The description of a search ranks them.",
}
_EXISTS = ErrorCode.Name(RESOURCE_ALREADY_EXISTS)


@dataclass(frozen=True, kw_only=True)
class Store:
    """An MLflow tracking store that was reachable when it was opened.

    Attributes:
        uri: its address, in full.
        client: MLflow's, for that address.
        moved_from: folders that a SQLite store was in when it wrote the addresses of its runs'
            files; empty unless it was moved or copied since.
        away: folders that it names for the files of its runs, and that are not there.
        left_out: runs that could not be read, by id, each with the reason.
    """

    uri: str
    client: MlflowClient
    moved_from: frozenset[Path] = frozenset()
    away: frozenset[Path] = frozenset()
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def public_uri(self) -> str:
        """The URI to show: without a user's name and password."""
        return without_user(self.uri)

    @property
    def can_be_written(self) -> bool:
        """Whether this user may write a SQLite store's file and folder; True for all others."""
        path = places.sqlite_file(self.uri)
        return path is None or sqlite_store.can_be_written(path)

    def experiment_id(self, name: str) -> str:
        """The id of an experiment, created if there is none of that name.

        Raises:
            TrackingError: there was one, and it was deleted.
        """
        found = self.client.get_experiment_by_name(name)
        if found is None:
            path = places.sqlite_file(self.uri)
            try:
                return str(
                    self.client.create_experiment(
                        name,
                        artifact_location=places.files_of(path, name) if path else None,
                        tags=_EXPERIMENT_TAGS,
                    )
                )
            except MlflowException as error:
                if error.error_code != _EXISTS:
                    raise
                return self.experiment_id(name)  # another process was quicker
        require_active(found)
        return str(found.experiment_id)

    def identity(self, experiment_id: str) -> str:
        """What tells an experiment from all others, whatever address its store was opened by.

        A SQLite store that was renamed, upgraded, or moved within its file system is the same. One
        that was made anew in the same place is another, and so is a copy. A move to another file
        system and a backup that was put back are copies too: nothing tells which of two is meant,
        and two stores must never share a lock and checkpoints.
        """
        path = places.sqlite_file(self.uri)
        made = self.client.get_experiment(experiment_id).creation_time
        where = "" if path is None else places.identity(path)
        return f"experiment {experiment_id} of {made} {where}"

    def require_in_place(self) -> None:
        """Refuse a store that was moved or copied: its runs' files are looked for elsewhere.

        Raises:
            TrackingError: it was; the message has the remedy.
        """
        if self.moved_from:
            raise TrackingError(self.moved_line())

    def require_reached(self, address: str) -> None:
        """Refuse an address of files on a disk that is not there, lest they be put on another.

        Raises:
            TrackingError: it is.
        """
        location = places.local_path(address)
        for folder in self.away:
            if location is not None and folder in location.parents:
                raise TrackingError(places.not_reached_line(folder))

    def moved_line(self) -> str:
        """Say, in a line, that the store was moved or copied, and what puts it right."""
        path = places.sqlite_file(self.uri)
        old = " and ".join(str(folder) for folder in sorted(self.moved_from))
        return (
            f"The store {path} was moved or copied here from {old}: it still names that folder for "
            "the files of its runs. `fmnist-track doctor --relocate` puts that right."
        )


def require_active(experiment: Experiment) -> None:
    """Refuse an experiment that was deleted.

    Raises:
        TrackingError: it was; the message says how to restore it.
    """
    if experiment.lifecycle_stage != "active":
        raise TrackingError(
            f"The experiment {experiment.name!r} was deleted. Restore it with `mlflow experiments "
            f"restore --experiment-id {experiment.experiment_id}`, or choose another name with "
            "--experiment."
        )


def tracking_uri(uri: str | None = None) -> str:
    """The store to use: the one given, else MLFLOW_TRACKING_URI, else MLflow's own default.

    Raises:
        TrackingError: it is no address of a store.
    """
    return places.resolve(uri or places.default_uri() or str(mlflow.get_tracking_uri()))


def is_yet_to_be_made(uri: str | None = None) -> bool:
    """Whether the store is a SQLite file that is not there yet, or empty."""
    path = places.sqlite_file(tracking_uri(uri))
    return path is not None and sqlite_store.is_yet_to_be_made(path)


def require_can_be_made(uri: str | None = None) -> Path | None:
    """Return the file of a SQLite store that is yet to be made; None for another kind.

    Raises:
        TrackingError: this user cannot make it, or the files of runs have no place.
    """
    path = places.sqlite_file(tracking_uri(uri))
    if path is not None:
        sqlite_store.require_usable(path, create=True)
        places.require_place_for_files(path)
    return path


@contextlib.contextmanager
def open_store(
    uri: str | None = None,
    *,
    create: bool = False,
    write: bool = False,
    files: bool = True,
    upgrade: bool = False,
) -> Iterator[Store]:
    """Open the store; errors of MLflow, and of it alone, become `TrackingError` inside the block.

    Args:
        uri: of the store; by default MLFLOW_TRACKING_URI or MLflow's own default.
        create: make a new SQLite store where there is none, rather than say so.
        write: refuse a SQLite store that this user may read alone; `create` does too.
        files: whether the files of runs are needed, so that a store that was moved is refused;
            else it is only told.
        upgrade: bring a database of an older MLflow up to date, rather than refuse it.

    Raises:
        TrackingError: the store cannot be reached, is of another version of MLflow, or fails
            while it is used.
    """
    uri = _with_credentials_aside(tracking_uri(uri))
    # MLflow and Alembic tell of each table they create, at the level of warnings or above, and of
    # each error of a database with a traceback.
    for name in ("alembic", "mlflow.tracking", "mlflow.utils"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    for name, value in _MLFLOW_SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        _require_store(uri, create=create, write=write, upgrade=upgrade)
        mlflow.set_tracking_uri(uri)
        with places.without_stray_folder(uri):
            client = MlflowClient(uri)
            experiments = client.search_experiments(view_type=ViewType.ALL, max_results=_MANY)
        moved_from, away = _elsewhere(uri, experiments)
        store = Store(uri=uri, client=client, moved_from=moved_from, away=away)
    except ModuleNotFoundError as error:
        raise TrackingError(
            f"The MLflow store at {without_user(uri)} needs the Python package {error.name}, which "
            f"is not installed. Install it: pip install "
            f"{_DRIVERS.get(error.name or '', error.name)}"
        ) from None
    except (MlflowException, SQLAlchemyError, CommandError, OSError) as error:
        raise opening_error(uri, error) from error
    except (TypeError, ValueError) as error:  # what MLflow and SQLAlchemy say of a wrong setting
        raise TrackingError(
            f"The MLflow store at {without_user(uri)} cannot be opened ({first_line(error)}). "
            "Correct its address, or that setting in the environment (MLFLOW_…)."
        ) from error
    if files:
        store.require_in_place()
    elif store.moved_from:
        _log.warning("%s", store.moved_line())
    for folder in sorted(store.away):
        _log.warning("%s", places.not_reached_line(folder))
    try:
        yield store
    except FmnistTrackingError:
        raise
    except Exception as error:
        if sort(error) is Fault.OURS or not is_of_store(error):
            raise
        raise tracking_error(uri, error) from error
    finally:
        _tell_left_out(store)


def _elsewhere(
    uri: str, experiments: Iterable[Experiment]
) -> tuple[frozenset[Path], frozenset[Path]]:
    path = places.sqlite_file(uri)
    if path is None:
        return frozenset(), frozenset()
    return places.elsewhere(path, [one.artifact_location for one in experiments])


def _tell_left_out(store: Store) -> None:
    if not store.left_out:
        return
    named = [f"{run_id[:8]} ({why})" for run_id, why in store.left_out.items()]
    more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
    _log.warning(
        "Left out, because this version cannot read %s: %s%s.",
        "a run" if len(named) == 1 else f"{len(named)} runs",
        "; ".join(named[:_NAMED]),
        more,
    )


def _with_credentials_aside(uri: str) -> str:
    """The address of a server alone; a name and password in it go where MLflow looks for them.

    MLflow would write them into its messages, and they are no part of which store it is.
    """
    try:
        parts = urlsplit(uri)
    except ValueError as error:
        raise TrackingError(
            "Expected --tracking-uri or MLFLOW_TRACKING_URI to be the address of an MLflow store, "
            f"got {without_user(uri)!r} ({error}). Example: http://127.0.0.1:5000"
        ) from None
    if parts.scheme not in ("http", "https") or "@" not in parts.netloc:
        return uri
    for name, value in (("USERNAME", parts.username), ("PASSWORD", parts.password)):
        os.environ[f"MLFLOW_TRACKING_{name}"] = unquote(value or "")
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _require_store(uri: str, *, create: bool, write: bool, upgrade: bool) -> None:
    """Look whether the store is one that can be used as it is, before MLflow touches it."""
    path = places.sqlite_file(uri)
    if path is not None:
        places.working_folder()  # MLflow wants one, wherever the file is
        sqlite_store.require_usable(path, create=create, write=write)
    if uri.startswith(("http://", "https://")):
        _require_server(uri)
    elif database.is_database(uri):
        if not database.require_current(uri, upgrade=upgrade):
            if not create:
                raise TrackingError(sqlite_store.no_store(path or without_user(uri)))
            if path is not None:
                sqlite_store.make(path)
    elif is_local_uri(uri):  # type: ignore[no-untyped-call]
        folder = places.local_path(uri) or places.working_folder() / uri
        if not create and not folder.is_dir():
            raise TrackingError(sqlite_store.no_store(folder))


def _require_server(uri: str) -> None:
    """Ask a server for its version, in the way that MLflow will speak to it.

    Raises:
        TrackingError: it is too old.
        MlflowException: it cannot be reached.
    """
    answer = http_request(  # type: ignore[no-untyped-call]
        get_default_host_creds(uri),  # type: ignore[no-untyped-call]
        "/version",
        "GET",
        timeout=_ANSWER_SECONDS,
        max_retries=0,
    )
    found = _VERSION.match(answer.text.strip()) if answer.status_code == 200 else None
    if found is None:  # a gateway before it, perhaps: what MLflow asks next will tell
        return
    if (int(found[1]), int(found[2])) < _OLDEST_SERVER:
        oldest = ".".join(map(str, _OLDEST_SERVER))
        raise TrackingError(
            f"The MLflow server at {without_user(uri)} is version {found[0]}, too old for what is "
            f"recorded here. Expected {oldest} or newer: upgrade the server, or name another with "
            "--tracking-uri."
        )
