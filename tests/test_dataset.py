import gzip
import hashlib
import http.server
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from fmnist_tracking.config import CLASS_NAMES
from fmnist_tracking.data import Dataset, dataset, download, idx, load_dataset
from fmnist_tracking.errors import DataError
from processes import memory_taken


def test_real_data_is_verified(dataset: Dataset) -> None:
    assert dataset.is_fashion_mnist
    assert dataset.class_names == CLASS_NAMES
    assert repr(dataset) == (
        "<Fashion-MNIST: 60,000 training and 10,000 test images of 28x28 pixels in grey, "
        f"10 classes, from {dataset.source}>"
    )
    assert dataset.train_images.shape == (60_000, 28, 28)
    assert dataset.test_labels.shape == (10_000,)
    assert np.bincount(dataset.train_labels).tolist() == [6000] * 10
    assert np.bincount(dataset.test_labels).tolist() == [1000] * 10
    # The first training image is an ankle boot, label 9; its brightest pixel is white.
    assert (dataset.train_labels[0], dataset.train_images[0].max()) == (9, 255)


def test_named_folder_may_hold_other_data(other_data: Path) -> None:
    found = load_dataset(other_data)
    assert not found.is_fashion_mnist
    assert found.name == "data set other-data"
    assert found.class_names == tuple("0123456789")
    for part, digest in found.sha256.items():
        file = other_data / idx.file_name(part)
        assert digest == hashlib.sha256(file.read_bytes()).hexdigest()


def test_named_folder_by_environment(other_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FMNIST_DATA_DIR", str(other_data))
    assert load_dataset().source == str(other_data)


def test_usual_folder_must_hold_fashion_mnist(
    other_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "PACKAGE_FOLDER", other_data)
    with pytest.raises(DataError, match=r"train-images.* is not Fashion-MNIST's: SHA-256"):
        load_dataset()


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"There is no data folder .*nowhere"):
        load_dataset(tmp_path / "nowhere")


@pytest.mark.parametrize("place", [".", "raw", "FashionMNIST/raw"])
@pytest.mark.parametrize("name", ["{}-idx{}-ubyte", "{}.idx{}-ubyte.gz"])
def test_a_folder_as_other_programs_keep_it(real_copy: Path, place: str, name: str) -> None:
    inside = real_copy / place
    inside.mkdir(parents=True, exist_ok=True)
    for path in [*real_copy.glob("*.gz")]:
        part, _, rest = path.name.partition("-idx")
        other = inside / name.format(part, rest[0])
        content = path.read_bytes()
        path.unlink()
        other.write_bytes(content if other.suffix == ".gz" else gzip.decompress(content))
    assert load_dataset(real_copy).is_fashion_mnist


def test_folder_with_three_files(real_copy: Path) -> None:
    (real_copy / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match=r"lacks t10k-labels-idx1-ubyte\.gz\. Expected four files"):
        load_dataset(real_copy)


def test_truncated_file(real_copy: Path) -> None:
    file = real_copy / "train-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:1_000_000])
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz is damaged or cut short"):
        load_dataset(real_copy)


def test_damaged_compression(real_copy: Path) -> None:
    file = real_copy / "t10k-labels-idx1-ubyte.gz"
    file.write_bytes(b"not gzip at all")
    with pytest.raises(DataError, match="is damaged or cut short"):
        load_dataset(real_copy)


def test_swapped_labels_and_images(real_copy: Path) -> None:
    shutil.copy(real_copy / "t10k-labels-idx1-ubyte.gz", real_copy / "t10k-images-idx3-ubyte.gz")
    with pytest.raises(DataError, match="does not hold images: its magic number is 00000801"):
        load_dataset(real_copy)


def test_swapped_train_and_test(real_copy: Path) -> None:
    shutil.copy(real_copy / "t10k-images-idx3-ubyte.gz", real_copy / "train-images-idx3-ubyte.gz")
    with pytest.raises(DataError, match=r"holds 10,000 images and .* 60,000 labels.*swapped"):
        load_dataset(real_copy)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: content[:-1], "is cut short"),
        (lambda content: content + b"\0", "is too long"),
        (lambda content: content[:5], "ends within its 8-byte header"),
        (lambda content: content[:3], "ends within its header"),
        (lambda content: b"", "is empty, expected an IDX file with labels"),
    ],
)
def test_damaged_labels(real_copy: Path, change: object, words: str) -> None:
    file = real_copy / "t10k-labels-idx1-ubyte.gz"
    file.write_bytes(gzip.compress(change(gzip.decompress(file.read_bytes()))))  # type: ignore[operator]
    with pytest.raises(DataError, match=words):
        load_dataset(real_copy)


def members(content: bytes, times: int) -> bytes:
    """A gzip file of many members, each of the same content."""
    return gzip.compress(content, 1) * times


