"""What went wrong at a store: in a line that says what to do, and whether it may pass by itself."""

import re

from mlflow.exceptions import MlflowException, RestException
from mlflow.utils.credentials import read_mlflow_creds
from sqlalchemy.exc import SQLAlchemyError

from fmnist_tracking.addresses import without_user
from fmnist_tracking.errors import TrackingError

_TRY_AGAIN = {408, 409, 429}
_LASTING = (PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError)
_CREDENTIALS = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
# An answer that is not in the form that MLflow gives its errors; its status is caught.
_FOREIGN = re.compile(r"failed with error code (4\d\d|501) != 200|not in a valid JSON format")
_NO_ANSWER = re.compile(r"Connection aborted|BadStatusLine|sent to HTTPS port|sent to an HTTPS")


def tracking_error(uri: str, error: BaseException | None) -> TrackingError:
    """What went wrong at a store, in a line."""
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
            "experiment of your own: --experiment NAME."
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
    return TrackingError(f"MLflow failed at {without_user(uri)}: {_first_line(error)}")


def registry_error(uri: str, name: str, error: BaseException) -> TrackingError:
    """What went wrong when a registered model was changed, in a line."""
    if _status(error) != 403:
        return tracking_error(uri, error)
    return TrackingError(
        f"The MLflow server at {without_user(uri)} does not let the user "
        f"{read_mlflow_creds().username!r} change the registered model {name!r} (403). Ask "
        "whoever runs it for the permission EDIT on that model, or promote under a name of your "
        "own: --name NAME."
    )


def opening_error(uri: str, error: BaseException) -> TrackingError:
    """What went wrong when a store was first spoken to, in a line."""
    known, text = tracking_error(uri, error), str(error)
    if isinstance(error, RestException) or not uri.startswith(("http://", "https://")):
        return known
    if uri.startswith("http://") and _NO_ANSWER.search(text):
        return TrackingError(
            f"What listens at {without_user(uri)} closes the connection without an answer to plain "
            "HTTP. If it speaks TLS, name it with https://"
        )
    if _FOREIGN.search(text) and _status(error) not in (401, 403):
        return TrackingError(
            f"What answers at {without_user(uri)} is not an MLflow server. Name one with "
            "--tracking-uri or MLFLOW_TRACKING_URI, without a path unless the server has one."
        )
    return known


def is_passing(error: BaseException) -> bool:
    """Whether an error may go away by itself: the store out of reach, locked or overloaded.

    That a server no longer takes the password, or no longer gives permission, does not: a process
    that runs cannot be given another password, and to train on for nothing helps nobody.
    """
    status = _status(error)
    if status is not None:
        return status >= 500 or status in _TRY_AGAIN
    # Errors of the network are OSErrors, and so is a full disk.
    return isinstance(error, OSError | SQLAlchemyError) and not isinstance(error, _LASTING)


def _status(error: BaseException | None) -> int | None:
    """The HTTP status that an error stands for, None if it is of another kind."""
    if isinstance(error, MlflowException):
        return int(error.get_http_status_code())  # type: ignore[no-untyped-call]
    # Artifacts go another way, whose errors are those of requests.
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _reason(text: str, after: str) -> str:
    """What OpenSSL says, without what is wrapped around it."""
    return text.rpartition(after)[2].partition(" (_ssl")[0]


def _first_line(error: BaseException | None) -> str:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return without_user(line)
