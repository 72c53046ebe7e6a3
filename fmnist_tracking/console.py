"""Lines and tables for a person: on standard error, or in the output of a notebook's cell."""

import contextlib
import sys
from collections.abc import Callable
from typing import Any, TextIO, TypeAlias, cast

from rich.console import Console
from rich.text import Text

from fmnist_tracking.errors import ConfigError, for_programs, shown
from fmnist_tracking.redact import LONGEST_LINE, printable

Echo: TypeAlias = Callable[[str], None]


class PlainConsole(Console):
    """A console that shows texts as they are: nothing in them steers a terminal."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, force_jupyter=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Convert a text that is to be printed, on its own or in a table."""
        return super().render_str(printable(text, LONGEST_LINE), **options)


class _Stderr(PlainConsole):
    def on_broken_pipe(self) -> None:
        """Go on in silence: nobody reads any more, but the trials must be finished."""
        self.quiet = True


def stderr_console() -> Console:
    """Return a console on standard error whose reader may go away.

    It is a terminal if the stream is one; rich would take FORCE_COLOR, TTY_COMPATIBLE or a
    notebook for one.
    """
    return _Stderr(
        stderr=True,
        quiet=not _can_write(sys.stderr),
        force_terminal=is_terminal(sys.stderr),
    )


def is_terminal(stream: TextIO | None) -> bool:
    """Return whether a stream is a terminal; one that cannot be written to is none."""
    return _can_write(stream) and getattr(stream, "isatty", bool)()


def _can_write(stream: TextIO | None) -> bool:
    """Return whether a stream takes text: a program may have closed it, or put another there."""
    try:
        if stream is not None:
            stream.write("")
            stream.flush()
    except (OSError, ValueError, TypeError, AttributeError):
        return False
    return stream is not None


def echo_line(line: str) -> None:
    """Print a line for a person: in a notebook as output, elsewhere on standard error."""
    stream = sys.stdout if notebook() else sys.stderr
    if _can_write(stream):
        with contextlib.suppress(OSError, ValueError):  # nobody reads it: the trials go on
            print(printable(for_programs(line), LONGEST_LINE), file=stream)


def lines_to(echo: object) -> Echo:
    """Return a function that takes lines for a person, which for None prints nothing.

    Raises:
        ConfigError: it is no function.
    """
    if echo is None:
        return _silent
    require_function("echo", echo)
    return lambda line: cast(Echo, echo)(printable(line, LONGEST_LINE))


def require_function(name: str, value: object) -> None:
    """Raise `ConfigError` for an argument that is neither None nor a function."""
    if value is not None and not callable(value):
        raise ConfigError(f"Expected {name} to be a function or None, got {shown(value)}.")


def _silent(_: str) -> None:
    """Print nothing."""


def notebook() -> Any:
    """Return IPython's module `display` in a notebook's kernel, None elsewhere."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return None if getattr(shell, "kernel", None) is None else sys.modules["IPython.display"]
