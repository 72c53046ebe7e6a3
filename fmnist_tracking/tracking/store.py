"""Opening the MLflow store, with a clear message when it cannot be reached."""

import contextlib
import logging
import os
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

import mlflow
from alembic.util import CommandError
from mlflow import MlflowClient
from mlflow.entities import Experiment, ViewType
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode
from mlflow.store.db.db_types import DATABASE_ENGINES
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE
from mlflow.utils.rest_utils import http_request
from mlflow.utils.uri import get_uri_scheme, is_local_uri
from sqlalchemy.exc import SQLAlchemyError

from fmnist_tracking.config import require_text
from fmnist_tracking.errors import (
    FmnistTrackingError,
    TrackingError,
    first_line,
    for_programs,
    setting,
)
from fmnist_tracking.redact import remember, without_user
from fmnist_tracking.tracking import locations, migrations, sqlite_store
from fmnist_tracking.tracking.error_messages import (
    Fault,
    is_of_store,
    missing_package,
    opening_error,
    sort,
    tracking_error,
)

_log = logging.getLogger(__name__)
# What this process had before its first open store, once for each store that is open.
_kept: list[tuple[dict[str, str], dict[str, int]]] = []
_opening = threading.Lock()

# The oldest that the tests have passed with.
_OLDEST_SERVER = (3, 1)
_ANSWER_SECONDS = 10
_LONGEST_VERSION = 100  # bytes
_VERSION = re.compile(r"(\d+)\.(\d+)[\w.]*$")
_MANY = 1000
# At most this many skipped runs are named.
_NAMED = 3
_MLFLOW_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # The background writer retries. MLflow's own retries take minutes a call, and may create a run
    # twice.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}
# MLflow and Alembic log each table that they create as a warning or worse, and each error of a
# database with a traceback.
_LOG_LEVELS = {
    "alembic": logging.ERROR,
    "mlflow.tracking": logging.ERROR,
    "mlflow.utils": logging.ERROR,
    "mlflow.store.db.utils": logging.CRITICAL,
}
_EXPERIMENT_TAGS = {
    # Without it, MLflow's page treats the experiment as one of language models.
    "mlflow.experimentKind": "custom_model_development",
    MLFLOW_RUN_NOTE: "Grid searches on Fashion-MNIST. Each search is a run, its trials are the "
    "runs below it: press the plus sign before its name. The description of a search ranks them.",
}
_EXISTS = ErrorCode.Name(RESOURCE_ALREADY_EXISTS)


@dataclass(frozen=True, kw_only=True)
class Store:
    """An MLflow tracking store that was reachable when it was opened.

    Attributes:
        uri: its address; of a server without user name and password.
        address: as it was opened, which may hold both.
        client: MLflow's client for that address.
        moved_from: folders that a SQLite store was in when it wrote the addresses of its runs'
            files; empty unless it was moved or copied since.
        away: folders that it names for the files of its runs, and that are missing.
        left_out: runs that could not be read: the reason by run id.
        artifact_uris: where the files of runs are, by run id, as `artifacts` has asked for them.
    """

    uri: str
    client: MlflowClient
    address: str = field(default="", repr=False)
    moved_from: frozenset[Path] = frozenset()
    away: frozenset[Path] = frozenset()
    left_out: dict[str, str] = field(default_factory=dict)
    artifact_uris: dict[str, str] = field(default_factory=dict, repr=False)

    @property
    def public_uri(self) -> str:
        """Return the address without user name and password, to be shown."""
        return without_user(self.uri)

    @property
    def can_be_written(self) -> bool:
        """Return whether this user may write a SQLite store; True for other stores."""
        path = locations.sqlite_file(self.uri)
        return path is None or sqlite_store.can_be_written(path)

    def experiment_id(self, name: str) -> str:
        """Return the id of an experiment; create it if there is none of that name.

        Raises:
            TrackingError: the experiment was deleted.
        """
        found = self.client.get_experiment_by_name(name)
        if found is None:
            path = locations.sqlite_file(self.uri)
            try:
                return str(
                    self.client.create_experiment(
                        name,
                        artifact_location=locations.files_of(path, name) if path else None,
                        tags=_EXPERIMENT_TAGS,
                    )
                )
            except MlflowException as error:
                if error.error_code != _EXISTS:
                    raise
                return self.experiment_id(name)  # another process was faster
        require_active(found)
        return str(found.experiment_id)

    def identity(self, experiment_id: str) -> str:
        """Return what identifies an experiment, whatever the address of its store.

        A SQLite store that was renamed, upgraded, or moved within its file system keeps its
        identity. One that was created again in the same place gets another, and so does a copy. A
        move to another file system and a restored backup count as copies: nothing shows which of
        the two is meant, and two stores must never share a lock and checkpoints.
        """
        path = locations.sqlite_file(self.uri)
        made = self.client.get_experiment(experiment_id).creation_time
        where = "" if path is None else locations.identity(path)
        return f"experiment {experiment_id} of {made} {where}"

    def require_reached(self, address: str) -> None:
        """Raise `TrackingError` for an address of files on a disk that is not mounted.

        The files would be written to another disk.
        """
        location = locations.local_path(address)
        for folder in self.away:
            if location is not None and folder in location.parents:
                raise TrackingError(locations.not_reached_line(folder))

    def moved_line(self) -> str:
        """Return a line that says that the store was moved or copied, and how to repair it."""
        path = locations.sqlite_file(self.uri)
        old = " and ".join(str(folder) for folder in sorted(self.moved_from))
        return (
            f"The store {path} was moved or copied here from {old}: it still names that folder for "
            "the files of its runs. `fmnist-track doctor --relocate` puts that right."
        )


