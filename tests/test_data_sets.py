"""Any image classification set: files of every kind, and every way in which they are broken."""

import dataclasses
import gzip
import hashlib
import io
import json
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from conftest import Call
from data_sets import Noise, idx_bytes, noise, write_idx, write_npz
from fmnist_tracking.config import CLASS_NAMES
from fmnist_tracking.data import Dataset, checks, load_dataset, npz, split_dataset, test_set
from fmnist_tracking.errors import ConfigError, DataError
from fmnist_tracking.split_config import PROTOCOLS, DataSize, Protocol, SplitConfig
from processes import memory_taken

GREY = noise(2400, 600)
COLOUR = noise(300, 100, (32, 32, 3))
LETTERS = noise(47 * 20, 47 * 4, classes=47)


def qmnist_labels(labels: np.ndarray) -> np.ndarray:
    """Rows of eight integers, the class in front."""
    rows = np.arange(8 * len(labels), dtype=np.int32).reshape(-1, 8) + 1000
    rows[:, 0] = labels
    return rows


def torchvision(folder: Path) -> None:
    write_idx(folder / "KMNIST" / "raw", GREY)
    for file in [*(folder / "KMNIST" / "raw").iterdir()]:  # it keeps what it has unpacked
        file.with_name(file.name + ".gz").write_bytes(gzip.compress(file.read_bytes(), 1))


