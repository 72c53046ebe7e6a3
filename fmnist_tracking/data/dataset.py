"""Finding the data set, and verifying it."""

import contextlib
import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import platformdirs
from numpy.typing import NDArray

from fmnist_tracking.config import CLASS_NAMES, FASHION_MNIST, require_path
from fmnist_tracking.data import download, idx, npz
from fmnist_tracking.data.checks import MOST_BYTES, PARTS, require_alike
from fmnist_tracking.data.names import read_class_names
from fmnist_tracking.errors import DataError, setting
from fmnist_tracking.files import PRIVATE_FILE, private_folder
from fmnist_tracking.redact import printable
from fmnist_tracking.runtime import CACHE_VARIABLE
from fmnist_tracking.split_config import DataSize

Arrays: TypeAlias = dict[str, NDArray[np.uint8]]
DATA_DIR_VARIABLE = "FMNIST_DATA_DIR"
# Where `keras.datasets.fashion_mnist.load_data` keeps them.
_KERAS_CACHE = "~/.keras/datasets/fashion-mnist"
PARTIAL = "partial-"  # begins the name of a folder that is not filled yet
# SHA-256 of Fashion-MNIST's decompressed files.
FASHION_MNIST_SHA256 = {
    "train-images": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


_LONGEST_TITLE = 100  # in characters
_EXPECTED = (
    f"a folder with four IDX files, such as {idx.file_name('train-images')}.gz, or with an "
    f"{npz.SUFFIX} file"
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, repr=False)
class Dataset:
    """A whole data set of n images for training and m for testing.

    Attributes:
        train_images: uint8, 0 to 255, shape (n, height, width) if they are grey, else
            (n, height, width, 3).
        train_labels: uint8, from 0 on, shape (n,).
        test_images: uint8, shape (m, height, width) or (m, height, width, 3).
        test_labels: uint8, shape (m,).
        class_names: in label order.
        title: what its folder or file is called.
        source: where it was found, for people.
        sha256: of each of the four parts: of the bytes of an IDX file that holds it, decompressed.
    """

    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.uint8]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.uint8]
    class_names: tuple[str, ...]
    title: str
    source: str
    sha256: dict[str, str]

    def __repr__(self) -> str:
        return f"<{self.name}: {self.summary}, from {printable(self.source)}>"

    @property
    def is_fashion_mnist(self) -> bool:
        """Return whether the bytes are exactly Fashion-MNIST's."""
        return self.sha256 == FASHION_MNIST_SHA256

    @property
    def name(self) -> str:
        """Return "Fashion-MNIST", or of other data a name such as "data set kmnist"."""
        if self.is_fashion_mnist:
            return FASHION_MNIST
        return f"data set {printable(self.title, _LONGEST_TITLE)}"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Return height and width in pixels, and the channels: 1 for grey images, 3 for colour."""
        height, width, *channels = self.train_images.shape[1:]
        return height, width, channels[0] if channels else 1

    @property
    def classes(self) -> int:
        """Return how many classes there are."""
        return len(self.class_names)

    @property
    def size(self) -> DataSize:
        """Return how many images and classes there are, from which splits follow."""
        return DataSize(
            train_images=len(self.train_images),
            test_images=len(self.test_images),
            classes=self.classes,
        )

    @property
    def summary(self) -> str:
        """Describe it for people: how many images, of what size, in how many classes."""
        height, width, channels = self.image_shape
        return (
            f"{len(self.train_images):,} training and {len(self.test_images):,} test images of "
            f"{height}x{width} pixels in {'grey' if channels == 1 else 'colour'}, "
            f"{self.classes} classes"
        )

    @property
    def digest(self) -> str:
        """Return one SHA-256 for all four parts: that of their hex digests, joined by newlines.

        The class names are not in it: they change what a report says, and no number.
        """
        return _digest(self.sha256)


def _digest(sha256: Mapping[str, str]) -> str:
    return hashlib.sha256("\n".join(sha256[part] for part in PARTS).encode()).hexdigest()


FASHION_MNIST_DIGEST = _digest(FASHION_MNIST_SHA256)


def load_dataset(data_dir: str | Path | None = None) -> Dataset:
    """Load the data set that the user names, or else find or download Fashion-MNIST.

    The places are, in order: `data_dir`, what FMNIST_DATA_DIR names, the system package's folder,
    the user's cache, Keras's cache. If there is none, Fashion-MNIST is downloaded to the user's
    cache. Only what the user names may be another data set; elsewhere, it is verified.

    Args:
        data_dir: a folder with four IDX files or an `.npz` file, or such a file; None for the other
            places.

    Raises:
        DataError: no source had it, or what was found is damaged, or not what it should be.
    """
    named = load_named(data_dir)
    if named is not None:
        return named
    if download.PACKAGE_FOLDER.is_dir():
        return _load_fashion_mnist(download.PACKAGE_FOLDER)
    downloads = cache_dir() / "fashion-mnist"
    if not downloads.is_dir():
        keras_cache = Path(os.path.expanduser(_KERAS_CACHE))
        if keras_cache.is_dir():
            try:
                return _load_fashion_mnist(keras_cache)
            except DataError as error:  # it is another program's, which may be filling it
                _log.info("Keras's copy is not used: %s", error)
        _fetch_into(downloads)
    return _load_fashion_mnist(downloads)


def load_named(data_dir: str | Path | None = None) -> Dataset | None:
    """Load the data set in `data_dir` or what FMNIST_DATA_DIR names; None if neither is given.

    Raises:
        DataError: it is not there, is damaged, or not what it should be.
    """
    given = (os.environ.get(DATA_DIR_VARIABLE) or None) if data_dir is None else data_dir
    if given is None:
        return None
    place = require_path("data_dir", given)
    if place.suffix == npz.SUFFIX and place.is_file():
        return _load_npz(place.resolve())
    if not place.is_dir():
        by = DATA_DIR_VARIABLE if data_dir is None else setting("data_dir")
        raise DataError(
            f"There is no data folder {place}, which {by} names. Expected {_EXPECTED}, or such a "
            "file; without one, Fashion-MNIST is used or fetched."
        )
    folder = place.resolve()
    files = idx.find_files(folder)
    if files is not None:
        return _load_idx(files, folder)
    file = npz.find_file(folder)
    if file is not None:
        return _load_npz(file)
    raise DataError(f"The data folder {folder} holds no data set. Expected {_EXPECTED}.")


def cache_dir() -> Path:
    """Return the folder for downloads and splits; FMNIST_CACHE_DIR overrides the default."""
    override = os.environ.get(CACHE_VARIABLE)
    return Path(override) if override else Path(platformdirs.user_cache_dir("fmnist-tracking"))


def private_cache() -> None:
    """Make the cache's folder, which no other user can enter, unless a person has named one.

    Raises:
        OSError: it cannot be made.
    """
    private_folder(cache_dir(), CACHE_VARIABLE)


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Give an empty folder to fill, which is renamed to `folder` if the block ends without error.

    If two processes do so at once, the second changes nothing. The folder and its files are
    private to their owner.

    Raises:
        OSError: it cannot be created or renamed.
    """
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=PARTIAL) as name:
        partial = Path(name)
        yield partial
        for file in partial.iterdir():
            file.chmod(PRIVATE_FILE)
        try:
            partial.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster
                raise


