"""The folder that a command writes its files to."""

import tempfile
from pathlib import Path

from fmnist_tracking.errors import OutputError, setting


def writable(folder: Path, named_by: str = setting("output_dir")) -> Path:
    """Create a folder if needed, check that it is writable before the work begins, and return it.

    The message names the option or variable that names another folder.

    Raises:
        OutputError: the folder cannot be created or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OutputError(
            f"Cannot write to the folder {folder}: {error.strerror}. Name another with {named_by}."
        ) from None
    return folder
