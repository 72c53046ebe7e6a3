"""Reading `.npz` files of NumPy, as Keras keeps MNIST in its cache."""

import io
import math
import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmnist_tracking.data.checks import (
    MOST_BYTES,
    PARTS,
    as_images,
    as_labels,
    is_images,
    read_values,
    require_image_shape,
    require_room,
)
from fmnist_tracking.data.idx import sha256
from fmnist_tracking.errors import DataError, first_line, setting
from fmnist_tracking.files import open_untrusted

SUFFIX = ".npz"
# The name of each part's array, as Keras calls it.
KEYS = dict(zip(PARTS, ("x_train", "y_train", "x_test", "y_test"), strict=True))
# Of the archive's own records, and of an array's header, in bytes.
_OVERHEAD, _LONGEST_HEADER = 2**20, 2**14
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED = 0x1  # a flag of an entry
_LONGEST_LIST = 200  # of the names of arrays in a message, in characters
# Python's and NumPy's errors for an archive or an array's header that is damaged.
_DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, struct.error, LookupError),
    *(ValueError, TypeError, SyntaxError, OverflowError, RecursionError, MemoryError),
)


def find_file(folder: Path) -> Path | None:
    """Return the one `.npz` file in a folder, None if there is none.

    Raises:
        DataError: there are several.
    """
    found = sorted(path for path in folder.iterdir() if path.suffix == SUFFIX and path.is_file())
    if len(found) > 1:
        raise DataError(
            f"The data folder {folder} holds {len(found)} {SUFFIX} files. Name one of them with "
            f"{setting('data_dir')}, such as {found[0]}."
        )
    return found[0] if found else None


def read(path: Path) -> tuple[dict[str, NDArray[np.uint8]], dict[str, str]]:
    """Read a data set from one file. Python objects in it are never loaded.

    Nothing that the file says of itself is believed before it is checked against its size.

    Returns:
        The images, uint8 of shape (n, height, width) or (n, height, width, 3), and the labels,
        uint8 of shape (n,), by part; and the SHA-256 of each, see `idx.sha256`.

    Raises:
        DataError: it cannot be read, is damaged, or does not hold what it should.
    """
    arrays, sums, left = {}, {}, MOST_BYTES
    try:
        with open_untrusted(path, MOST_BYTES + _OVERHEAD) as file:
            size = os.fstat(file.fileno()).st_size
            if not size:
                raise DataError(f"{path} is empty, expected an {SUFFIX} file with {_keys()}.")
            with zipfile.ZipFile(file) as archive:
                entries = _entries(archive, path)
                for part, entry in entries.items():
                    stored = min(entry.compress_size, size)
                    values = _read(archive, entry, part, f"{path}, {KEYS[part]},", stored, left)
                    left -= values.nbytes
                    arrays[part], sums[part] = values, sha256(values)
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror or first_line(error)}.") from None
    except _DAMAGED as error:
        raise DataError(
            f"{path} is damaged, or no {SUFFIX} file ({first_line(error)}). Get a new copy of it."
        ) from None
    return arrays, sums


def _keys() -> str:
    *first, last = KEYS.values()
    return f"{', '.join(first)} and {last}"


def _entries(archive: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    known = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
    missing = [key for key in KEYS.values() if key not in known]
    if missing:
        has = ", ".join(sorted(known)) or "none"
        raise DataError(
            f"{path} lacks {' and '.join(missing)}. Expected the arrays {_keys()}, got "
            f"{has[:_LONGEST_LIST]}{'…' if len(has) > _LONGEST_LIST else ''}."
        )
    return {part: known[key] for part, key in KEYS.items()}


def _read(
    archive: zipfile.ZipFile,
    entry: zipfile.ZipInfo,
    part: str,
    where: str,
    stored: int,
    left: int,
) -> NDArray[np.uint8]:
    if entry.compress_type not in _COMPRESSIONS or entry.flag_bits & _ENCRYPTED:
        raise DataError(
            f"{where} is encrypted, or compressed in a way that numpy.savez_compressed does not "
            "use. Write it anew with that."
        )
    with archive.open(entry) as stream:
        # NumPy would believe a header's length.
        head = io.BytesIO(stream.read(_LONGEST_HEADER))
    shape, by_columns, dtype = _header(head)
    _require_kind(part, shape, dtype, where)
    require_room(where, math.prod(shape) * dtype.itemsize, stored, left)
    with archive.open(entry) as stream:
        stream.read(head.tell())
        values = read_values(stream, shape[::-1] if by_columns else shape, dtype, where)
    values = values.transpose() if by_columns else values
    return as_images(values) if is_images(part) else as_labels(values.reshape(-1), where)


def _header(head: io.BytesIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read an array's shape, whether it is kept by columns, and its type.

    NumPy evaluates it as a literal, which runs no code.
    """
    is_first = np.lib.format.read_magic(head) == (1, 0)
    formats = np.lib.format
    read = formats.read_array_header_1_0 if is_first else formats.read_array_header_2_0
    shape, by_columns, dtype = read(head)
    if any(length < 0 for length in shape):
        raise ValueError(f"shape {shape}")
    return shape, by_columns, dtype


def _require_kind(part: str, shape: tuple[int, ...], dtype: np.dtype[Any], where: str) -> None:
    if dtype.hasobject:
        raise DataError(
            f"{where} holds Python objects, which are never loaded; expected numbers. Convert "
            'them with astype("uint8") before they are written.'
        )
    if is_images(part):
        if dtype != np.uint8:
            scale = "(255 * x).round()" if dtype.kind == "f" else "x"
            raise DataError(
                f"{where} holds pixels of type {dtype}, expected uint8 from 0 to 255. Convert "
                f'them: {scale}.astype("uint8")'
                f"{', if they are from 0 to 1' if dtype.kind == 'f' else ''}."
            )
        require_image_shape(where, shape)
        return
    if dtype.kind not in "iu":
        raise DataError(
            f"{where} holds labels of type {dtype}, expected whole numbers. Convert them with "
            'astype("uint8").'
        )
    if len(shape) not in (1, 2) or shape[1:] not in ((), (1,)):
        raise DataError(
            f"{where} holds labels of shape {shape}, expected (n,) or (n, 1). One-hot labels take "
            "y.argmax(axis=1)."
        )
