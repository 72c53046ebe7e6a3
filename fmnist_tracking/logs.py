"""Log records, Python's warnings and tracebacks, printed on standard error as plain lines."""

import contextlib
import logging
import sys
import threading
import traceback
import warnings
from types import TracebackType
from typing import Any

from fmnist_tracking.redact import LONGEST_LINE, printable


def log_plainly() -> None:
    """Print what this program's own process logs, warns of and fails with as plain lines.

    They steer no terminal, and hold no secrets.
    """
    sys.excepthook = show_defect
    threading.excepthook = _show_defect_of_thread
    handler = logging.StreamHandler()
    handler.setFormatter(PlainFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    warnings.formatwarning = _warning_line
    logging.captureWarnings(True)


class PlainFormatter(logging.Formatter):
    """Formats a log record as one line, and a traceback after it as lines of its own."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # logging's name
        """Format the line."""
        return printable(super().formatMessage(record), LONGEST_LINE)

    def formatException(self, ei: Any) -> str:
        """Format the traceback."""
        return _each_printable(super().formatException(ei))


def show_defect(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Print the traceback of an error that nobody has caught; Python's `sys.excepthook`."""
    lines = "".join(traceback.format_exception(kind, error, trace))
    with contextlib.suppress(OSError, ValueError):
        print(_each_printable(lines), file=sys.stderr)


def _show_defect_of_thread(caught: threading.ExceptHookArgs) -> None:
    if caught.exc_value is not None and not isinstance(caught.exc_value, SystemExit):
        show_defect(caught.exc_type, caught.exc_value, caught.exc_traceback)


def _each_printable(lines: str) -> str:
    return "\n".join(printable(line, LONGEST_LINE) for line in lines.splitlines())


def _warning_line(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    return f"{filename}:{lineno}: {category.__name__}: {message}"