ZEROS = bytes(64 * 2**20)
BOMBS: dict[str, Callable[[Path], object]] = {
    "6 GB in members": lambda path: path.write_bytes(members(ZEROS, 96)),
    "6 GB after the right header": lambda path: path.write_bytes(
        gzip.compress(idx.header((60_000, 28, 28))) + members(ZEROS, 96)
    ),
    "1 GB in one stream": lambda path: path.write_bytes(gzip.compress(bytes(2**30), 1)),
    "a terabyte, not compressed": lambda path: os.truncate(plain(path), 10**12),
    "a terabyte that is none": lambda path: os.truncate(path, 10**12),
    "6 GB behind the images": lambda path: path.write_bytes(path.read_bytes() + members(ZEROS, 96)),
}


def plain(path: Path) -> Path:
    path.unlink()
    path.with_suffix("").touch()
    return path.with_suffix("")


@pytest.mark.slow
@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_data_is_unpacked_no_further_than_its_kind_allows(
    real_copy: Path, bomb: Callable[[Path], object]
) -> None:
    bomb(real_copy / "train-images-idx3-ubyte.gz")
    said, megabytes = memory_taken(
        "from fmnist_tracking.data import load_dataset", f"load_dataset({str(real_copy)!r})"
    )
    assert said.startswith("DataError ")
    assert "\n" not in said
    assert megabytes < 300


@pytest.fixture
def mirror(dataset: Dataset) -> Iterator[str]:
    """A real HTTP server of the real files."""
    handler = partial(_Quiet, directory=dataset.source)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def no_local_copy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(download, "PACKAGE_FOLDER", tmp_path / "no-package")
    monkeypatch.setenv("FMNIST_CACHE_DIR", str(tmp_path / "empty-cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # with Keras's cache


@pytest.mark.usefixtures("no_local_copy")
def test_fetched_from_a_mirror_and_kept(mirror: str, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = "http://127.0.0.1:9/"  # the discard port, where nobody listens
    fetch_from = partial(download.fetch, mirrors=(broken, mirror))
    monkeypatch.setattr(download, "fetch", fetch_from)
    first = load_dataset()
    assert first.is_fashion_mnist
    monkeypatch.setattr(download, "fetch", lambda _: pytest.fail("fetched twice"))
    assert load_dataset().source == first.source
    folder = Path(first.source)  # for whoever may read the cache, not for this user alone
    for path in (folder, *folder.iterdir()):
        assert path.stat().st_mode & 0o044 == folder.parent.stat().st_mode & 0o044


@pytest.mark.usefixtures("no_local_copy")
def test_what_keras_has_fetched_is_used_if_it_is_whole(
    real_copy: Path, mirror: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fmnist_tracking")
    theirs = Path.home() / ".keras" / "datasets" / "fashion-mnist"
    theirs.parent.mkdir(parents=True)
    real_copy.rename(theirs)
    assert load_dataset().source == str(theirs)
    assert not Path(os.environ["FMNIST_CACHE_DIR"]).exists()
    (theirs / "t10k-labels-idx1-ubyte.gz").unlink()  # as while Keras fetches them
    monkeypatch.setattr(download, "fetch", partial(download.fetch, mirrors=(mirror,)))
    assert load_dataset().source != str(theirs)
    assert "Keras's copy is not used: " in caplog.text
    assert len(list(theirs.iterdir())) == 3


@pytest.mark.usefixtures("no_local_copy")
def test_a_mirror_with_other_files_is_passed_over(
    mirror: str,
    other_data: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "fmnist_tracking")
    for file in other_data.iterdir():
        file.with_name(file.name + ".gz").write_bytes(gzip.compress(file.read_bytes(), 1))
    handler = partial(_Quiet, directory=str(other_data))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        wrong = f"http://127.0.0.1:{server.server_address[1]}/"
        fetch_from = partial(download.fetch, mirrors=(wrong, mirror))
        monkeypatch.setattr(download, "fetch", fetch_from)
        assert load_dataset().is_fashion_mnist
        server.shutdown()
    assert f"That failed: {wrong}" in caplog.text


@pytest.mark.usefixtures("no_local_copy")
def test_nowhere_to_be_had_names_each_place_and_each_way_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fetch_from = partial(download.fetch, mirrors=("http://127.0.0.1:9/",))
    monkeypatch.setattr(download, "fetch", fetch_from)
    monkeypatch.setenv("PATH", "")  # no apt-get
    with pytest.raises(DataError) as caught:
        load_dataset()
    message = str(caught.value)
    for part in (
        "data_dir",
        "FMNIST_DATA_DIR",
        "no-package",
        "empty-cache",
        "127.0.0.1:9",
        "apt-get and dpkg-deb are not installed",
        "apt-get install",
    ):
        assert part in message
    assert "\n" not in message


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("apt-get") is None, reason="a system without apt")
def test_debian_package_is_unpacked_without_installing_it(tmp_path: Path) -> None:
    download.fetch(tmp_path, verify=dataset._require_fashion_mnist_in, mirrors=())
    assert load_dataset(tmp_path).is_fashion_mnist