def require_active(experiment: Experiment) -> None:
    """Raise `TrackingError` for an experiment that was deleted; say how to restore it."""
    if experiment.lifecycle_stage != "active":
        raise TrackingError(
            f"The experiment {experiment.name!r} was deleted. Restore it with `mlflow experiments "
            f"restore --experiment-id {experiment.experiment_id}`, or choose another name with "
            f"{setting('experiment')}."
        )


def tracking_uri(uri: str | None = None) -> str:
    """Return the address of the store: the one given, MLFLOW_TRACKING_URI, or MLflow's default.

    Raises:
        ConfigError: it is no text.
        TrackingError: it is not the address of a store.
    """
    if uri is not None:
        require_text("tracking_uri", uri)
    named = uri or locations.default_uri() or str(mlflow.get_tracking_uri())
    remember(named)
    return locations.resolve(named)


def is_yet_to_be_made(uri: str | None = None) -> bool:
    """Return whether the store is a SQLite file that is missing or empty."""
    path = locations.sqlite_file(tracking_uri(uri))
    return path is not None and sqlite_store.is_yet_to_be_made(path)


def require_can_be_made(uri: str | None = None) -> Path | None:
    """Return the file of a SQLite store that can be used or created; None for another kind.

    Raises:
        TrackingError: this user cannot use or create it, or artifacts have no place.
    """
    path = locations.sqlite_file(tracking_uri(uri))
    if path is not None:
        sqlite_store.require_usable(path, "create")
        locations.require_place_for_files(path)
    return path


@contextlib.contextmanager
def open_store(
    uri: str | None = None,
    *,
    access: sqlite_store.Access = "read",
    files: bool = True,
    upgrade: bool = False,
) -> Iterator[Store]:
    """Open the store; MLflow's errors inside the block become `TrackingError`, others pass.

    Args:
        uri: of the store; by default MLFLOW_TRACKING_URI or MLflow's own default.
        access: `read`; `write` refuses a SQLite store that this user may only read; `create` does
            so too, and creates one if there is none.
        files: whether the files of runs are needed: a store that was moved is then refused,
            otherwise only a warning is logged.
        upgrade: upgrade a database of an older MLflow instead of refusing it.

    Yields:
        The store.

    Raises:
        TrackingError: the store cannot be reached, is of another version of MLflow, or fails while
            it is used.
    """
    with _process_unchanged():
        address = tracking_uri(uri)
        uri = _with_credentials_aside(address)
        try:
            _require_store(uri, access, upgrade=upgrade)
            mlflow.set_tracking_uri(uri)
            with locations.without_stray_folder(uri):
                client = MlflowClient(uri)
                experiments = client.search_experiments(view_type=ViewType.ALL, max_results=_MANY)
            addresses = [experiment.artifact_location or "" for experiment in experiments]
            moved_from, away = locations.elsewhere(locations.sqlite_file(uri), addresses)
            store = Store(uri=uri, client=client, address=address, moved_from=moved_from, away=away)
        except ModuleNotFoundError as error:
            raise missing_package(f"The MLflow store at {without_user(uri)}", error) from None
        except (MlflowException, SQLAlchemyError, CommandError, OSError) as error:
            raise opening_error(uri, error) from error
        except (TypeError, ValueError) as error:  # MLflow's and SQLAlchemy's for a wrong setting
            raise TrackingError(
                f"The MLflow store at {without_user(uri)} cannot be opened ({first_line(error)}). "
                "Correct its address, or that setting in the environment (MLFLOW_…)."
            ) from error
        if store.moved_from:
            if files:
                raise TrackingError(store.moved_line())
            _log.warning("%s", for_programs(store.moved_line()))
        for folder in sorted(store.away):
            _log.warning("%s", for_programs(locations.not_reached_line(folder)))
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


