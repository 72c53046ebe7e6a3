"""A split of the data in the user's cache, memory-mapped by all processes that train on it.

The pages of its files are in memory only once, however many processes read them. A cache that
cannot be written or read costs time, and no more.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np

from fmnist_tracking.data.dataset import PARTIAL, cache_dir, new_folder
from fmnist_tracking.data.split import DataSplit
from fmnist_tracking.results import DatasetPart

_ARRAYS = ("train_images", "train_labels", "validation_images", "validation_labels")
_ABOUT = "about.json"
# A split of all images takes 47 MB; more splits are seldom in use at the same time.
_KEPT = 4
# A folder that is still partial after this time belongs to a process that was killed.
_WRITING_SECONDS = 3600

_log = logging.getLogger(__name__)


def shared_split(
    key: str, make: Callable[[], DataSplit]
) -> tuple[DataSplit, tuple[DatasetPart, DatasetPart]]:
    """Load a split from the cache, memory-mapped; make and cache it if it is not there.

    The key names everything that determines the split.

    Returns:
        The split, and what identifies its images, computed from the returned bytes.
    """
    folder = cache_dir() / "splits" / hashlib.sha256(key.encode()).hexdigest()[:16]
    found = _read(folder)
    if found is None:
        split = make()
        parts = split.parts()
        try:
            _write(folder, split, parts)
        except OSError as error:
            _log.warning("Cannot keep images in %s: %s.", folder.parent, error.strerror or error)
        found = _read(folder) or (split, parts)
    with contextlib.suppress(OSError):
        os.utime(folder)
    return found


def _write(folder: Path, split: DataSplit, parts: tuple[DatasetPart, DatasetPart]) -> None:
    with new_folder(folder) as partial:
        for name in _ARRAYS:
            np.save(partial / f"{name}.npy", getattr(split, name))
        (partial / _ABOUT).write_text(_about(split, parts), encoding="utf-8")
    _remove_old(folder.parent)


def _read(folder: Path) -> tuple[DataSplit, tuple[DatasetPart, DatasetPart]] | None:
    """Load what `_write` has cached; remove it if damaged, but not if this user may not read it."""
    try:
        if not folder.is_dir():
            return None
        about = (folder / _ABOUT).read_text(encoding="utf-8")
        # TensorFlow uses an array without copying it only if it is writable: "c" does not write
        # to the file.
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="c") for name in _ARRAYS}
        split = DataSplit(**arrays, class_names=tuple(json.loads(about)["class_names"]))
        parts = split.parts()
        if _about(split, parts) == about:
            return split, parts
    except (FileNotFoundError, EOFError, KeyError, TypeError, ValueError):
        pass
    except OSError as error:
        _log.warning("The copy of images in %s cannot be read: %s.", folder, error.strerror)
        return None
    _log.warning("The copy of images in %s is damaged and is made anew.", folder)
    shutil.rmtree(folder, ignore_errors=True)
    return None


def _about(split: DataSplit, parts: tuple[DatasetPart, DatasetPart]) -> str:
    return json.dumps({"parts": list(map(asdict, parts)), "class_names": split.class_names})


def _remove_old(splits: Path) -> None:
    """Remove the splits unused for longest; processes that have mapped them keep them."""
    with contextlib.suppress(OSError):
        age = {folder: time.time() - folder.stat().st_mtime for folder in splits.iterdir()}
        partial = {folder for folder in age if folder.name.startswith(PARTIAL)}
        old = sorted(age.keys() - partial, key=age.__getitem__)[_KEPT:]
        for folder in (*old, *(one for one in partial if age[one] > _WRITING_SECONDS)):
            shutil.rmtree(folder, ignore_errors=True)
