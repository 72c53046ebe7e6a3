"""Where a command writes its files."""

import tempfile
from pathlib import Path

from fmnist_tracking.errors import OutputError


def writable(folder: Path, named_by: str = "--output-dir") -> Path:
    """Make a folder if need be, and see that it takes files before the work begins.

    Args:
        folder: what will be written to.
        named_by: the option or variable that names another, for the message.

    Returns:
        The folder.

    Raises:
        OutputError: it cannot be made, or cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OutputError(
            f"Cannot write to the folder {folder}: {error.strerror}. Name another with {named_by}."
        ) from None
    return folder
