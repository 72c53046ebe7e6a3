"""Errors of a store: a one-line message that says what to do, and whether a retry may help."""

import errno
import re
import sqlite3
import traceback
from collections.abc import Iterator
from enum import Enum
from pathlib import Path

import mlflow
from alembic.util import CommandError
from mlflow.exceptions import MlflowException, RestException
from mlflow.utils.credentials import read_mlflow_creds
from sqlalchemy.exc import InterfaceError, InternalError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as TimeoutError_

from fmnist_tracking.errors import FmnistTrackingError, TrackingError, first_line, setting
from fmnist_tracking.redact import without_user
from fmnist_tracking.tracking import locations

_TRY_AGAIN = {408, 409, 429}
_LASTING = (PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError)
# Packages whose errors come from artifact storage.
_STORAGE = ("botocore", "boto3", "google", "azure", "paramiko", "pysftp", "requests", "urllib3")
_OF_STORES = (MlflowException, SQLAlchemyError, CommandError, sqlite3.Error)
_MLFLOW = Path(mlflow.__file__).parent
# The package to install for a module, where the names differ.
_PACKAGES = {
    "google": "google-cloud-storage",
    "google.cloud": "google-cloud-storage",
    "azure": "azure-storage-blob",
    "azure.storage": "azure-storage-blob",
    "psycopg": "'psycopg[binary]'",
    "psycopg2": "psycopg2-binary",
    "MySQLdb": "mysqlclient",
}
# The code that SQLAlchemy puts into its messages, wherever they are passed on; see
# https://docs.sqlalchemy.org/en/20/errors.html. MLflow's server answers most with status 400.
_SQLALCHEMY_CODE = re.compile(r"https?://sqlalche\.me/e/\d+/(\w{4})")
# OperationalError, InterfaceError, InternalError, and no connection left in the pool.
_PASSING_CODES = ("e3q8", "rvf5", "2j85", "3o7r")
# Errors that no retry mends, though their status or class says that it may.
_STAYS = re.compile(
    "readonly database|no such (table|column)|: syntax error|is malformed|file is not a database"
    "|No module named|Unable to locate credentials|NoSuchBucket|AccessDenied|InvalidAccessKeyId"
    "|SignatureDoesNotMatch|mlflow-artifacts URI was supplied|Could not find a registered artifact"
    "|CERTIFICATE_VERIFY_FAILED"
)
_BROKEN = re.compile("database disk image is malformed|file is not a database")
_LOCKED = re.compile("database (table )?is locked")
# MLflow's words for an answer that is not one of its own errors, but a gateway's, for instance.
_ANSWERED = re.compile(r"failed with error code (5\d\d|408|409|429)|not in a valid JSON format")
_CREDENTIALS = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
# The same, for statuses of a server that is not MLflow. The group is the status.
_FOREIGN = re.compile(r"failed with error code (4\d\d|501) != 200|not in a valid JSON format")
_UNREACHABLE = re.compile(
    r"Connection refused|No route to host|Name or service not known|Failed to resolve '[^']*'"
    r"|Temporary failure in name resolution|Network is unreachable|timed out"
    r"|Unable to connect to proxy"
)
_NO_ANSWER = re.compile(r"Connection aborted|BadStatusLine|sent to HTTPS port|sent to an HTTPS")


