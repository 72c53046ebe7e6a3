"""A split of the data in the user's cache, memory-mapped by all processes that train on it.

The pages of its files are in memory only once, however many processes read them. A cache that
cannot be written or read costs time, and no more. Nothing in it is believed: whoever reads it knows
from the data itself what it must hold.
"""

import contextlib
import hashlib
import logging
import math
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fmnist_tracking.data.dataset import PARTIAL, cache_dir, new_folder, private_cache
from fmnist_tracking.data.split import DataSplit
from fmnist_tracking.files import is_own_folder, open_untrusted, private_folder
from fmnist_tracking.results import DatasetPart

# A split of all images takes 47 MB; more splits are seldom in use at the same time.
_KEPT = 4
# A folder that is still partial after this time belongs to a process that was killed.
_WRITING_SECONDS = 3600
Parts = tuple[DatasetPart, DatasetPart]

_log = logging.getLogger(__name__)


def shared_split(
    parts: Parts, class_names: tuple[str, ...], make: Callable[[], DataSplit]
) -> DataSplit:
    """Load a split from the cache, memory-mapped; make and cache it if it is not there.

    Args:
        parts: what identifies its images; a copy with any other images is damaged.
        class_names: of the data, in label order.
        make: returns the split with these parts.
    """
    key = hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
    folder = cache_dir() / "splits" / key
    found = _read(folder, parts, class_names)
    if found is None:
        split = make()
        try:
            _write(folder, split, parts)
        except OSError as error:
            _log.warning("Cannot keep images in %s: %s.", folder.parent, error.strerror or error)
        found = _read(folder, parts, class_names) or split
    with contextlib.suppress(OSError):
        os.utime(folder)
    return found


def _write(folder: Path, split: DataSplit, parts: Parts) -> None:
    private_cache()
    private_folder(folder.parent)
    with new_folder(folder) as partial:
        for name in _shapes(parts):
            # Their values alone: what has no header has none that could lie.
            getattr(split, name).tofile(partial / name)
    _remove_old(folder.parent)


def _read(folder: Path, parts: Parts, class_names: tuple[str, ...]) -> DataSplit | None:
    """Load what `_write` has cached; remove it if damaged, but not if this user may not read it.

    What belongs to another user, who could change it after it was checked, is not used.
    """
    try:
        if not is_own_folder(folder):
            return None
        arrays = {name: _mapped(folder / name, shape) for name, shape in _shapes(parts).items()}
        split = DataSplit(**arrays, class_names=class_names)
        if split.parts() == parts:
            return split
    except PermissionError as error:
        _log.warning("The copy of images in %s cannot be read: %s.", folder, error.strerror)
        return None
    except (OSError, ValueError):
        if not folder.is_dir():
            return None
    _log.warning("The copy of images in %s is damaged and is made anew.", folder)
    shutil.rmtree(folder, ignore_errors=True)
    return None


def _shapes(parts: Parts) -> dict[str, tuple[int, ...]]:
    """Return the shape of each array of a split, by its name, which is its file's too."""
    training, validation = parts
    return {
        "train_images": training.shape,
        "train_labels": training.shape[:1],
        "validation_images": validation.shape,
        "validation_labels": validation.shape[:1],
    }


def _mapped(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Map a file that must hold exactly such an array; raise `ValueError` if it is too short."""
    with open_untrusted(path, math.prod(shape)) as file:
        if 0 in shape:  # which cannot be mapped
            return np.empty(shape, np.uint8)
        # TensorFlow uses an array without copying it only if it is writable: "c" does not write
        # to the file.
        return np.memmap(file, np.uint8, "c", shape=shape)


def _remove_old(splits: Path) -> None:
    """Remove the splits unused for longest; processes that have mapped them keep them."""
    with contextlib.suppress(OSError):
        age = {folder: time.time() - folder.stat().st_mtime for folder in splits.iterdir()}
        partial = {folder for folder in age if folder.name.startswith(PARTIAL)}
        old = sorted(age.keys() - partial, key=age.__getitem__)[_KEPT:]
        for folder in (*old, *(one for one in partial if age[one] > _WRITING_SECONDS)):
            shutil.rmtree(folder, ignore_errors=True)
