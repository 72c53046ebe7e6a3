"""A split of the data in the user's cache, memory-mapped by all processes that train on it.

The pages of its files are in memory only once, however many processes read them.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from fmnist_tracking.data import array_cache
from fmnist_tracking.data.dataset import cache_dir
from fmnist_tracking.data.split import DataSplit
from fmnist_tracking.results import DatasetPart

_ARRAYS = ("train_images", "train_labels", "validation_images", "validation_labels")
# A split of all images takes 47 MB; more splits are seldom in use at the same time.
_KEPT = 4


def shared_split(
    key: str, make: Callable[[], DataSplit]
) -> tuple[DataSplit, tuple[DatasetPart, DatasetPart]]:
    """Load a split from the cache, memory-mapped; make and cache it if it is not there.

    Args:
        key: names everything that determines the split.
        make: makes the split.

    Returns:
        The split, and what identifies its images, computed from the returned bytes.
    """
    folder = _folder() / hashlib.sha256(key.encode()).hexdigest()[:16]
    found = _read(folder)
    if found is None:
        made = make()
        about = {
            "parts": [_plain(part) for part in made.parts()],
            "class_names": list(made.class_names),
        }
        array_cache.write(folder, {name: getattr(made, name) for name in _ARRAYS}, about)
        _remove_old()
        found = _read(folder) or (made, made.parts())
    with contextlib.suppress(OSError):
        os.utime(folder)
    return found


def _folder() -> Path:
    return cache_dir() / "splits"


def _read(folder: Path) -> tuple[DataSplit, tuple[DatasetPart, DatasetPart]] | None:
    # TensorFlow uses an array without copying it only if it is writable.
    kept = array_cache.read(folder, _ARRAYS, mode="c")
    if kept is None:
        return None
    content, about = kept
    try:
        split = DataSplit(**content, class_names=tuple(about["class_names"]))
        parts = split.parts()
        whole = [_plain(part) for part in parts] == about["parts"]
    except (KeyError, TypeError, ValueError):
        whole = False
    if not whole:
        array_cache.discard(folder)
        return None
    return split, parts


def _plain(part: DatasetPart) -> object:
    return json.loads(json.dumps(asdict(part)))


def _remove_old() -> None:
    """Remove the splits unused for longest; processes that have mapped them keep them."""
    with contextlib.suppress(OSError):
        whole = set(_folder().iterdir()) - array_cache.partial_folders(_folder())
        for folder in sorted(whole, key=lambda folder: folder.stat().st_mtime)[:-_KEPT]:
            shutil.rmtree(folder, ignore_errors=True)
