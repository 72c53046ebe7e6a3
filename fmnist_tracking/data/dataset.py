"""Finding the data set, and verifying it."""

import contextlib
import hashlib
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import platformdirs
from numpy.typing import NDArray

from fmnist_tracking.config import CLASS_NAMES, FASHION_MNIST, require_path
from fmnist_tracking.data import download, idx
from fmnist_tracking.errors import DataError, setting
from fmnist_tracking.files import PRIVATE_FILE, private_folder
from fmnist_tracking.redact import printable
from fmnist_tracking.runtime import CACHE_VARIABLE

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


_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, repr=False)
class Dataset:
    """The whole data set, verified.

    Attributes:
        train_images: shape (60000, 28, 28), uint8, 0 to 255.
        train_labels: shape (60000,), uint8, 0 to 9.
        test_images: shape (10000, 28, 28), uint8.
        test_labels: shape (10000,), uint8.
        source: where it was found, for people.
        sha256: of the decompressed bytes of each of the four files.
    """

    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.uint8]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.uint8]
    source: str
    sha256: dict[str, str]

    def __repr__(self) -> str:
        return (
            f"<{self.name}: {len(self.train_images):,} training images and "
            f"{len(self.test_images):,} test images, from {printable(self.source)}>"
        )

    @property
    def is_fashion_mnist(self) -> bool:
        """Return whether the bytes are exactly Fashion-MNIST's."""
        return self.sha256 == FASHION_MNIST_SHA256

    @property
    def name(self) -> str:
        """Return "Fashion-MNIST", or that it is not that."""
        return FASHION_MNIST if self.is_fashion_mnist else f"not {FASHION_MNIST}"

    @property
    def class_names(self) -> tuple[str, ...]:
        """Return the names in label order; for other data than Fashion-MNIST, the digits."""
        return class_names(self.digest)

    @property
    def digest(self) -> str:
        """Return one SHA-256 for all four files: that of their hex digests, joined by newlines."""
        return _digest(self.sha256)


def _digest(sha256: Mapping[str, str]) -> str:
    return hashlib.sha256("\n".join(sha256[part] for part in idx.FILES).encode()).hexdigest()


def class_names(digest: str) -> tuple[str, ...]:
    """Return the class names, in label order, of the data with this `Dataset.digest`.

    Only Fashion-MNIST's classes have names; for other data, they are the labels.
    """
    known = digest == _digest(FASHION_MNIST_SHA256)
    return CLASS_NAMES if known else tuple("0123456789")


def load_dataset(data_dir: str | Path | None = None) -> Dataset:
    """Find the data set, or download it; verify and load it.

    The places are, in order: `data_dir`, the folder in FMNIST_DATA_DIR, the system package's
    folder, the user's cache, Keras's cache. If there is none, it is downloaded to the user's cache.
    Only a folder that the user named may hold another data set than Fashion-MNIST.

    Args:
        data_dir: a folder with the four IDX files; None for the other places.

    Raises:
        DataError: no source had it, or what was found is damaged.
    """
    given = (os.environ.get(DATA_DIR_VARIABLE) or None) if data_dir is None else data_dir
    named = None if given is None else require_path("data_dir", given)
    if named is not None:
        if not named.is_dir():
            by = DATA_DIR_VARIABLE if data_dir is None else setting("data_dir")
            raise DataError(
                f"There is no data folder {named}, which {by} names. Expected a folder with the "
                "four IDX files; without one, Fashion-MNIST is used or fetched."
            )
        return _load_folder(named.resolve(), require_fashion_mnist=False)
    if download.PACKAGE_FOLDER.is_dir():
        return _load_folder(download.PACKAGE_FOLDER, require_fashion_mnist=True)
    downloads = cache_dir() / "fashion-mnist"
    if not downloads.is_dir():
        keras_cache = Path(os.path.expanduser(_KERAS_CACHE))
        if keras_cache.is_dir():
            try:
                return _load_folder(keras_cache, require_fashion_mnist=True)
            except DataError as error:  # it is another program's, which may be filling it
                _log.info("Keras's copy is not used: %s", error)
        _fetch_into(downloads)
    return _load_folder(downloads, require_fashion_mnist=True)


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
    for part, path in idx.find_files(folder).items():
        found = hashlib.sha256(idx.read_bytes(part, path)).hexdigest()
        _require_fashion_mnist(part, found, path.name)


def _load_folder(folder: Path, *, require_fashion_mnist: bool) -> Dataset:
    content: dict[str, NDArray[np.uint8]] = {}
    sha256: dict[str, str] = {}
    for part, path in idx.find_files(folder).items():
        decompressed = idx.read_bytes(part, path)
        sha256[part] = hashlib.sha256(decompressed).hexdigest()
        content[part] = idx.parse(part, decompressed, path)
        if require_fashion_mnist:
            _require_fashion_mnist(part, sha256[part], str(path))
    return Dataset(
        train_images=content["train-images"],
        train_labels=content["train-labels"],
        test_images=content["t10k-images"],
        test_labels=content["t10k-labels"],
        source=str(folder),
        sha256=sha256,
    )


def _require_fashion_mnist(part: str, found: str, where: str) -> None:
    expected = FASHION_MNIST_SHA256[part]
    if found != expected:
        raise DataError(
            f"{where} is not Fashion-MNIST's: SHA-256 of its decompressed bytes is {found}, "
            f"expected {expected}. Remove it, and `fmnist-track data` fetches a good copy."
        )