KINDS: dict[str, tuple[Callable[[Path], object], Noise, str]] = {
    "KMNIST": (
        lambda folder: write_idx(folder, GREY, "{part}-idx{dims}-ubyte.gz"),
        GREY,
        "data set given",
    ),
    "with dots": (lambda folder: write_idx(folder, GREY, "{part}.idx{dims}-ubyte"), GREY,
                  "data set given"),
    "torchvision": (torchvision, GREY, "data set KMNIST"),
    "EMNIST": (
        lambda folder: write_idx(
            folder, LETTERS, "emnist-balanced-{part}-idx{dims}-ubyte.gz", "test"
        ),
        LETTERS,
        "data set emnist-balanced",
    ),
    "QMNIST": (
        lambda folder: write_idx(
            folder,
            GREY,
            "qmnist-{part}-idx{dims}-ubyte.gz",
            "test",
            {
                "train_labels": qmnist_labels(GREY.train_labels),
                "t10k_labels": qmnist_labels(GREY.test_labels),
            },
        ),
        GREY,
        "data set qmnist",
    ),
    "Keras's mnist.npz": (
        lambda folder: write_npz(folder / "mnist.npz", GREY.arrays()),
        GREY,
        "data set mnist",
    ),
    "colour, with labels as CIFAR's": (
        lambda folder: write_npz(
            folder / "cifar.npz",
            {
                **COLOUR.arrays(),
                "y_train": COLOUR.train_labels[:, np.newaxis].astype(np.int64),
                "y_test": COLOUR.test_labels[:, np.newaxis].astype(np.int16),
                "about": np.arange(3),
            },
            compressed=False,
        ),
        COLOUR,
        "data set cifar",
    ),
    "colour in IDX files": (lambda folder: write_idx(folder, COLOUR), COLOUR, "data set given"),
    "one channel, kept by columns": (
        lambda folder: write_npz(
            folder / "grey.npz",
            {
                **GREY.arrays(),
                "x_train": np.asfortranarray(GREY.train_images[..., np.newaxis]),
                "x_test": GREY.test_images[..., np.newaxis],
            },
        ),
        GREY,
        "data set grey",
    ),
    "two classes of 8x9 pixels": (
        lambda folder: write_idx(folder, noise(20, 4, (8, 9), 2)),
        noise(20, 4, (8, 9), 2),
        "data set given",
    ),
    "256 classes": (
        lambda folder: write_idx(folder, noise(2048, 256, (8, 8), 256)),
        noise(2048, 256, (8, 8), 256),
        "data set given",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("write", "data", "name"), KINDS.values(), ids=KINDS)
def test_each_kind_of_data_is_read_split_and_told_apart(
    tmp_path: Path, write: Callable[[Path], object], data: Noise, name: str
) -> None:
    folder = tmp_path / "given"
    write(folder)
    found = load_dataset(folder)
    for read, written in zip(arrays_of(found), vars(data).values(), strict=True):
        assert read.dtype == np.uint8
        np.testing.assert_array_equal(read, written)
    assert (found.name, found.is_fashion_mnist) == (name, False)
    height, width, *channels = data.train_images.shape[1:]
    assert found.image_shape == (height, width, *(channels or [1]))
    classes = int(data.train_labels.max()) + 1
    assert found.class_names == tuple(map(str, range(classes)))
    assert found.size == DataSize(
        train_images=len(data.train_images), test_images=len(data.test_images), classes=classes
    )
    # The digest is that of four IDX files, whatever the data was read from.
    sums = [hashlib.sha256(idx_bytes(array)).hexdigest() for array in vars(data).values()]
    assert list(found.sha256.values()) == sums
    assert found.digest == hashlib.sha256("\n".join(sums).encode()).hexdigest()
    for protocol in PROTOCOLS:
        config = SplitConfig(protocol=protocol, data=found.size)
        split, test = split_dataset(found, config), test_set(found, config)
        sizes = len(split.train_labels), len(split.validation_labels)
        assert sizes == (config.training_images, config.validation_images)
        assert sum(sizes) + len(test.labels) == len(data.train_images) + len(data.test_images)
        for images in (split.train_images, split.validation_images, test.images):
            assert images.shape[1:] == found.image_shape
        for labels in (split.train_labels, split.validation_labels):
            assert set(labels) == set(range(classes))
        assert len(split.parts()[0].class_counts) == classes


def arrays_of(found: Dataset) -> tuple[np.ndarray, ...]:
    return found.train_images, found.train_labels, found.test_images, found.test_labels


def test_images_keep_their_labels_when_all_are_pooled(tmp_path: Path) -> None:
    found = load_dataset(write_idx(tmp_path / "given", COLOUR))
    known = {
        image.tobytes(): label
        for images, labels in (
            (found.train_images, found.train_labels),
            (found.test_images, found.test_labels),
        )
        for image, label in zip(images, labels, strict=True)
    }
    config = SplitConfig(protocol="coursework", data=found.size, limit=100)
    split, test = split_dataset(found, config), test_set(found, config)
    for images, labels in (
        (split.train_images, split.train_labels),
        (split.validation_images, split.validation_labels),
        (test.images, test.labels),
    ):
        for image, label in zip(images, labels, strict=True):
            assert known.pop(image.tobytes()) == label


def test_a_file_may_be_named_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_npz(tmp_path / "mnist.npz", GREY.arrays())
    write_npz(tmp_path / "other.npz", GREY.arrays())
    assert load_dataset(path).source == str(path)
    monkeypatch.setenv("FMNIST_DATA_DIR", str(path))
    assert load_dataset().name == "data set mnist"


def test_fashion_mnist_is_known_in_any_file(tmp_path: Path, dataset: Dataset) -> None:
    keys = ("x_train", "y_train", "x_test", "y_test")
    path = write_npz(tmp_path / "f.npz", dict(zip(keys, arrays_of(dataset), strict=True)), False)
    (tmp_path / "class_names.txt").write_text("these are not read\n")
    found = load_dataset(path)
    assert found.is_fashion_mnist
    assert (found.digest, found.class_names) == (dataset.digest, CLASS_NAMES)


def test_labels_that_count_from_1_name_their_classes(tmp_path: Path) -> None:
    letters = noise(26 * 10, 26 * 2, classes=26, first=1)
    found = load_dataset(write_idx(tmp_path / "letters", letters))
    assert found.class_names == tuple(map(str, range(1, 27)))
    np.testing.assert_array_equal(found.train_labels, letters.train_labels - 1)
    np.testing.assert_array_equal(found.test_labels, letters.test_labels - 1)
    assert found.sha256["train-labels"] == (
        hashlib.sha256(idx_bytes(letters.train_labels)).hexdigest()
    )


NAMES = ["お", "き", "す", "つ", "な", "は", "ま", "や", "れ", "を"]


@pytest.mark.parametrize("file", ["class_names.txt", "classes.txt", "labels.txt"])
@pytest.mark.parametrize("place", [".", "KMNIST/raw"])
def test_classes_are_called_as_the_file_beside_them_says(
    tmp_path: Path, file: str, place: str
) -> None:
    torchvision(tmp_path)
    plain = load_dataset(tmp_path)
    (tmp_path / place / file).write_text("\ufeff" + "\r\n".join(NAMES) + "\n\n", "utf-8")
    found = load_dataset(tmp_path)
    assert found.class_names == tuple(NAMES)
    assert found.digest == plain.digest


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("\n".join(NAMES[:9]), "has 9 lines, expected 10"),
        ("", "has 0 lines, expected 10"),
        ("\n".join([*NAMES[:9], NAMES[0]]), "has the name 'お' twice"),
        ("\n".join([*NAMES[:4], " ", *NAMES[5:]]), "has the name '' on line 5"),
        ("\n".join([*NAMES[:9], "\x1b[31mred"]), r"has the name .*x1b\[31mred.* on line 10"),
        ("\n".join([*NAMES[:9], "a" * 101]), "expected one of 1 to 100 printable characters"),
        ("\n".join(NAMES).encode("utf-16"), "is no text in UTF-8"),
        (b"\n" * 2**20, "expected 262,144 at most"),
    ],
)
def test_class_names_that_cannot_be_those_are_refused(
    other_data: Path, content: str | bytes, words: str
) -> None:
    file = other_data / "class_names.txt"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(other_data, words, file)


