"""The exceptions that a person can meet, each with the exit status of the command line."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message that is not blank, else the error's type."""
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)


class FmnistTrackingError(Exception):
    """An error whose message says what was wrong and what to do.

    The command line prints the message as one line, without a traceback, and exits with
    `exit_status`.
    """

    exit_status = 1


class ConfigError(FmnistTrackingError):
    """A request that cannot be carried out as asked: a bad option, value or combination."""

    exit_status = 2


class DataError(FmnistTrackingError):
    """The images or labels are missing, damaged, or not the ones a run was trained on."""


class TrackingError(FmnistTrackingError):
    """The MLflow store cannot be reached, or does not have what was asked for."""


class OutputError(FmnistTrackingError):
    """A file or folder that the command must write cannot be written."""


class PictureError(FmnistTrackingError):
    """A person's picture cannot be read, or shows nothing that could be classified."""


class PromotionError(FmnistTrackingError):
    """A model does not become the champion: it is worse, or cannot be compared."""


class SearchError(FmnistTrackingError):
    """A search ended without a finished trial for each of its points."""


class Terminated(KeyboardInterrupt):
    """The process was asked to stop by SIGTERM or SIGHUP, as Ctrl-C does by SIGINT."""