def tracking_error(uri: str, error: BaseException) -> TrackingError:
    """Return a `TrackingError` whose one line explains an error of a store."""
    if isinstance(error, TrackingError):
        return error
    status, text = _status(error), str(error)
    server = f"The MLflow server at {without_user(uri)}"
    if status == 401:
        user = read_mlflow_creds().username
        return TrackingError(
            f"{server} asks for a user name and a password (401). Set {_CREDENTIALS}."
            if not user
            else f"{server} does not accept the name {user!r} with the password given (401). "
            f"Correct {_CREDENTIALS}."
        )
    if status == 403 and "Invalid Host header" in text:
        return TrackingError(
            f"{server} may not be called by that name (403). Start it with --allowed-hosts and "
            "the name."
        )
    if status == 403:
        return TrackingError(
            f"{server} does not let the user {read_mlflow_creds().username!r} do this (403). "
            "Ask whoever runs it for the permission EDIT on the experiment, or work in an "
            f"experiment of your own, with {setting('experiment')}."
        )
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return TrackingError(
            f"The certificate of {without_user(uri)} is not trusted "
            f"({_reason(text, 'certificate verify failed: ')}). Name the server as its "
            "certificate does, and in MLFLOW_TRACKING_SERVER_CERT_PATH the file of the authority "
            "that signed it."
        )
    if "SSLError" in text:
        return TrackingError(
            f"No TLS connection to {without_user(uri)} ({_reason(text, '] ')}). If the "
            "server speaks plain HTTP, name it with http://"
        )
    missing = next((one for one in _chain(error) if isinstance(one, ModuleNotFoundError)), None)
    if missing is not None and _passes(missing, _MLFLOW / "store" / "artifact"):
        place = f"The place where {without_user(uri)} keeps the files of runs"
        return missing_package(place, missing)
    if "mlflow-artifacts URI was supplied" in text:
        return TrackingError(
            f"The store {without_user(uri)} is a database, but keeps the files of its runs at "
            "mlflow-artifacts:/, which only a tracking server can reach. Name that server with "
            f"{setting('tracking_uri')}, or choose another experiment with "
            f"{setting('experiment')}."
        )
    broken = _BROKEN.search(text)
    if broken is not None:
        return damaged(without_user(uri), broken[0])
    file = locations.sqlite_file(uri) if uri.startswith("sqlite") else None
    if file is not None and _is_moved(file, text):
        return TrackingError(
            f"The MLflow store {file} is not there any more: its file was moved, removed or "
            "replaced while it was in use. Put it back, and give the same command: it goes on "
            "where this one stopped, and writes what was kept."
        )
    if is_locked(error):
        return TrackingError(
            f"The MLflow store {without_user(uri)} is locked by another process "
            f"({_first_line(error)}). Wait for it to end, or stop it, and give the same command "
            "again."
        )
    if sort(error) is Fault.OURS:
        return TrackingError(
            f"A defect of fmnist-track, not of the store {without_user(uri)}: "
            f"{type(error).__name__}: {_first_line(error)} ({_where(error)}). The same command "
            "goes on where this one stopped."
        )
    return TrackingError(f"MLflow failed at {without_user(uri)}: {_first_line(error)}")


def _is_moved(file: Path, text: str) -> bool:
    """Return whether SQLite's message is about a file that is not there, or an empty one."""
    if "no such table" in text:
        return not file.exists() or file.stat().st_size == 0
    return "readonly database" in text and not file.exists()


def damaged(store: str, said: str) -> TrackingError:
    """Return a `TrackingError` for a damaged SQLite database, which says how to save the rest."""
    return TrackingError(
        f"The MLflow store {store} is damaged: SQLite says {said!r}. Stop what uses it, and put a "
        "backup in its place; or save what can be: `sqlite3 mlflow.db .recover | sqlite3 "
        "recovered.db` (with the sqlite3 of sqlite.org; some systems' lacks .recover), then, after "
        "a look with "
        f"{setting('tracking_uri')}, `cat recovered.db > mlflow.db`, which keeps the checkpoints "
        "of unfinished trials in use. The files of runs are beside it and as they were."
    )


def missing_package(what: str, error: ModuleNotFoundError) -> TrackingError:
    """Return a `TrackingError` that says what to install for a store or its files."""
    return TrackingError(
        f"{what} needs the Python package {error.name}, which is not installed. Install it: "
        f"pip install {_PACKAGES.get(error.name or '', error.name)}"
    )


