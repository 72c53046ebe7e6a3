"""The exceptions that a person can meet, each with the exit status of the command line."""

import re
from typing import Any

from fmnist_tracking.redact import LONGEST_LINE, printable

# Stands around the name of a setting in a message.
_MARK = "\x1f"
# Of a value in a message, in characters.
_LONGEST_SHOWN = 100
# Of an error's text with its traceback, and of its first line alone, in bytes.
_LONGEST_TEXT, _LONGEST_LINE = 65_536, 2_000
_STYLE = re.compile(r"\x1b\[[0-9;]*m")  # of a terminal, such as bold


def setting(name: str) -> str:
    """Return the name of an argument for use in a message, such as `tracking_uri` or `fresh=True`.

    A program's author reads it as it is, a user of the command line as an option, such as
    `--tracking-uri` or `--fresh`.
    """
    return f"{_MARK}{name}{_MARK}"


def for_programs(message: str) -> str:
    """Return a message with the names of settings as arguments of a function."""
    return message.replace(_MARK, "")


def for_command_line(message: str) -> str:
    """Return a message with the names of settings as options of a command."""
    parts = message.split(_MARK)
    parts[1::2] = ["--" + name.removesuffix("=True").replace("_", "-") for name in parts[1::2]]
    return "".join(parts)


def shown(value: object) -> str:
    """Return a value as it is shown in a message: its `repr`, on one line and not too long."""
    try:
        text = repr(value)
        text = text if isinstance(value, str) else printable(" ".join(text.split()))
    except Exception:  # of a number with thousands of digits, for example
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message that is not blank, else the error's type.

    Of a long one, it returns the beginning and the end. What Keras says of a layer that cannot be
    called comes with the line that says why.
    """
    try:
        text = str(error)
    except (Exception, SystemExit) as another:  # whoever wrote the error's class
        return f"its message cannot be made ({type(another).__name__})"
    lines = [line for line in map(str.strip, _STYLE.sub("", text).splitlines()) if line]
    line = lines[0] if lines else type(error).__name__
    if line.startswith("Exception encountered when calling") and len(lines) > 1:
        line = f"{line} {lines[1]}"
    return shortened(line, _LONGEST_LINE)


def named(error: BaseException) -> str:
    """Return the type of an error, and the first line of its message if it has one; printable."""
    kind, line = type(error).__name__, first_line(error)
    return printable(kind if line == kind else f"{kind}: {line}", LONGEST_LINE)


def shortened(text: str, most: int = _LONGEST_TEXT) -> str:
    """Return a text, or the beginning and the end of one of more than so many bytes.

    Halves of pairs of characters, which no file and no store takes, are escaped.
    """
    whole = text.encode("utf-8", "backslashreplace")
    if len(whole) <= most:
        return whole.decode()
    gap = f" … [{len(whole) - most:,} bytes left out] … ".encode()
    half = (most - len(gap)) // 2
    return b"".join((whole[:half], gap, whole[-half:])).decode("utf-8", "ignore")


class FmnistTrackingError(Exception):
    """An error whose message says what was wrong and what to do.

    The command line prints the message as one line, without a traceback, and exits with
    `exit_status`.

    Attributes:
        message: with the names of settings marked; see `setting`.
    """

    exit_status = 1

    def __init__(self, message: str, *others: Any) -> None:
        super().__init__(printable(for_programs(message), LONGEST_LINE), *others)
        self.message = message

    def __str__(self) -> str:
        return str(self.args[0])

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.message, *self.args[1:])


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


class TrialsFailed(SearchError):
    """Trials have failed or diverged; the others are there.

    Attributes:
        result: the search, or the single trial.
    """

    def __init__(self, message: str, result: Any) -> None:
        super().__init__(message, result)
        self.result = result


class Terminated(KeyboardInterrupt):
    """The process was asked to stop by SIGTERM, SIGHUP or SIGQUIT, as Ctrl-C does by SIGINT."""