def _fetch_into(folder: Path) -> None:
    try:
        private_cache()
        with new_folder(folder) as partial:
            download.fetch(partial, verify=_require_fashion_mnist_in)
    except OSError as error:
        raise DataError(
            f"Cannot keep the data in {folder.parent}: {error.strerror}. "
            f"Set {CACHE_VARIABLE} to a folder that can be written."
        ) from None
    except DataError as error:
        raise DataError(
            f"Fashion-MNIST is nowhere to be had. Tried: {setting('data_dir')} and "
            f"{DATA_DIR_VARIABLE} (not set); {download.PACKAGE_FOLDER} (not there); {folder} (not "
            f"there); {error}. Ways out: `apt-get install {download.DEBIAN_PACKAGE}`, or get the "
            f"four .gz files by other means and name their folder with {setting('data_dir')}."
        ) from None


def _require_fashion_mnist_in(folder: Path) -> None:
    for part, path in _files_in(folder).paths.items():
        _, found = idx.read(part, path)
        _require_fashion_mnist(part, found, path.name)


def _files_in(folder: Path) -> idx.IdxFiles:
    files = idx.find_files(folder)
    if files is None:
        raise DataError(f"The data folder {folder} holds no IDX files.")
    return files


def _load_fashion_mnist(folder: Path) -> Dataset:
    return _load_idx(_files_in(folder), folder, verify=_require_fashion_mnist)


def _load_idx(
    files: idx.IdxFiles, folder: Path, verify: Callable[[str, str, str], None] | None = None
) -> Dataset:
    arrays: Arrays = {}
    sums: dict[str, str] = {}
    left = MOST_BYTES
    for part in PARTS:
        path = files.paths[part]
        arrays[part], sums[part] = idx.read(part, path, left)
        left -= arrays[part].nbytes
        if verify is not None:
            verify(part, sums[part], str(path))
    require_alike(arrays, lambda part: str(files.paths[part]))
    return _as_dataset(arrays, sums, files.title, str(folder), (files.folder, folder))


def _load_npz(path: Path) -> Dataset:
    arrays, sums = npz.read(path)
    require_alike(arrays, lambda part: f"{path}, {npz.KEYS[part]},")
    return _as_dataset(arrays, sums, path.stem, str(path), (path.parent,))


def _as_dataset(
    arrays: Arrays, sums: dict[str, str], title: str, source: str, beside: Sequence[Path]
) -> Dataset:
    """Return a data set with names of classes: its own, or those in a file beside it, or numbers.

    The labels of some count from 1, such as those of EMNIST's letters: they are moved, but the
    classes are called by them.
    """
    labels = arrays["train-labels"], arrays["t10k-labels"]
    first = 1 if min(map(np.min, labels)) == 1 else 0
    numbers = range(first, int(max(map(np.max, labels))) + 1)
    names: tuple[str, ...] = CLASS_NAMES
    if sums != FASHION_MNIST_SHA256:
        names = read_class_names(beside, len(numbers)) or tuple(map(str, numbers))
    train_labels, test_labels = (one - np.uint8(first) if first else one for one in labels)
    return Dataset(
        train_images=arrays["train-images"],
        train_labels=train_labels,
        test_images=arrays["t10k-images"],
        test_labels=test_labels,
        class_names=names,
        title=title,
        source=source,
        sha256=sums,
    )


def _require_fashion_mnist(part: str, found: str, where: str) -> None:
    expected = FASHION_MNIST_SHA256[part]
    if found != expected:
        raise DataError(
            f"{where} is not Fashion-MNIST's: SHA-256 of its decompressed bytes is {found}, "
            f"expected {expected}. Remove it, and `fmnist-track data` fetches a good copy."
        )
