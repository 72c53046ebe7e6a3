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
from fmnist_tracking.data.dataset import PARTIAL, cache_dir
from fmnist_tracking.data.split_cache import _KEPT
from fmnist_tracking.training.loop import train
from fmnist_tracking.training.prepare import as_tensor

ARRAYS = ("train_images", "train_labels", "validation_images", "validation_labels")


def assert_same(some: DataSplit, other: DataSplit) -> None:
    for name in ARRAYS:
        array = getattr(some, name)
        assert array.dtype == np.uint8
        np.testing.assert_array_equal(array, getattr(other, name))
    assert some.class_names == other.class_names


def never() -> DataSplit:
    raise AssertionError("it was there already")


def shared(split: DataSplit, make: Callable[[], DataSplit] | None = None) -> DataSplit:
    return shared_split(split.parts(), split.class_names, make or (lambda: split))


def another(split: DataSplit, number: int) -> DataSplit:
    """The split without some of its training images."""
    images, labels = split.train_images[number:], split.train_labels[number:]
    return dataclasses.replace(split, train_images=images, train_labels=labels)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("FMNIST_CACHE_DIR", str(tmp_path / "own-cache"))
    return tmp_path / "own-cache"


def test_made_once_and_mapped_from_then_on(split: DataSplit) -> None:
    for found in (shared(split), shared(split, never)):
        assert_same(found, split)
        assert all(isinstance(getattr(found, name), np.memmap) for name in ARRAYS)


def test_training_on_mapped_images_gives_the_same_and_leaves_them(split: DataSplit) -> None:
    mapped = shared(split)
    on_mapped, weights_on_mapped = train(SMALL, mapped)
    plain, weights = train(SMALL, split)
    assert [e.val_loss for e in on_mapped.epochs] == [e.val_loss for e in plain.epochs]
    for some, other in zip(weights_on_mapped, weights, strict=True):
        np.testing.assert_array_equal(some, other)
    assert_same(shared(split, never), split)


def test_tensorflow_computes_on_the_mapped_memory_itself(split: DataSplit) -> None:
    mapped = shared(split)
    for name in ARRAYS:
        array = getattr(mapped, name)
        tensor = np.frombuffer(memoryview(as_tensor(array)), np.uint8)
        assert tensor.ctypes.data == array.ctypes.data
        np.testing.assert_array_equal(tensor, array.ravel())


def test_other_images_are_another_split(split: DataSplit) -> None:
    other = another(split, 9)
    shared(split)
    assert_same(shared(other), other)
    assert_same(shared(split, never), split)


