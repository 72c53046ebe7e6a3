"""Reading IDX files, the format of MNIST and of data sets like it."""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fmnist_tracking.config import IMAGE_SIZE
from fmnist_tracking.errors import DataError, setting
from fmnist_tracking.files import open_untrusted

# Each part, by the beginning of its file's name, and the shape that it must have.
FILES: dict[str, tuple[int, ...]] = {
    "train-images": (60_000, IMAGE_SIZE, IMAGE_SIZE),
    "train-labels": (60_000,),
    "t10k-images": (10_000, IMAGE_SIZE, IMAGE_SIZE),
    "t10k-labels": (10_000,),
}
_UNSIGNED_BYTE = 0x08
_CLASSES = 10
_PLACES = ("", "raw", "FashionMNIST/raw")
# By so many bytes at most is a compressed file larger than what it holds.
_OVERHEAD = 2**20


def file_name(part: str) -> str:
    """Return the name of a part's file: `train-labels` is in `train-labels-idx1-ubyte`."""
    return f"{part}-idx{len(FILES[part])}-ubyte"


def find_files(folder: Path) -> dict[str, Path]:
    """Find the four IDX files in a folder, each with or without .gz, and with a dash or a dot.

    They may be in the folder `raw`, or `FashionMNIST/raw`, in it, where torchvision keeps them.

    Raises:
        DataError: files are missing, and the message names them; or the folder cannot be read.
    """
    found, missing = {}, []
    for part in FILES:
        plain = file_name(part)
        names = [one + end for one in (plain, plain.replace("-idx", ".idx")) for end in ("", ".gz")]
        try:
            existing = [
                folder / place / name
                for place in _PLACES
                for name in names
                if (folder / place / name).is_file()
            ]
        except OSError as error:
            raise DataError(
                f"Cannot read the data folder {folder}: {error.strerror}. Make it readable, or "
                f"name another folder with the data with {setting('data_dir')}."
            ) from None
        if existing:
            found[part] = existing[0]
        else:
            missing.append(f"{plain}.gz")
    if missing:
        raise DataError(
            f"The data folder {folder} lacks {' and '.join(missing)}. Expected four files: "
            f"{', '.join(file_name(part) + '.gz' for part in FILES)} (or the same without .gz)."
        )
    return found


def read_bytes(part: str, path: Path) -> bytes:
    """Read the decompressed content of a part's file; of one that is too long, a byte too many.

    Raises:
        DataError: the file cannot be read or its compressed data is damaged.
    """
    most = _size(part) + 1
    try:
        with open_untrusted(path, most + _OVERHEAD) as file:
            if path.suffix != ".gz":
                return file.read(most)
            with gzip.GzipFile(fileobj=file) as unpacked:
                return unpacked.read(most)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{path} is damaged or cut short ({error}). Get a new copy of it: "
            f"`fmnist-track data` fetches one where no {setting('data_dir')} is given."
        ) from None
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror}.") from None


def _size(part: str) -> int:
    return len(header(FILES[part])) + math.prod(FILES[part])


def header(shape: tuple[int, ...]) -> bytes:
    """Return the header of an IDX file that holds an array of unsigned bytes.

    Two zero bytes, a type code (8 for unsigned bytes), the number of dimensions, then each
    dimension as a big-endian 32-bit integer; see the MNIST database's page by Y. LeCun,
    C. Cortes and C. J. C. Burges.
    """
    return struct.pack(f">{1 + len(shape)}I", (_UNSIGNED_BYTE << 8) + len(shape), *shape)


def parse(part: str, content: bytes, path: Path) -> NDArray[np.uint8]:
    """Parse the bytes of an IDX file, and check them against the shape that the part must have.

    Args:
        part: a key of `FILES`.
        content: the decompressed bytes.
        path: of the file, for messages.

    Returns:
        uint8: images of shape (n, 28, 28) or labels, 0..9, of shape (n,).

    Raises:
        DataError: wrong magic number, shape, size or labels; the message names the file.
    """
    shape = FILES[part]
    kind = "images" if len(shape) > 1 else "labels"
    expected = header(shape)
    header_size = len(expected)
    if len(content) < header_size:
        raise DataError(f"{path} is cut short: it ends within its {header_size}-byte header.")
    if content[:4] != expected[:4]:
        raise DataError(
            f"{path} does not hold {kind}: its magic number is {content[:4].hex()}, expected "
            f"{expected[:4].hex()}. Were two files swapped, or is it another format?"
        )
    dimensions = struct.unpack(f">{len(shape)}I", content[4:header_size])
    if dimensions != shape:
        raise DataError(
            f"{path} holds {kind} of shape {dimensions}, expected {shape}. "
            "Were the train and t10k files swapped?"
        )
    expected_size = _size(part)
    if len(content) > expected_size:
        raise DataError(
            f"{path} is too long: expected {expected_size:,} bytes decompressed, and it has more."
        )
    if len(content) < expected_size:
        raise DataError(
            f"{path} is cut short: {len(content):,} bytes decompressed, expected {expected_size:,}."
        )
    array = np.frombuffer(content, dtype=np.uint8, offset=header_size).reshape(shape)
    if kind == "labels" and array.max() >= _CLASSES:
        raise DataError(f"{path} holds the label {array.max()}, expected labels 0 to 9.")
    return array
