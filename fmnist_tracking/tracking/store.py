"""Reaching the MLflow store, and saying clearly why when it cannot be reached."""

import contextlib
import logging
import os
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE
from sqlalchemy.exc import SQLAlchemyError

from fmnist_tracking.addresses import without_user
from fmnist_tracking.errors import TrackingError
from fmnist_tracking.tracking.failures import opening_error, tracking_error

_TIMEOUT_SECONDS = 5
_PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
# The package that holds a database driver's module, where the names differ.
_DRIVERS = {
    "psycopg": "'psycopg[binary]'",
    "psycopg2": "psycopg2-binary",
    "MySQLdb": "mysqlclient",
}
_SQLITE = "sqlite:///"
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
    """An MLflow tracking store that was reachable when it was opened."""

    uri: str
    client: MlflowClient

    @property
    def public_uri(self) -> str:
        """The URI to show: without a user's name and password."""
        return without_user(self.uri)

    def experiment_id(self, name: str) -> str:
        """The id of an experiment, created if there is none of that name.

        Raises:
            TrackingError: there was one, and it was deleted.
        """
        found = self.client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self.client.create_experiment(name, tags=_EXPERIMENT_TAGS))
            except MlflowException as error:
                if error.error_code != _EXISTS:
                    raise
                return self.experiment_id(name)  # another process was quicker
        if found.lifecycle_stage != "active":
            raise TrackingError(
                f"The experiment {name!r} was deleted. Restore it with `mlflow experiments "
                f"restore --experiment-id {found.experiment_id}`, or choose another name with "
                "--experiment."
            )
        return str(found.experiment_id)


def tracking_uri(uri: str | None = None) -> str:
    """The store to use: the one given, else MLFLOW_TRACKING_URI, else MLflow's own default."""
    return uri or str(mlflow.get_tracking_uri())


def is_yet_to_be_made(uri: str | None = None) -> bool:
    """Whether the store is a SQLite file that is not there yet."""
    uri = tracking_uri(uri)
    return uri.startswith(_SQLITE) and not Path(uri.removeprefix(_SQLITE)).exists()


@contextlib.contextmanager
def open_store(uri: str | None = None, *, create: bool = False) -> Iterator[Store]:
    """Open the store; errors of MLflow inside the block become `TrackingError`.

    Args:
        uri: of the store; by default MLFLOW_TRACKING_URI or MLflow's own default.
        create: make a new SQLite store where there is none, rather than say so.

    Raises:
        TrackingError: the store cannot be reached, or fails while it is used.
    """
    uri = _with_credentials_aside(tracking_uri(uri))
    _require_reachable(uri, create=create)
    # MLflow and Alembic tell of each table they create, at the level of warnings or above.
    for name in ("alembic", "mlflow.store.db.utils", "mlflow.tracking", "mlflow.utils"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for name, value in _MLFLOW_SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        if create and is_yet_to_be_made(uri):
            _make_sqlite_store(Path(uri.removeprefix(_SQLITE)))
        mlflow.set_tracking_uri(uri)
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)  # creates or upgrades the tables
        store = Store(uri=uri, client=client)
    except ModuleNotFoundError as error:
        raise TrackingError(
            f"The MLflow store at {without_user(uri)} needs the Python package {error.name}, which "
            f"is not installed. Install it: pip install "
            f"{_DRIVERS.get(error.name or '', error.name)}"
        ) from None
    except (MlflowException, SQLAlchemyError) as error:
        raise opening_error(uri, error) from error
    try:
        yield store
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise tracking_error(uri, error) from error


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


def _make_sqlite_store(path: Path) -> None:
    """Make a new store elsewhere, then put it in its place in one step.

    MLflow builds its tables one after the other; killed in between, it leaves a file that it
    can never open again.
    """
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".mlflow-") as folder:
        new = Path(folder).resolve() / path.name
        MlflowClient(f"{_SQLITE}{new}").search_experiments(max_results=1)
        with contextlib.suppress(FileExistsError):  # another process was quicker
            os.link(new, path)


def _require_reachable(uri: str, *, create: bool) -> None:
    parts = urlsplit(uri)
    kind = parts.scheme.split("+")[0]
    try:
        if kind in _PORTS and parts.hostname:
            # No more than a connection: how to speak to it is for MLflow's settings to say.
            address = (parts.hostname, parts.port or _PORTS[kind])
            socket.create_connection(address, _TIMEOUT_SECONDS).close()
        elif uri.startswith(_SQLITE):
            _require_sqlite_file(Path(uri.removeprefix(_SQLITE)), create=create)
    except (OSError, ValueError) as error:
        raise TrackingError(
            f"The MLflow store at {without_user(uri)} cannot be reached ({error}). Start it, or "
            "name another with --tracking-uri or MLFLOW_TRACKING_URI."
        ) from None


def _require_sqlite_file(path: Path, *, create: bool) -> None:
    if path.exists() or (create and os.access(path.parent, os.W_OK)):
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise TrackingError(
                f"The MLflow store {path} cannot be written by this user. Change its "
                "permissions, or name another with --tracking-uri."
            )
        return
    if create:
        raise TrackingError(
            f"The MLflow store {path} cannot be created: its folder is missing or cannot be "
            "written. Work in another folder, or name a store with --tracking-uri."
        )
    raise TrackingError(
        f"There is no MLflow store {path} yet. Run `fmnist-track search` first, or go to the "
        "folder where you ran it, or name the store with --tracking-uri."
    )