def _where(error: BaseException) -> str:
    """Return the file and line that raised an error, of this package if possible."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "fmnist_tracking" in frame.filename] or frames
    return f"{Path(ours[-1].filename).name}, line {ours[-1].lineno}" if ours else "no line"


def registry_error(uri: str, name: str, error: BaseException) -> TrackingError:
    """Return a `TrackingError` for a failed change of a registered model."""
    if _status(error) != 403:
        return tracking_error(uri, error)
    return TrackingError(
        f"The MLflow server at {without_user(uri)} does not let the user "
        f"{read_mlflow_creds().username!r} change the registered model {name!r} (403). Ask "
        "whoever runs it for the permission EDIT on that model, or promote under a name of your "
        f"own, with {setting('name')}."
    )


def opening_error(uri: str, error: BaseException) -> TrackingError:
    """Return a `TrackingError` for a store that could not be opened."""
    known, text = tracking_error(uri, error), str(error)
    if isinstance(error, RestException) or is_locked(error):
        return known
    if "disk is full" in text or "disk I/O error" in text:
        return TrackingError(
            f"The MLflow store {without_user(uri)} cannot be written ({_first_line(error)}). Make "
            "room on its disk, or name another store with "
            f"{setting('tracking_uri')} or MLFLOW_TRACKING_URI."
        )
    unreachable = _UNREACHABLE.search(text)
    if unreachable or isinstance(error, OperationalError):
        why = unreachable[0] if unreachable else _first_line(error)
        return TrackingError(
            f"The MLflow store at {without_user(uri)} cannot be reached ({why}). Start it, or "
            f"name another with {setting('tracking_uri')} or MLFLOW_TRACKING_URI."
        )
    if not uri.startswith(("http://", "https://")):
        return known
    if uri.startswith("http://") and _NO_ANSWER.search(text):
        return TrackingError(
            f"What listens at {without_user(uri)} closes the connection without an answer to plain "
            "HTTP. If it speaks TLS, name it with https://"
        )
    if _FOREIGN.search(text) and _status(error) not in (401, 403):
        return TrackingError(
            f"What answers at {without_user(uri)} is not an MLflow server. Name one with "
            f"{setting('tracking_uri')} or MLFLOW_TRACKING_URI, without a path unless the server "
            "has one."
        )
    return known


class Fault(Enum):
    """The kind of an error that an operation on a store raised."""

    PASSING = "it may go away by itself: out of reach, locked, overloaded, full"
    FINAL = "it stays until somebody changes something: refused, missing, misconfigured"
    OURS = "a defect of this program"


def sort(error: BaseException) -> Fault:
    """Classify an error, whether it comes from a server, a database or files.

    A rejected password or permission is final: a running process cannot be given another password,
    and training on would be for nothing.
    """
    if isinstance(error, FmnistTrackingError):  # classified already
        return Fault.FINAL
    chain = list(_chain(error))
    text = " ".join(str(one) for one in chain)
    if _STAYS.search(text) or any(isinstance(one, ImportError) for one in chain):
        return Fault.FINAL
    code = _SQLALCHEMY_CODE.search(text)
    if code is not None:
        return Fault.PASSING if code[1] in _PASSING_CODES else Fault.FINAL
    status = _status(error)
    is_mlflow = isinstance(error, MlflowException)
    if isinstance(error, RestException) or (status is not None and not is_mlflow):
        return Fault.PASSING if (status or 0) >= 500 or status in _TRY_AGAIN else Fault.FINAL
    # Network errors and a full disk are OSErrors; MLflow wraps them.
    if any(isinstance(one, OSError) and not isinstance(one, _LASTING) for one in chain):
        return Fault.PASSING
    if any(isinstance(one, SQLAlchemyError) for one in chain):
        passing = (OperationalError, InterfaceError, InternalError, TimeoutError_)
        return Fault.PASSING if any(isinstance(one, passing) for one in chain) else Fault.FINAL
    if is_mlflow:
        # MLflow's code for a wrong request or setting is 500 too, if raised in this process.
        passes = status in (503, *_TRY_AGAIN) or _ANSWERED.search(text)
        return Fault.PASSING if passes else Fault.FINAL
    known = isinstance(error, (OSError, *_OF_STORES)) or _is_of_storage(error)
    return Fault.FINAL if known else Fault.OURS


def is_of_store(error: BaseException) -> bool:
    """Return whether an error comes from a store or its files, not from other code."""
    return any(
        isinstance(one, _OF_STORES) or _is_of_storage(one) or _passes(one, _MLFLOW)
        for one in _chain(error)
    )


def _is_of_storage(error: BaseException) -> bool:
    return type(error).__module__.split(".")[0] in _STORAGE


def _passes(error: BaseException, folder: Path) -> bool:
    """Return whether an error was raised through code in a folder."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(folder in Path(frame.f_code.co_filename).parents for frame, _ in frames)


def is_passing(error: BaseException) -> bool:
    """Return whether an error may go away by itself."""
    return sort(error) is Fault.PASSING


def is_locked(error: BaseException) -> bool:
    """Return whether an error says that another process has locked a SQLite database."""
    return bool(_LOCKED.search(str(error)))


def is_refused(error: BaseException) -> bool:
    """Return whether an error says that this user may read a store, but not write to it."""
    if isinstance(error, OSError):
        return isinstance(error, PermissionError) or error.errno == errno.EROFS
    return _status(error) == 403 or "readonly database" in str(error)


def _chain(outermost: BaseException) -> Iterator[BaseException]:
    """Iterate over an error and its causes, the outermost first."""
    seen: set[int] = set()
    error: BaseException | None = outermost
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        inner = error.args[0] if error.args and isinstance(error.args[0], Exception) else None
        error = error.__cause__ or error.__context__ or inner


def _status(error: BaseException) -> int | None:
    """Return the HTTP status of an error, None if it has none."""
    if isinstance(error, MlflowException):
        return int(error.get_http_status_code())  # type: ignore[no-untyped-call]
    # Artifacts are transferred by other clients, whose errors are those of requests.
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _reason(text: str, after: str) -> str:
    """Return what OpenSSL says, without the text around it."""
    return text.rpartition(after)[2].partition(" (_ssl")[0]


def _first_line(error: BaseException) -> str:
    return without_user(first_line(error))
