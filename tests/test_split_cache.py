import dataclasses
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from conftest import SMALL
from fmnist_tracking.data import DataSplit, shared_split, split_cache
from fmnist_tracking.data.dataset import PARTIAL
from fmnist_tracking.data.split_cache import _KEPT
from fmnist_tracking.training.loop import _tensor, train

ARRAYS = ("train_images", "train_labels", "validation_images", "validation_labels")


def assert_same(some: DataSplit, other: DataSplit) -> None:
    for name in ARRAYS:
        array = getattr(some, name)
        assert array.dtype == np.uint8
        np.testing.assert_array_equal(array, getattr(other, name))
    assert some.class_names == other.class_names


def never() -> DataSplit:
    raise AssertionError("it was there already")


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("FMNIST_CACHE_DIR", str(tmp_path / "own-cache"))
    return tmp_path / "own-cache"


def test_made_once_and_mapped_from_then_on(split: DataSplit) -> None:
    first, parts = shared_split("key", lambda: split)
    again, parts_again = shared_split("key", never)
    for found in (first, again):
        assert_same(found, split)
        assert all(isinstance(getattr(found, name), np.memmap) for name in ARRAYS)
    assert parts == parts_again == split.parts()


def test_training_on_mapped_images_gives_the_same_and_leaves_them(split: DataSplit) -> None:
    mapped, _ = shared_split("key", lambda: split)
    on_mapped, weights_on_mapped = train(SMALL, mapped)
    plain, weights = train(SMALL, split)
    assert [e.val_loss for e in on_mapped.epochs] == [e.val_loss for e in plain.epochs]
    for some, other in zip(weights_on_mapped, weights, strict=True):
        np.testing.assert_array_equal(some, other)
    assert_same(shared_split("key", never)[0], split)


def test_tensorflow_computes_on_the_mapped_memory_itself(split: DataSplit) -> None:
    mapped, _ = shared_split("key", lambda: split)
    for name in ARRAYS:
        array = getattr(mapped, name)
        tensor = np.frombuffer(memoryview(_tensor(array)), np.uint8)
        assert tensor.ctypes.data == array.ctypes.data
        np.testing.assert_array_equal(tensor, array.ravel())


def test_another_key_is_another_split(split: DataSplit) -> None:
    other = dataclasses.replace(
        split, train_images=split.train_images[:9], train_labels=split.train_labels[:9]
    )
    shared_split("key", lambda: split)
    assert_same(shared_split("other key", lambda: other)[0], other)
    assert_same(shared_split("key", never)[0], split)


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(file.read_bytes()[:-1] + b"\x7f"),
        lambda file: file.write_bytes(file.read_bytes()[:-1]),
        lambda file: file.write_bytes(b""),
        lambda file: file.unlink(),
    ],
    ids=["a value", "cut short", "empty", "gone"],
)
@pytest.mark.parametrize("name", ["train_labels.npy", "validation_images.npy", "about.json"])
def test_what_is_damaged_is_made_anew(
    split: DataSplit,
    own_cache: Path,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path], None],
    name: str,
) -> None:
    shared_split("key", lambda: split)
    (file,) = own_cache.rglob(name)
    good = file.read_bytes()
    damage(file)
    with caplog.at_level(logging.WARNING, "fmnist_tracking"):
        found, parts = shared_split("key", lambda: split)
    assert "is damaged and is made anew" in caplog.text
    assert_same(found, split)
    assert parts == split.parts()
    assert file.read_bytes() == good


def test_those_used_last_are_kept(split: DataSplit, own_cache: Path) -> None:
    for number in range(_KEPT):
        shared_split(f"key {number}", lambda: split)
        time.sleep(0.02)  # the file system's times tell them apart
    shared_split("key 0", never)
    time.sleep(0.02)
    shared_split("one more", lambda: split)
    assert len(list((own_cache / "splits").iterdir())) == _KEPT
    for key in ("key 0", *(f"key {number}" for number in range(2, _KEPT))):
        shared_split(key, never)
    with pytest.raises(AssertionError, match="it was there already"):
        shared_split("key 1", never)


def test_what_was_begun_is_neither_counted_nor_kept_for_ever(
    split: DataSplit, own_cache: Path
) -> None:
    begun, left = (own_cache / "splits" / f"{PARTIAL}{name}" for name in ("begun", "left"))
    for folder in (begun, left):
        folder.mkdir(parents=True)
    long_ago = time.time() - split_cache._WRITING_SECONDS - 1
    os.utime(left, (long_ago, long_ago))
    for number in range(_KEPT):
        shared_split(f"key {number}", lambda: split)
    for number in range(_KEPT):
        shared_split(f"key {number}", never)
    assert begun.exists()
    assert not left.exists()


@pytest.mark.parametrize(
    ("of_cache", "of_folder", "of_file"),
    [(0o755, 0o755, 0o644), (0o2770, 0o750, 0o640), (0o1777, 0o755, 0o644)],
)
def test_a_copy_is_for_whom_its_cache_is_for(
    split: DataSplit, own_cache: Path, of_cache: int, of_folder: int, of_file: int
) -> None:
    (own_cache / "splits").mkdir(parents=True)
    (own_cache / "splits").chmod(of_cache)
    mask = os.umask(0o077)
    try:
        shared_split("key", lambda: split)
    finally:
        os.umask(mask)
    (copy,) = (own_cache / "splits").iterdir()
    assert copy.stat().st_mode & 0o777 == of_folder
    assert {path.stat().st_mode & 0o777 for path in copy.iterdir()} == {of_file}


@pytest.mark.parametrize("refusing", [(np, "load"), (Path, "is_dir")], ids=["files", "folder"])
def test_what_another_user_may_not_read_is_not_damaged(
    split: DataSplit,
    own_cache: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    refusing: tuple[object, str],
) -> None:
    shared_split("key", lambda: split)

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, "fmnist_tracking"):
        patch.setattr(*refusing, refused)  # root, whom nobody refuses, may run this
        assert split_cache._read(own_cache / "splits" / "any") is None
        assert_same(shared_split("key", lambda: split)[0], split)
    assert "cannot be read: Permission denied" in caplog.text
    assert "damaged" not in caplog.text
    shared_split("key", never)


def test_a_cache_that_cannot_be_made_is_no_harm(
    split: DataSplit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FMNIST_CACHE_DIR", str(tmp_path / "file"))
    found, parts = shared_split("key", lambda: split)
    assert_same(found, split)
    assert parts == split.parts()


def test_a_cache_that_has_no_room_is_no_harm(
    split: DataSplit,
    small_disk: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (small_disk / "filling").write_bytes(bytes(900_000))
    monkeypatch.setenv("FMNIST_CACHE_DIR", str(small_disk))
    with caplog.at_level(logging.WARNING, "fmnist_tracking"):
        found, _ = shared_split("key", lambda: split)
    assert_same(found, split)
    assert f"Cannot keep images in {small_disk / 'splits'}: " in caplog.text
    assert not list((small_disk / "splits").iterdir())


@pytest.mark.skipif(os.geteuid() == 0, reason="root can write everywhere")
def test_a_cache_that_cannot_be_written_is_no_harm(split: DataSplit, own_cache: Path) -> None:
    own_cache.mkdir(mode=0o500)
    assert_same(shared_split("key", lambda: split)[0], split)
