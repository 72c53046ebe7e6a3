"""Standard output and standard error, which may be closed, full, unread, or know few characters."""

import codecs
import errno
import io
import os
import select
import sys
from typing import Any, TextIO

_PLAIN = {"★": "*", "✓": "+", "✗": "x", "…": "...", "·": "-"}
_ERRORS = "fmnist_tracking.plain"


class _Descriptor(io.RawIOBase):
    """A file descriptor to write to; what goes wrong with it is kept, not raised.

    Whoever has trained for hours must not lose the end of a command because nobody listens.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.failure: OSError | None = None

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, content: Any) -> int:
        if self.failure is not None:
            return len(content)
        try:
            return os.write(self._descriptor, content)
        except BlockingIOError:  # whoever shares the terminal or pipe made it so
            select.select([], [self._descriptor], [])
            return 0 if not content else self.write(content)
        except OSError as error:
            self.failure = error
            return len(content)


_output: _Descriptor | None = None


def prepare() -> None:
    """Make standard output and standard error safe to write to, whatever they are."""
    global _output
    codecs.register_error(_ERRORS, _plainly)
    for descriptor in (0, 1, 2):
        _occupy(descriptor)
    # Others, a test's for instance, are left as they are.
    if sys.stdout is sys.__stdout__:
        _output = _Descriptor(1)
        sys.stdout = _text(_output, sys.stdout)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _text(_Descriptor(2), sys.stderr)


def finish() -> str | None:
    """Write what is left to be written; say why it could not be, unless its reader went away."""
    sys.stdout.flush()
    failure = None if _output is None else _output.failure
    if failure is None or failure.errno == errno.EPIPE:
        return None
    return (
        f"Cannot write to standard output ({failure.strerror}): the results are not shown in full. "
        "Those of a search or a training are in the store, as `fmnist-track runs` lists them; "
        "files of a report are in its folder."
    )


def _occupy(descriptor: int) -> None:
    """See that no other file, the store's for instance, gets the number of a closed stream."""
    try:
        os.fstat(descriptor)
    except OSError:
        # Standard output for reading alone, so that to write to it fails as it does when closed.
        os.open(os.devnull, os.O_WRONLY if descriptor == 2 else os.O_RDONLY)
        os.set_inheritable(descriptor, True)


def _text(raw: _Descriptor, like: TextIO | None) -> TextIO:
    encoding = "utf-8" if like is None else like.encoding
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding=encoding, errors=_ERRORS, line_buffering=True
    )


def _plainly(error: UnicodeError) -> tuple[str, int]:
    """Replace characters that an encoding lacks by those it has."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(_PLAIN.get(character, "?") for character in lacking), error.end