def refused(given: Path, words: str, file: Path | None = None) -> None:
    with pytest.raises(DataError, match=words) as caught:
        load_dataset(given)
    message = str(caught.value)
    assert message.count("\n") == 0
    assert str(file or given) in message


def labels(data: Noise, first: int) -> np.ndarray:
    changed = data.train_labels.astype(np.int32)
    changed[0] = first
    return changed


BROKEN_IDX: dict[str, tuple[dict[str, np.ndarray], str]] = {
    "fewer labels": (
        {"train_labels": GREY.train_labels[1:]},
        "holds 2,400 images and .*train-labels-idx1-ubyte 2,399 labels, expected as many",
    ),
    "other test images": (
        {"t10k_images": GREY.test_images[:, 1:]},
        r"of shape \(28, 28\) and .*t10k-images-idx3-ubyte of shape \(27, 28\), expected the same",
    ),
    "colour test images": (
        {"t10k_images": np.stack([GREY.test_images] * 3, -1)},
        r"of shape \(28, 28, 3\), expected the same shape",
    ),
    "swapped": (
        {"train_images": GREY.train_labels, "train_labels": GREY.train_images},
        "does not hold images: its magic number is 00000801, expected 00000803 or 00000804",
    ),
    "floats": (
        {"train_images": GREY.train_images.astype(np.float32)},
        "does not hold images: its magic number is 00000d03",
    ),
    "no images": ({"train_images": GREY.train_images[:0]}, "holds no images, expected at least"),
    "no labels": ({"train_labels": GREY.train_labels[:0]}, "holds no labels, expected one"),
    "channels first": (
        {"train_images": np.moveaxis(COLOUR.train_images, -1, 1)},
        r"channels. Convert it: put its channels last: numpy.moveaxis\(x, 1, -1\)",
    ),
    "an alpha channel": (
        {"train_images": np.zeros((300, 32, 32, 4), np.uint8)},
        r"of shape \(300, 32, 32, 4\), expected images .*: keep 1 or 3 channels",
    ),
    "too small": (
        {"train_images": GREY.train_images[:, :7]},
        r"of shape \(2400, 7, 28\), expected images .* of 8 to 256 pixels a side",
    ),
    "too large": (
        {"train_images": np.zeros((10, 28, 257), np.uint8)},
        "of 8 to 256 pixels a side and 1 or 3 channels. Scale the images",
    ),
    "a label that is none": ({"train_labels": labels(GREY, 256)}, "holds the label 256, expected"),
    "a negative label": (
        {"train_labels": labels(GREY, -1)},
        "holds the label -1, expected labels from 0 to 255",
    ),
    "one class": (
        {"train_labels": np.full(2400, 3, np.uint8), "t10k_labels": np.full(600, 3, np.uint8)},
        "hold the label 3 alone, expected at least 2 classes",
    ),
}


@pytest.mark.parametrize(("changed", "words"), BROKEN_IDX.values(), ids=BROKEN_IDX)
def test_idx_files_that_do_not_belong_together_are_refused_in_a_line(
    tmp_path: Path, changed: dict[str, np.ndarray], words: str
) -> None:
    refused(write_idx(tmp_path / "given", GREY, others=changed), words)


def rewritten(**changed: np.ndarray | None) -> Callable[[Path], object]:
    arrays = {**GREY.arrays(), **changed}
    return lambda path: write_npz(path, {k: v for k, v in arrays.items() if v is not None})


def lying(header: str) -> Callable[[Path], object]:
    """An array of 100 bytes whose header says what it likes."""

    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for key, array in GREY.arrays().items():
                plain = io.BytesIO()
                np.save(plain, array)
                content = plain.getvalue()
                if key == "x_train":
                    text = header.encode()
                    content = (
                        b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(100)
                    )
                archive.writestr(f"{key}.npy", content)

    return write


