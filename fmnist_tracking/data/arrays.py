"""Arrays in a folder of the user's cache: written wholly or not at all, read memory-mapped."""

import json
import logging
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

_ABOUT = "about.json"
# A folder that is being written, or was when its process ended.
PARTIAL = "partial-"

_log = logging.getLogger(__name__)


def write(folder: Path, arrays: Mapping[str, NDArray[np.uint8]], about: Any) -> None:
    """Keep arrays for next time; where that cannot be done, to make them again is no harm.

    Args:
        folder: made; of two processes that make it at once, the second changes nothing.
        arrays: by name.
        about: something that `json` can write.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=PARTIAL))
    except OSError as error:
        _log.warning("Cannot keep images in %s: %s.", folder.parent, error.strerror)
        return
    try:
        for name, array in arrays.items():
            np.save(partial / f"{name}.npy", array)
        (partial / _ABOUT).write_text(json.dumps(about), encoding="utf-8")
        # As other folders are made: a cache may be shared by users, and mkdtemp's are its owner's.
        partial.chmod(folder.parent.stat().st_mode & 0o777)
        partial.rename(folder)
    except OSError as error:
        if not folder.is_dir():  # another process was not simply faster
            _log.warning("Cannot keep images in %s: %s.", folder, error.strerror)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def read(
    folder: Path, names: Iterable[str], mode: Literal["r", "c"]
) -> tuple[dict[str, NDArray[np.uint8]], Any] | None:
    """What `write` has kept, or None if it is not there or cannot be read.

    The bytes are not verified. A folder in which something is missing or cut short is removed; one
    that this user may not read, or that there is no memory for, stays as it is.

    Args:
        folder: which.
        names: of the arrays.
        mode: of the mapping: "r" cannot be written to, "c" can, which changes no file.
    """
    if not folder.is_dir():
        return None
    try:
        about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
        return {name: np.load(folder / f"{name}.npy", mmap_mode=mode) for name in names}, about
    except (FileNotFoundError, ValueError, EOFError):
        discard(folder)
        return None
    except OSError as error:
        _log.warning("The copy of images in %s cannot be read: %s.", folder, error.strerror)
        return None


def discard(folder: Path) -> None:
    """Remove a folder whose arrays are not what was written."""
    _log.warning("The copy of images in %s is damaged and is made anew.", folder)
    shutil.rmtree(folder, ignore_errors=True)