@contextlib.contextmanager
def _process_unchanged() -> Iterator[None]:
    """Set what MLflow reads from this process as we need it, and put it back afterwards.

    Where several threads have a store open, the last one to close it puts back what was before the
    first one.
    """
    with _opening:
        if not _kept:
            environment = {k: v for k, v in os.environ.items() if k.startswith("MLFLOW_")}
            levels = {name: logging.getLogger(name).level for name in _LOG_LEVELS}
            for name, level in _LOG_LEVELS.items():
                logging.getLogger(name).setLevel(level)
            for name, value in _MLFLOW_SETTINGS.items():
                os.environ.setdefault(name, value)
        else:
            environment, levels = _kept[-1]
        _kept.append((environment, levels))
    try:
        yield
    finally:
        with _opening:
            environment, levels = _kept.pop()
            if not _kept:
                mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
                for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
                    del os.environ[name]
                os.environ.update(environment)
                for name, level in levels.items():
                    logging.getLogger(name).setLevel(level)


def _tell_left_out(store: Store) -> None:
    if not store.left_out:
        return
    named = [f"{run_id[:8]} ({why})" for run_id, why in store.left_out.items()]
    more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
    _log.warning(
        "Left out, as this version cannot read or resume %s: %s%s.",
        "a run" if len(named) == 1 else f"{len(named)} runs",
        "; ".join(named[:_NAMED]),
        more,
    )


def _with_credentials_aside(uri: str) -> str:
    """Return a server's address without credentials, which go into MLflow's environment.

    MLflow would write them into its messages, and they do not belong to the identity of a store.
    """
    try:
        parts = urlsplit(uri)
    except ValueError as error:
        raise TrackingError(
            f"Expected {setting('tracking_uri')} or MLFLOW_TRACKING_URI to be the address of an "
            f"MLflow store, got {without_user(uri)!r} ({error}). Example: http://127.0.0.1:5000"
        ) from None
    if parts.scheme not in ("http", "https") or "@" not in parts.netloc:
        return uri
    for name, value in (("USERNAME", parts.username), ("PASSWORD", parts.password)):
        os.environ[f"MLFLOW_TRACKING_{name}"] = unquote(value or "")
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _require_store(uri: str, access: sqlite_store.Access, *, upgrade: bool) -> None:
    """Check that the store can be used, or create it, before MLflow opens it."""
    path, create = locations.sqlite_file(uri), access == "create"
    if path is not None:
        locations.working_folder()  # MLflow needs one, wherever the file is
        sqlite_store.require_usable(path, access)
    if uri.startswith(("http://", "https://")):
        _require_server(uri)
    elif get_uri_scheme(uri) in DATABASE_ENGINES:  # type: ignore[no-untyped-call]
        if not migrations.require_current(uri, upgrade=upgrade):
            if not create:
                raise TrackingError(sqlite_store.no_store(path or without_user(uri)))
            if path is not None:
                sqlite_store.make(path)
    elif is_local_uri(uri):  # type: ignore[no-untyped-call]
        folder = locations.local_path(uri) or locations.working_folder() / uri
        if not create and not folder.is_dir():
            raise TrackingError(sqlite_store.no_store(folder))


def _require_server(uri: str) -> None:
    """Check a server's version, by a request like MLflow's own.

    Raises:
        TrackingError: the server is too old.
        MlflowException: it cannot be reached.
    """
    answer = http_request(  # type: ignore[no-untyped-call]
        get_default_host_creds(uri),  # type: ignore[no-untyped-call]
        "/version",
        "GET",
        timeout=_ANSWER_SECONDS,
        max_retries=0,
        stream=True,  # or the whole of an answer without end would be waited for
    )
    with answer:
        text = answer.raw.read(_LONGEST_VERSION, decode_content=True)
    is_version = answer.status_code == 200
    found = _VERSION.match(text.decode(errors="replace").strip()) if is_version else None
    if found is None:  # perhaps a gateway's answer: MLflow's next request will show it
        return
    if (int(found[1]), int(found[2])) < _OLDEST_SERVER:
        oldest = ".".join(map(str, _OLDEST_SERVER))
        raise TrackingError(
            f"The MLflow server at {without_user(uri)} is version {found[0]}, too old for what is "
            f"recorded here. Expected {oldest} or newer: upgrade the server, or name another with "
            f"{setting('tracking_uri')}."
        )