def changed_bytes(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        rewritten()(path)
        path.write_bytes(change(path.read_bytes()))

    return write


OBJECTS = np.array([[1, 2], None], dtype=object)
BROKEN_NPZ: dict[str, tuple[Callable[[Path], object], str]] = {
    "a key is missing": (
        rewritten(y_test=None),
        "lacks y_test. Expected the arrays x_train, y_train, x_test and y_test, got x_test, x_tr",
    ),
    "Python objects": (
        rewritten(x_train=OBJECTS),
        "x_train, holds Python objects, which are never",
    ),
    "labels that are objects": (rewritten(y_test=OBJECTS), "y_test, holds Python objects"),
    "floats from 0 to 1": (
        rewritten(x_train=(GREY.train_images / 255).astype(np.float32)),
        r"pixels of type float32, expected uint8 .*: \(255 \* x\).round\(\).astype",
    ),
    "wide integers": (
        rewritten(x_test=GREY.test_images.astype(np.int64)),
        r"x_test, holds pixels of type int64, expected uint8 from 0 to 255",
    ),
    "labels that are words": (
        rewritten(y_train=np.array(["cat"] * 2400)),
        "y_train, holds labels of type <U3, expected whole numbers",
    ),
    "one-hot labels": (
        rewritten(y_train=np.eye(10, dtype=np.uint8)[GREY.train_labels]),
        r"labels of shape \(2400, 10\), expected \(n,\) or \(n, 1\). One-hot labels take y.argmax",
    ),
    "flattened images": (
        rewritten(x_train=GREY.train_images.reshape(2400, -1)),
        r"array of shape \(2400, 784\), expected images .* take x.reshape\(n, height, width\)",
    ),
    "a label outside": (
        rewritten(y_train=np.full(2400, 300)),
        "y_train, holds the label 300, expected labels from 0 to 255",
    ),
    "fewer labels": (
        rewritten(y_train=GREY.train_labels[:-5]),
        "x_train, holds 2,400 images and .*y_train, 2,395 labels",
    ),
    "cut short": (changed_bytes(lambda content: content[:-100]), "is damaged, or no .npz file"),
    "other bytes": (
        changed_bytes(lambda c: c[:5000] + bytes(len(c) - 10000) + c[-5000:]),
        "is damaged, or no .npz file",
    ),
    "no archive": (lambda path: path.write_bytes(b"no archive"), "is damaged, or no .npz file"),
    "empty": (lambda path: path.touch(), "is empty, expected an .npz file with x_train"),
    "a header that is code": (
        lying("{'descr': '|u1', 'fortran_order': False, 'shape': (exit(7), 28, 28), }\n"),
        "is damaged, or no .npz file",
    ),
    "more values than there are": (
        lying("{'descr': '|u1', 'fortran_order': False, 'shape': (2400, 28, 28), }\n"),
        "x_train, is cut short: 100 bytes of values, expected 1,881,600",
    ),
    "terabytes": (
        lying("{'descr': '|u1', 'fortran_order': False, 'shape': (10**10, 28, 28), }\n"),
        "is damaged",
    ),
    "gigabytes": (
        lying("{'descr': '|u1', 'fortran_order': False, 'shape': (9000000, 28, 28), }\n"),
        "x_train, says that it holds 7,056,000,000 bytes, in .* at most 200 times as many",
    ),
    "too many": (
        lying("{'descr': '|u1', 'fortran_order': False, 'shape': (99999999, 28, 28), }\n"),
        "says that it holds 78,399,999,216 bytes, expected at most 8,000,000,000 in all",
    ),
    "negative": (
        lying("{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 28, 28), }\n"),
        "is damaged, or no .npz file",
    ),
    "a header without end": (lying("(" * 20_000), "is damaged, or no .npz file"),
}


@pytest.mark.parametrize(("write", "words"), BROKEN_NPZ.values(), ids=BROKEN_NPZ)
def test_an_npz_file_that_is_broken_is_refused_in_a_line(
    tmp_path: Path, write: Callable[[Path], object], words: str
) -> None:
    path = tmp_path / "given.npz"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write(path)
        refused(path, words)


def test_an_array_is_read_no_further_than_its_header_says(tmp_path: Path) -> None:
    path = tmp_path / "given.npz"
    lying("{'descr': '|u1', 'fortran_order': False, 'shape': (1, 9, 9), }\n")(path)
    refused(path, "x_train, is too long: expected 81 bytes of values, and it has more")


@pytest.mark.parametrize("kind", ["idx", "npz", "npz header"])
def test_a_bomb_is_not_unpacked(tmp_path: Path, kind: str) -> None:
    """Half a gigabyte of zeros in some MB, where 7 GB or a header of 4 GB are announced."""
    path = tmp_path / "given.npz"
    shape, block = (9_000_000, 28, 28), bytes(2**24)
    if kind == "idx":
        path = write_idx(tmp_path / "given", GREY, "{part}-idx{dims}-ubyte.gz")
        with gzip.open(path / "train-images-idx3-ubyte.gz", "wb", 1) as file:
            file.write(bytes((0, 0, 8, 3)) + struct.pack(">3I", *shape))
            for _ in range(30):
                file.write(block)
    else:
        header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
        start = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
        if kind == "npz header":  # of 4 GB
            start = b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1)
        write_npz(path, {k: v for k, v in GREY.arrays().items() if k != "x_train"})
        with (
            zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
            archive.open("x_train.npy", "w", force_zip64=True) as file,
        ):
            file.write(start)
            for _ in range(30):
                file.write(block)
    said, megabytes = memory_taken(
        "from fmnist_tracking.data import load_dataset", f"load_dataset({str(path)!r})"
    )
    assert said.startswith("DataError ")
    assert "\n" not in said
    assert megabytes < 100


