"""What images and labels must be like, whatever file they are read from."""

import io
from collections.abc import Callable, Mapping
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from fmnist_tracking.errors import DataError

# The four parts of a data set, in the order in which its digest covers them.
PARTS = ("train-images", "train-labels", "t10k-images", "t10k-labels")
# Of a whole data set, decompressed. A search holds it twice: as it is read, and split.
MOST_BYTES = 8 * 10**9
SMALLEST_SIDE, LARGEST_SIDE = 8, 256  # pixels
MOST_CLASSES = 256  # a label is a byte
# Images compress to a tenth or so. What unpacks to more than so many times its size, and to more
# than so many bytes, is made to fill the memory.
_MOST_RATIO, _HARMLESS_BYTES = 200, 2**28
_CHUNK = 2**22
_IMAGES = (
    "images as unsigned bytes of shape (n, height, width) or (n, height, width, channels), of "
    f"{SMALLEST_SIDE} to {LARGEST_SIDE} pixels a side and 1 or 3 channels"
)


def is_images(part: str) -> bool:
    """Return whether a part of a data set holds images, and not labels."""
    return part.endswith("images")


def require_image_shape(where: str, shape: tuple[int, ...]) -> None:
    """Refuse an array that cannot hold grey or colour images of a size that is dealt with.

    Args:
        where: the file, and what in it, for messages.
        shape: of the array.

    Raises:
        DataError: with what was expected, and how to convert what is there.
    """
    held = f"{where} holds an array of shape {shape}, expected {_IMAGES}"
    if len(shape) not in (3, 4):
        raise DataError(f"{held}. Flattened images take x.reshape(n, height, width).")
    if shape[0] == 0:
        raise DataError(f"{where} holds no images, expected at least one of each class.")
    channels = shape[3] if len(shape) == 4 else 1
    if channels not in (1, 3):
        first = shape[1] in (1, 3)
        how = "put its channels last: numpy.moveaxis(x, 1, -1)" if first else "keep 1 or 3 channels"
        raise DataError(f"{held}. Convert it: {how}.")
    if not all(SMALLEST_SIDE <= side <= LARGEST_SIDE for side in shape[1:3]):
        raise DataError(f"{held}. Scale the images, and write them anew.")


def require_room(where: str, declared: int, stored: int, left: int) -> None:
    """Refuse an array before it is read, if it is too large or cannot be in so small a file.

    Args:
        where: the file, and what in it, for messages.
        declared: size of the array in bytes, as the file says.
        stored: bytes that it takes in the file, compressed.
        left: how many bytes of `MOST_BYTES` the other arrays have left.

    Raises:
        DataError: it is refused.
    """
    if declared > left:
        raise DataError(
            f"{where} says that it holds {declared:,} bytes, expected at most {MOST_BYTES:,} in "
            "all files of a data set together. Use fewer images, or smaller ones."
        )
    if declared > max(_HARMLESS_BYTES, _MOST_RATIO * stored):
        raise DataError(
            f"{where} says that it holds {declared:,} bytes, in {stored:,} bytes of the file: "
            f"expected at most {_MOST_RATIO} times as many. It is damaged, or made to fill the "
            "memory."
        )


def read_values(
    stream: IO[bytes] | io.BufferedIOBase,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    where: str,
) -> NDArray[Any]:
    """Read exactly one array from a stream, which must end after it.

    No more memory is taken than the stream has bytes, whatever the shape says.

    Args:
        stream: decompressed, at the array's first byte.
        shape: of the array, which `require_room` has let pass.
        dtype: of its values.
        where: the file, and what in it, for messages.

    Raises:
        DataError: the stream is shorter or longer, or there is no memory.
    """
    try:
        values = np.empty(shape, dtype)
    except (MemoryError, ValueError):
        raise DataError(f"There is no memory for {where}, of shape {shape}.") from None
    content = values.reshape(-1).view(np.uint8).data
    done = 0
    while done < len(content):
        chunk = stream.read(min(_CHUNK, len(content) - done))
        if not chunk:
            raise DataError(
                f"{where} is cut short: {done:,} bytes of values, expected {len(content):,}."
            )
        content[done : done + len(chunk)] = chunk
        done += len(chunk)
    if stream.read(1):
        raise DataError(
            f"{where} is too long: expected {len(content):,} bytes of values, and it has more."
        )
    return values


def as_images(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return grey images as (n, height, width), colour ones as they are."""
    grey = values[..., 0] if values.ndim == 4 and values.shape[3] == 1 else values
    return _read_only(grey)


def as_labels(values: NDArray[Any], where: str) -> NDArray[np.uint8]:
    """Return labels, of any integer type and shape (n,), as unsigned bytes.

    Raises:
        DataError: there are none, or one is no byte.
    """
    if not len(values):
        raise DataError(f"{where} holds no labels, expected one for each image.")
    outside = values[(values < 0) | (values >= MOST_CLASSES)]
    if len(outside):
        raise DataError(
            f"{where} holds the label {outside[0]}, expected labels from 0 to {MOST_CLASSES - 1}."
        )
    return _read_only(values.astype(np.uint8))


def _read_only(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    values = np.ascontiguousarray(values)
    values.setflags(write=False)  # the splits of one data set share it
    return values


def require_alike(arrays: Mapping[str, NDArray[np.uint8]], where: Callable[[str], str]) -> None:
    """Refuse parts that are not of one data set.

    Args:
        arrays: the images and labels by part, as `as_images` and `as_labels` return them.
        where: returns the file of a part, for messages.

    Raises:
        DataError: there are not as many labels as images, the images for training and for testing
            differ in shape, or all are of one class.
    """
    for group in ("train", "t10k"):
        images, labels = f"{group}-images", f"{group}-labels"
        if len(arrays[images]) != len(arrays[labels]):
            raise DataError(
                f"{where(images)} holds {len(arrays[images]):,} images and {where(labels)} "
                f"{len(arrays[labels]):,} labels, expected as many of each. Were files for "
                "training and testing swapped?"
            )
    train, test = (arrays[f"{group}-images"].shape[1:] for group in ("train", "t10k"))
    if train != test:
        raise DataError(
            f"{where('train-images')} holds images of shape {train} and {where('t10k-images')} of "
            f"shape {test}, expected the same shape."
        )
    labels_of_all = [arrays[part] for part in PARTS if not is_images(part)]
    if min(map(np.min, labels_of_all)) == max(map(np.max, labels_of_all)):
        raise DataError(
            f"{where('train-labels')} and {where('t10k-labels')} hold the label "
            f"{labels_of_all[0][0]} alone, expected at least 2 classes."
        )
