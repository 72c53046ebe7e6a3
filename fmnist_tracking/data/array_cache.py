"""Arrays in a folder of the user's cache: written wholly or not at all, read memory-mapped."""

import contextlib
import json
import logging
import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

_ABOUT = "about.json"
_PARTIAL = "partial-"
# After so long, a folder that is still partial is one whose process was killed.
_WRITING_SECONDS = 3600

_log = logging.getLogger(__name__)


def write(folder: Path, arrays: Mapping[str, NDArray[np.uint8]], about: Any) -> None:
    """Keep arrays for next time; where that cannot be done, to make them again is no harm.

    Args:
        folder: made; of two processes that make it at once, the second changes nothing.
        arrays: by name.
        about: something that `json` can write.
    """
    try:
        partial = begin(folder)
    except OSError as error:
        _log.warning("Cannot keep images in %s: %s.", folder.parent, error.strerror)
        return
    try:
        for name, array in arrays.items():
            np.save(partial / f"{name}.npy", array)
        (partial / _ABOUT).write_text(json.dumps(about), encoding="utf-8")
        put_in_place(partial, folder)
    except OSError as error:
        _log.warning("Cannot keep images in %s: %s.", folder, error.strerror)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def begin(folder: Path) -> Path:
    """A new folder beside this one, to be filled and then put in its place.

    Raises:
        OSError: it cannot be made.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in partial_folders(folder.parent):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > _WRITING_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(dir=folder.parent, prefix=_PARTIAL))


def partial_folders(parent: Path) -> set[Path]:
    """The folders in this one that are being filled, or were when their process was killed."""
    return set(parent.glob(f"{_PARTIAL}*"))


def put_in_place(partial: Path, folder: Path) -> None:
    """Rename what `begin` gave to `folder`; of two processes that do, the second changes nothing.

    Whoever may read the cache may read what is in it: temporary folders and files are their
    owner's alone, and users can share a cache.

    Raises:
        OSError: it cannot be done.
    """
    mode = folder.parent.stat().st_mode
    for file in partial.iterdir():
        file.chmod(mode & 0o644)
    partial.chmod(mode & 0o755)
    try:
        partial.rename(folder)
    except OSError:
        if not folder.is_dir():  # another process was not simply faster
            raise


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
    try:
        if not folder.is_dir():
            return None
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