def test_files_that_are_missing_or_too_many_are_named(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(empty, "holds no data set. Expected a folder with four IDX files, .* .npz file")
    refused(tmp_path / "empty" / "none.npz", "There is no data folder")
    letters = write_idx(tmp_path / "l", LETTERS, "emnist-letters-{part}-idx{dims}-ubyte", "test")
    (letters / "emnist-letters-test-labels-idx1-ubyte").rename(letters / "elsewhere")
    refused(letters, r"lacks t10k-labels-idx1-ubyte\.gz\. Expected four files")
    (letters / "elsewhere").rename(letters / "emnist-letters-test-labels-idx1-ubyte")
    for file in [*letters.iterdir()]:
        file.with_name(file.name.replace("letters", "digits")).write_bytes(file.read_bytes())
    refused(letters, "holds 2 data sets, emnist-digits, emnist-letters. Put the four files of one")
    for name in ("KMNIST", "MNIST"):
        write_idx(tmp_path / "torch" / name / "raw", GREY)
    refused(tmp_path / "torch", "holds 2 data sets, KMNIST, MNIST. Name the folder of one")
    for name in ("a.npz", "b.npz"):
        write_npz(tmp_path / "two" / name, GREY.arrays())
    refused(tmp_path / "two", r"holds 2 .npz files. Name one of them with data_dir, such as")


def test_a_gz_file_that_is_none_is_refused(tmp_path: Path) -> None:
    folder = write_idx(tmp_path / "given", GREY)
    plain = folder / "train-images-idx3-ubyte"
    plain.rename(folder / "train-images-idx3-ubyte.gz")
    refused(folder, r"train-images-idx3-ubyte\.gz is damaged or cut short")


def few(**counts: int) -> Noise:
    """The grey images with as many of the class 7 as said, in training and in testing."""
    kept = {}
    for group in ("train", "test"):
        images, labels = getattr(GREY, f"{group}_images"), getattr(GREY, f"{group}_labels")
        seven = np.flatnonzero(labels == 7)
        gone = seven[counts[group] :]
        kept[f"{group}_images"] = np.delete(images, gone, axis=0)
        kept[f"{group}_labels"] = np.delete(labels, gone)
    return Noise(**kept)


@pytest.mark.parametrize(
    ("protocol", "counts", "words"),
    [
        ("canonical", {"train": 5, "test": 60}, "The class t7 of data set given has 5 images for "
         "training, expected at least 6, so that it is in both"),
        ("canonical", {"train": 0, "test": 60}, "t7 of data set given has 0 images for training"),
        ("coursework", {"train": 5, "test": 2}, "The class t7 of data set given has 7 images, "
         "expected at least 8"),
    ],
)  # fmt: skip
def test_a_class_with_too_few_images_is_refused_by_name(
    tmp_path: Path, protocol: Protocol, counts: dict[str, int], words: str
) -> None:
    folder = write_idx(tmp_path / "given", few(**counts))
    (folder / "labels.txt").write_text("".join(f"t{number}\n" for number in range(10)))
    found = load_dataset(folder)
    for split in (split_dataset, test_set):
        with pytest.raises(DataError, match=words):
            split(found, SplitConfig(protocol=protocol, data=found.size))


@pytest.mark.parametrize(
    ("protocol", "counts"),
    [("canonical", {"train": 6, "test": 0}), ("canonical", {"train": 6, "test": 1}),
     ("coursework", {"train": 5, "test": 3}), ("coursework", {"train": 0, "test": 8})],
)  # fmt: skip
@pytest.mark.parametrize("seed", range(5))
def test_a_class_with_just_enough_is_in_both_parts(
    tmp_path: Path, protocol: Protocol, counts: dict[str, int], seed: int
) -> None:
    found = load_dataset(write_idx(tmp_path / "given", few(**counts)))
    config = SplitConfig(protocol=protocol, data=found.size, seed=seed)
    split = split_dataset(found, config)
    assert set(split.train_labels) == set(split.validation_labels) == set(range(10))
    limited = dataclasses.replace(config, limit=config.available_images)
    assert len(test_set(found, limited).labels) == len(test_set(found, config).labels)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_limit_that_leaves_a_rare_class_too_few_is_refused_with_the_least_that_does_not(
    tmp_path: Path, protocol: Protocol
) -> None:
    found = load_dataset(write_idx(tmp_path / "given", few(train=40, test=1)))
    config = SplitConfig(protocol=protocol, data=found.size, limit=60)
    with pytest.raises(ConfigError, match=r"limit to be at least (\d+), so that the class 7") as e:
        split_dataset(found, config)
    least = int(str(e.value).partition("at least ")[2].partition(",")[0])
    for limit in (least - 1, least):
        config = dataclasses.replace(config, limit=limit)
        if limit < least:
            with pytest.raises(ConfigError, match=f"at least {least}"):
                split_dataset(found, config)
            continue
        split = split_dataset(found, config)
        assert set(split.train_labels) == set(split.validation_labels) == set(range(10))
        whole = test_set(found, dataclasses.replace(config, limit=None)).labels
        assert len(test_set(found, config).labels) == min(limit, len(whole))


def test_a_split_for_data_of_another_size_is_refused(tmp_path: Path) -> None:
    found = load_dataset(write_idx(tmp_path / "given", GREY))
    with pytest.raises(DataError, match=r"to be of 60,000 training images.*, got 2,400 training"):
        split_dataset(found, SplitConfig())


def test_limits_follow_from_the_data() -> None:
    size = DataSize(train_images=940, test_images=188, classes=47)
    assert SplitConfig(data=size).validation_images == 157
    with pytest.raises(ConfigError, match=r"limit to be from 282, .* to 940"):
        SplitConfig(data=size, limit=281)
    with pytest.raises(ConfigError, match="to 902, the images that protocol coursework"):
        SplitConfig(data=size, limit=903, protocol="coursework")
    with pytest.raises(ConfigError, match="classes to be a whole number of at least 2"):
        DataSize(train_images=940, test_images=188, classes=1)


def test_the_command_says_what_the_data_is(call: Call, tmp_path: Path) -> None:
    folder = write_idx(tmp_path / "letters\x1b[31m", LETTERS)
    status, out, _ = call("data", "--data-dir", str(folder), "--json")
    assert status == 0
    facts = json.loads(out)
    assert facts["image_shape"] == [28, 28, 1]
    assert (facts["classes"], facts["class_names"][46]) == (47, "46")
    assert facts["is_fashion_mnist"] is False
    status, out, _ = call("data", "--data-dir", str(folder))
    assert status == 0
    first, second, third, *_ = out.splitlines()
    assert first.startswith(r"data set letters\x1b[31m, in ")
    assert second == "940 training and 188 test images of 28x28 pixels in grey, 47 classes"
    assert third.startswith("Classes: 0, 1, 2, ")
    assert "verified" not in out
    assert load_dataset(folder).digest in out
    _, out, _ = call("doctor", "--data-dir", str(folder), "--json")
    (seen,) = (check["seen"] for check in json.loads(out) if check["name"] == "data")
    assert "28x28 pixels in grey, 47 classes, SHA-256" in seen


def test_limits_and_messages_know_the_same_bounds() -> None:
    assert (checks.SMALLEST_SIDE, checks.LARGEST_SIDE, checks.MOST_CLASSES) == (8, 256, 256)
    assert list(npz.KEYS.values()) == ["x_train", "y_train", "x_test", "y_test"]
