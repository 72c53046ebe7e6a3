"""Where a command writes its files."""

import tempfile
from pathlib import Path

from fmnist_tracking.errors import OutputError


def writable(folder: Path) -> Path:
    """The folder, made if need be, and known to take files before the work begins.

    Raises:
        OutputError: it cannot be made, or cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OutputError(
            f"Cannot write to the folder {folder}: {error.strerror}. Name another with "
            "--output-dir."
        ) from None
    return folder
