"""Reading IDX files, the format of MNIST and of data sets like it."""

import contextlib
import gzip
import hashlib
import math
import os
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

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
from fmnist_tracking.errors import DataError, setting
from fmnist_tracking.files import open_untrusted

# The types of values that are read, by their code in the header.
_UNSIGNED_BYTE, _INTEGER = 0x08, 0x0C
_TYPES: dict[int, np.dtype[Any]] = {_UNSIGNED_BYTE: np.dtype(np.uint8), _INTEGER: np.dtype(">i4")}
# Type and number of dimensions. QMNIST's labels are rows of integers, the class in front.
_IMAGES = ((_UNSIGNED_BYTE, 3), (_UNSIGNED_BYTE, 4))
_LABELS = ((_UNSIGNED_BYTE, 1), (_INTEGER, 1), (_INTEGER, 2))
# `train-images-idx3-ubyte.gz`, `emnist-balanced-test-labels-idx1-ubyte`, `t10k-labels.idx1-ubyte`,
# `qmnist-train-labels-idx2-int.gz`.
_FILE = re.compile(
    r"(?:(?P<prefix>.+)-)?(?P<group>train|t10k|test)-(?P<kind>images|labels)"
    r"(?P<mark>[-.])idx\d-(?:ubyte|int)(?P<compressed>\.gz)?"
)
# In the folder of a data set, torchvision keeps the files in one called so.
_RAW = "raw"
# Where torchvision keeps Fashion-MNIST among others.
_FASHION_MNIST = "FashionMNIST"
# By so many bytes at most is a compressed file larger than what it holds.
_OVERHEAD = 2**20


@dataclass(frozen=True, kw_only=True)
class IdxFiles:
    """The four files of a data set.

    Attributes:
        title: what they, or their folder, are called.
        folder: that they are in.
        paths: of each part.
    """

    title: str
    folder: Path
    paths: dict[str, Path]


def file_name(part: str) -> str:
    """Return the usual name of a part's file: of `train-labels`, `train-labels-idx1-ubyte`."""
    return f"{part}-idx{3 if is_images(part) else 1}-ubyte"


def find_files(folder: Path) -> IdxFiles | None:
    """Find the four IDX files in a folder; return None if it has none of such a name.

    Each may be with or without .gz, and with a dash or a dot before `idx`. They may be in the
    folder `raw` in it, or in one of a data set's own name, where torchvision keeps them. Their
    names may begin with that of a data set, as EMNIST's and QMNIST's do.

    Raises:
        DataError: files are missing, and the message names them; there are several data sets; or
            the folder cannot be read.
    """
    try:
        for place in (folder, folder / _RAW, folder / _FASHION_MNIST / _RAW):
            found = _in_place(place)
            if found:
                return _one_of(found, place, folder)
        others = {place: found for place in _raw_folders(folder) if (found := _in_place(place))}
    except OSError as error:
        raise DataError(
            f"Cannot read the data folder {folder}: {error.strerror}. Make it readable, or "
            f"name another folder with the data with {setting('data_dir')}."
        ) from None
    if len(others) > 1:
        names = sorted(place.parent.name for place in others)
        raise DataError(
            f"The data folder {folder} holds {len(others)} data sets, {', '.join(names)}. Name the "
            f"folder of one of them with {setting('data_dir')}."
        )
    return next((_one_of(found, place, folder) for place, found in others.items()), None)


def _raw_folders(folder: Path) -> list[Path]:
    return sorted(one / _RAW for one in folder.iterdir() if (one / _RAW).is_dir())


def _in_place(place: Path) -> dict[str, dict[str, Path]]:
    """Return the files in a folder, by the beginning of their names and by part."""
    if not place.is_dir():
        return {}
    named = sorted(  # with a dash before those with a dot, and those that need not be unpacked
        (match["mark"] != "-", bool(match["compressed"]), path.name, path, match)
        for path in place.iterdir()
        if (match := _FILE.fullmatch(path.name)) and path.is_file()
    )
    found: dict[str, dict[str, Path]] = {}
    for *_, path, match in named:
        group = "t10k" if match["group"] == "test" else match["group"]
        found.setdefault(match["prefix"] or "", {}).setdefault(f"{group}-{match['kind']}", path)
    return found


