"""Data sets of noise, as files of every kind that is read."""

import gzip
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

PARTS = ("train-images", "train-labels", "t10k-images", "t10k-labels")
KEYS = ("x_train", "y_train", "x_test", "y_test")


@dataclass(frozen=True)
class Noise:
    """Images uint8 (n, height, width) or (n, height, width, 3), and labels uint8 (n,)."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray

    def parts(self) -> dict[str, np.ndarray]:
        return dict(zip(PARTS, vars(self).values(), strict=True))

    def arrays(self) -> dict[str, np.ndarray]:
        return dict(zip(KEYS, vars(self).values(), strict=True))


def noise(
    train: int, test: int, shape: tuple[int, ...] = (28, 28), classes: int = 10, first: int = 0
) -> Noise:
    """As many images of each class as of the others, or one more, in any order."""
    random = np.random.default_rng(0)

    def images(count: int) -> np.ndarray:
        return random.integers(0, 256, (count, *shape), np.uint8)

    def labels(count: int) -> np.ndarray:
        return random.permutation(np.arange(count) % classes + first).astype(np.uint8)

    return Noise(images(train), labels(train), images(test), labels(test))


def idx_bytes(array: np.ndarray) -> bytes:
    """An IDX file, written without the code that is tested."""
    code = {"u1": 0x08, "i4": 0x0C, "f4": 0x0D}[array.dtype.str[1:]]
    shape = struct.pack(f">{array.ndim}I", *array.shape)
    values = array.astype(array.dtype.newbyteorder(">")).tobytes()
    return bytes((0, 0, code, array.ndim)) + shape + values


def write_idx(
    folder: Path,
    data: Noise,
    name: str = "{part}-idx{dims}-ubyte",
    test: str = "t10k",
    others: Mapping[str, np.ndarray] | None = None,
) -> Path:
    """Write four IDX files, compressed where `name` ends with .gz; `others` replace parts."""
    folder.mkdir(parents=True)
    changed = {key.replace("_", "-"): array for key, array in (others or {}).items()}
    for part, array in {**data.parts(), **changed}.items():
        label = name.format(part=part.replace("t10k", test), dims=array.ndim)
        if array.dtype == np.int32:
            label = label.replace("ubyte", "int")
        content = idx_bytes(array)
        (folder / label).write_bytes(
            gzip.compress(content, 1) if label.endswith(".gz") else content
        )
    return folder


def write_npz(path: Path, arrays: Mapping[str, np.ndarray], compressed: bool = True) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save: Any = np.savez_compressed if compressed else np.savez
    save(path, **arrays)
    return path
