"""Arrays in the user's cache: written completely or not at all, and read memory-mapped."""

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
# A folder that is still partial after this time belongs to a process that was killed.
_WRITING_SECONDS = 3600

_log = logging.getLogger(__name__)


def write(folder: Path, arrays: Mapping[str, NDArray[np.uint8]], about: Any) -> None:
    """Cache arrays; if they cannot be written, only log a warning.

    Args:
        folder: created; if two processes create it at once, the second changes nothing.
        arrays: by name.
        about: metadata that `json` can write.
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
    """Create a partial folder beside a folder, to be filled and passed to `put_in_place`.

    Raises:
        OSError: it cannot be created.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in partial_folders(folder.parent):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > _WRITING_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(dir=folder.parent, prefix=_PARTIAL))


def partial_folders(parent: Path) -> set[Path]:
    """Return the folders that are being filled, or were when their process was killed."""
    return set(parent.glob(f"{_PARTIAL}*"))


def put_in_place(partial: Path, folder: Path) -> None:
    """Rename a filled folder from `begin` to `folder`.

    If two processes do so at once, the second changes nothing. Temporary folders and files are
    private to their owner, but users can share a cache: so whoever may read the cache gets
    permission to read the content.

    Raises:
        OSError: it cannot be renamed.
    """
    mode = folder.parent.stat().st_mode
    for file in partial.iterdir():
        file.chmod(mode & 0o644)
    partial.chmod(mode & 0o755)
    try:
        partial.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another process was faster
            raise


def read(
    folder: Path, names: Iterable[str], mode: Literal["r", "c"]
) -> tuple[dict[str, NDArray[np.uint8]], Any] | None:
    """Load what `write` has cached; return None if it is missing or cannot be read.

    The bytes are not verified. A folder that is incomplete is removed; one that this user may not
    read, or that does not fit into memory, is kept.

    Args:
        folder: the folder that `write` created.
        names: names of the arrays.
        mode: of the memory map: "r" is read-only; "c" can be written to, which does not change the
            file.
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
    """Remove a folder whose content is damaged."""
    _log.warning("The copy of images in %s is damaged and is made anew.", folder)
    shutil.rmtree(folder, ignore_errors=True)