def rewritten(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda file: file.write_bytes(change(file.read_bytes()))


def replaced(make: Callable[[Path], object]) -> Callable[[Path], object]:
    def replace(file: Path) -> None:
        file.unlink()
        make(file)

    return replace


LYING: dict[str, Callable[[Path], object]] = {
    "other values": rewritten(lambda content: bytes(reversed(content))),
    "a value": rewritten(lambda content: content[:-1] + b"\x7f"),
    "cut short": rewritten(lambda content: content[:-1]),
    "too long": rewritten(lambda content: content + b"\0"),
    "empty": rewritten(lambda _: b""),
    "a terabyte": lambda file: os.truncate(file, 10**12),
    "gone": Path.unlink,
    "a folder": replaced(Path.mkdir),
    "a pipe": replaced(os.mkfifo),
    "a device": replaced(lambda file: file.symlink_to("/dev/zero")),
    "a link to itself": replaced(lambda file: file.symlink_to(file.name)),
}


@pytest.mark.parametrize("lie", LYING.values(), ids=LYING)
@pytest.mark.parametrize("name", ["train_labels", "validation_images"])
def test_a_copy_of_images_that_lies_is_made_anew(
    split: DataSplit,
    own_cache: Path,
    caplog: pytest.LogCaptureFixture,
    lie: Callable[[Path], object],
    name: str,
) -> None:
    shared(split)
    (file,) = own_cache.rglob(name)
    good = file.read_bytes()
    lie(file)
    with caplog.at_level(logging.WARNING, "fmnist_tracking"):
        assert_same(shared(split), split)
    assert "is damaged and is made anew" in caplog.text
    assert file.read_bytes() == good


def test_those_used_last_are_kept(split: DataSplit, own_cache: Path) -> None:
    splits = [another(split, number) for number in range(_KEPT + 1)]
    for one in splits[:-1]:
        shared(one)
        time.sleep(0.02)  # the file system's times tell them apart
    shared(splits[0], never)
    time.sleep(0.02)
    shared(splits[-1])
    assert len(list((own_cache / "splits").iterdir())) == _KEPT
    for one in (splits[0], *splits[2:]):
        shared(one, never)
    with pytest.raises(AssertionError, match="it was there already"):
        shared(splits[1], never)


def test_what_was_begun_is_neither_counted_nor_kept_for_ever(
    split: DataSplit, own_cache: Path
) -> None:
    begun, left = (own_cache / "splits" / f"{PARTIAL}{name}" for name in ("begun", "left"))
    for folder in (begun, left):
        folder.mkdir(parents=True)
    long_ago = time.time() - split_cache._WRITING_SECONDS - 1
    os.utime(left, (long_ago, long_ago))
    splits = [another(split, number) for number in range(_KEPT)]
    for one in splits:
        shared(one)
    for one in splits:
        shared(one, never)
    assert begun.exists()
    assert not left.exists()


def rights(*paths: Path) -> list[str]:
    return [f"{path.stat().st_mode & 0o7777:o}" for path in paths]


@pytest.mark.parametrize("named", [True, False])
def test_a_cache_is_for_its_owner_alone(
    split: DataSplit,
    own_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    named: bool,
) -> None:
    root = own_cache
    if not named:
        monkeypatch.delenv("FMNIST_CACHE_DIR")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        root = cache_dir()
    mask = os.umask(0)
    try:
        shared(split)
        (copy,) = (root / "splits").iterdir()
        assert rights(root, root / "splits", copy) == ["700"] * 3
        assert rights(*copy.iterdir()) == ["600"] * 4
        # As an earlier release left them, or as a person has made the one that is named.
        root.chmod(0o1777)
        (root / "splits").chmod(0o777)
        shared(another(split, 1))
    finally:
        os.umask(mask)
    assert rights(root, root / "splits") == ["1777" if named else "700", "700"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
@pytest.mark.parametrize("foreign", ["splits", "splits/*"])
def test_what_another_user_could_change_is_not_used(
    split: DataSplit, own_cache: Path, foreign: str
) -> None:
    shared(split)
    (folder,) = own_cache.glob(foreign)
    os.chown(folder, 65534, 65534)
    found = shared(another(split, 1) if foreign == "splits" else split)
    assert not isinstance(found.train_images, np.memmap)
    assert folder.exists()


@pytest.mark.parametrize(
    "refusing", [(split_cache, "open_untrusted"), (Path, "lstat")], ids=["files", "folder"]
)
def test_what_another_user_may_not_read_is_not_damaged(
    split: DataSplit,
    own_cache: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    refusing: tuple[object, str],
) -> None:
    shared(split)

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, "fmnist_tracking"):
        patch.setattr(*refusing, refused)  # root, whom nobody refuses, may run this
        assert_same(shared(split), split)
    assert "cannot be read: Permission denied" in caplog.text
    assert "damaged" not in caplog.text
    shared(split, never)


def test_a_cache_that_cannot_be_made_is_no_harm(
    split: DataSplit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FMNIST_CACHE_DIR", str(tmp_path / "file"))
    assert_same(shared(split), split)


def test_a_cache_that_has_no_room_is_no_harm(
    split: DataSplit,
    small_disk: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (small_disk / "filling").write_bytes(bytes(900_000))
    monkeypatch.setenv("FMNIST_CACHE_DIR", str(small_disk))
    with caplog.at_level(logging.WARNING, "fmnist_tracking"):
        assert_same(shared(split), split)
    assert f"Cannot keep images in {small_disk / 'splits'}: " in caplog.text
    assert not list((small_disk / "splits").iterdir())


@pytest.mark.skipif(os.geteuid() == 0, reason="root can write everywhere")
def test_a_cache_that_cannot_be_written_is_no_harm(split: DataSplit, own_cache: Path) -> None:
    own_cache.mkdir(mode=0o500)
    assert_same(shared(split), split)