def _one_of(found: dict[str, dict[str, Path]], place: Path, folder: Path) -> IdxFiles:
    whole = [prefix for prefix, paths in found.items() if len(paths) == len(PARTS)]
    if not whole:
        paths = max(found.values(), key=len)
        missing = [f"{file_name(part)}.gz" for part in PARTS if part not in paths]
        raise DataError(
            f"The data folder {folder} lacks {' and '.join(missing)}. Expected four files: "
            f"{', '.join(file_name(part) + '.gz' for part in PARTS)} (or the same without .gz)."
        )
    if len(whole) > 1 and "" not in whole:
        raise DataError(
            f"The data folder {folder} holds {len(whole)} data sets, {', '.join(sorted(whole))}. "
            "Put the four files of one of them into a folder of its own."
        )
    prefix = "" if "" in whole else whole[0]
    named = place.parent if place.name == _RAW else place
    return IdxFiles(title=prefix or named.name or str(named), folder=place, paths=found[prefix])


def read(part: str, path: Path, left: int = MOST_BYTES) -> tuple[NDArray[np.uint8], str]:
    """Read a part of a data set, and compute its SHA-256; see `sha256`.

    Nothing that the header says is believed before it is checked against the file.

    Args:
        part: one of `PARTS`.
        path: of the file.
        left: how many bytes it may hold, decompressed.

    Returns:
        uint8: images of shape (n, height, width) or (n, height, width, 3), or labels, of shape
        (n,); and the SHA-256 in hex.

    Raises:
        DataError: it cannot be read, is damaged, or does not hold what it should.
    """
    with _decompressed(path) as (stream, size):
        code, shape = _read_header(part, path, stream)
        if is_images(part):
            require_image_shape(str(path), shape)
        dtype = _TYPES[code]
        declared = math.prod(shape) * dtype.itemsize
        require_room(str(path), declared, size, left)
        if path.suffix != ".gz":
            _require_length(path, 4 + 4 * len(shape) + declared, size)
        values = read_values(stream, shape, dtype, str(path))
    if is_images(part):
        images = as_images(values)
        return images, sha256(images)
    labels = as_labels(values[:, 0] if values.ndim == 2 and len(values) else values, str(path))
    return labels, sha256(labels)


def sha256(values: NDArray[np.uint8]) -> str:
    """Return the SHA-256, in hex, of the IDX file of unsigned bytes that holds an array.

    So the same data has the same digest, whatever kind of file it is read from.
    """
    digest = hashlib.sha256(header(values.shape))
    digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()


def header(shape: tuple[int, ...]) -> bytes:
    """Return the header of an IDX file that holds an array of unsigned bytes.

    Two zero bytes, a type code (8 for unsigned bytes), the number of dimensions, then each
    dimension as a big-endian 32-bit integer; see the MNIST database's page by Y. LeCun,
    C. Cortes and C. J. C. Burges.
    """
    return _magic(_UNSIGNED_BYTE, len(shape)) + struct.pack(f">{len(shape)}I", *shape)


def _magic(code: int, dimensions: int) -> bytes:
    return bytes((0, 0, code, dimensions))


@contextlib.contextmanager
def _decompressed(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """Open a file's content as a stream; give its size on the disk too, in bytes."""
    try:
        with open_untrusted(path, MOST_BYTES + _OVERHEAD) as file:
            size = os.fstat(file.fileno()).st_size
            if path.suffix != ".gz":
                yield file, size
                return
            with gzip.GzipFile(fileobj=file) as unpacked:
                yield unpacked, size  # type: ignore[misc]  # it reads as a file does
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{path} is damaged or cut short ({error}). Get a new copy of it: Fashion-MNIST's is "
            f"fetched by `fmnist-track data` where no {setting('data_dir')} is given."
        ) from None
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror}.") from None


def _read_header(part: str, path: Path, stream: BinaryIO) -> tuple[int, tuple[int, ...]]:
    """Return the code of the values' type, and the shape."""
    kind, known = ("images", _IMAGES) if is_images(part) else ("labels", _LABELS)
    magic = stream.read(4)
    if not magic:
        raise DataError(f"{path} is empty, expected an IDX file with {kind}.")
    if len(magic) < 4:
        raise DataError(f"{path} is cut short: it ends within its header.")
    expected = [_magic(*one) for one in known]
    if magic not in expected:
        raise DataError(
            f"{path} does not hold {kind}: its magic number is {magic.hex()}, expected "
            f"{' or '.join(one.hex() for one in expected)}. Were two files swapped, or is it "
            "another format?"
        )
    code, dimensions = magic[2:]
    rest = stream.read(4 * dimensions)
    if len(rest) < 4 * dimensions:
        raise DataError(
            f"{path} is cut short: it ends within its {4 + 4 * dimensions}-byte header."
        )
    return code, struct.unpack(f">{dimensions}I", rest)


def _require_length(path: Path, expected: int, size: int) -> None:
    if size > expected:
        raise DataError(f"{path} is too long: {size:,} bytes, expected {expected:,}.")
    if size < expected:
        raise DataError(f"{path} is cut short: {size:,} bytes, expected {expected:,}.")
