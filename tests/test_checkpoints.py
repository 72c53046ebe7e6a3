import copy
import dataclasses
import hashlib
import io
import json
import logging
import os
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmnist_tracking.config import TrainingConfig
from fmnist_tracking.network import weight_shapes
from fmnist_tracking.results import EpochMetrics
from fmnist_tracking.training import checkpoints
from fmnist_tracking.training.checkpoints import Checkpoint
from records import epoch

PRINT = "f" * 64
IMAGES = 3
CONFIG = TrainingConfig.of(filters=2, strides=2, hidden_units=2, epochs=3)
WEIGHTS = tuple(
    np.full(shape, 0.1 * number, np.float32)
    for number, shape in enumerate(weight_shapes(CONFIG.values, CONFIG.network))
)
CHECKPOINT = Checkpoint(
    fingerprint=PRINT,
    epochs=(epoch(1, 0.1), dataclasses.replace(epoch(2, 0.30000000000000004), ended_at=2**41)),
    fit_seconds=1 / 3,
    variables=(*WEIGHTS, *(m * w for w in WEIGHTS for m in (-1, 1e-30)), np.array(7, np.int64)),
    best_weights=tuple(np.where(w > 0.3, np.float32("nan"), w) for w in WEIGHTS),
    best_predicted=np.array([9, 0, 3], np.uint8),
)


def load(folder: Path, fingerprint: str = PRINT) -> Checkpoint | None:
    return checkpoints.load(folder, fingerprint, CONFIG, IMAGES)


def assert_same(first: Checkpoint | None, second: Checkpoint) -> None:
    assert first is not None
    assert (first.fingerprint, first.epochs, first.fit_seconds) == (
        second.fingerprint,
        second.epochs,
        second.fit_seconds,
    )
    np.testing.assert_array_equal(first.best_predicted, second.best_predicted)
    for kind in ("variables", "best_weights"):
        arrays, others = getattr(first, kind), getattr(second, kind)
        assert [(a.dtype, a.shape) for a in arrays] == [(a.dtype, a.shape) for a in others]
        for array, other in zip(arrays, others, strict=True):
            np.testing.assert_array_equal(array, other)


def the_file(folder: Path) -> Path:
    (file,) = folder.iterdir()
    return file


def test_a_checkpoint_is_read_back_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "there"
    assert load(folder) is None
    checkpoints.save(CHECKPOINT, folder)
    assert_same(load(folder), CHECKPOINT)


def test_the_last_one_is_replaced(tmp_path: Path) -> None:
    checkpoints.save(CHECKPOINT, tmp_path)
    later = dataclasses.replace(
        CHECKPOINT, epochs=(*CHECKPOINT.epochs, epoch(3, 0.5)), fit_seconds=0.5
    )
    checkpoints.save(later, tmp_path)
    assert_same(load(tmp_path), later)
    assert len(list(tmp_path.iterdir())) == 1


def test_another_training_s_checkpoint_does_not_count(tmp_path: Path) -> None:
    checkpoints.save(CHECKPOINT, tmp_path)
    assert load(tmp_path, "0" * 64) is None


@settings(max_examples=100, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_does_not_count(
    tmp_path_factory: pytest.TempPathFactory, share: float
) -> None:
    folder = tmp_path_factory.mktemp("truncated")
    checkpoints.save(CHECKPOINT, folder)
    file = the_file(folder)
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    assert load(folder) is None


def archived(content: Callable[[dict[str, Any]], object], **options: Any) -> Callable[[Path], None]:
    """Change the arrays of a checkpoint's file, and give it the digest of what it holds then."""

    def change(file: Path) -> None:
        with np.load(io.BytesIO(file.read_bytes()[65:])) as arrays:
            found: dict[str, Any] = {name: arrays[name] for name in arrays.files}
        content(found)
        archive = io.BytesIO()
        options.get("save", np.savez)(archive, **found)
        seal(file, archive.getvalue())

    return change


def seal(file: Path, archive: bytes) -> None:
    file.write_bytes(f"{hashlib.sha256(archive).hexdigest()}\n".encode() + archive)


def about(**facts: Any) -> Callable[[dict[str, Any]], object]:
    def change(arrays: dict[str, Any]) -> None:
        arrays["about"] = np.array(json.dumps(json.loads(str(arrays["about"])) | facts))

    return change


def epochs(*some: EpochMetrics, **changes: Any) -> Callable[[dict[str, Any]], object]:
    return about(epochs=[dataclasses.asdict(one) | changes for one in some])


def array(name: str, value: Any) -> Callable[[dict[str, Any]], object]:
    return lambda arrays: arrays.update({name: value})


def one_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def shape_of_a_terabyte(file: Path) -> None:
    content = file.read_bytes()[65:]
    shape = b"'shape': (3,), }"  # of what the images are taken for
    assert content.count(shape) == 1
    huge = b"'shape': (%d,), }" % 10**12
    seal(file, content.replace(shape + b" " * (len(huge) - len(shape)), huge))


def sharing_entries(file: Path) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("about.npy", bytes(20_000))
        for number in range(400):
            entry = copy.copy(packed.filelist[0])
            entry.filename = f"variable{number}.npy"
            packed.filelist.append(entry)
    seal(file, archive.getvalue())


def instead(make: Callable[[Path], object]) -> Callable[[Path], object]:
    def replace(file: Path) -> None:
        file.unlink()
        make(file)

    return replace


LYING: dict[str, Callable[[Path], object]] = {
    "empty": lambda file: file.write_bytes(b""),
    "no archive": lambda file: file.write_bytes(b"no archive"),
    "sealed, no archive": lambda file: seal(file, b"no archive"),
    "sealed, an array": lambda file: seal(file, b"\x93NUMPY\x01\x00"),
    "zeros": lambda file: file.write_bytes(bytes(1000)),
    "a terabyte": lambda file: os.truncate(file, 10**12),
    "a pipe": instead(os.mkfifo),
    "a folder": instead(Path.mkdir),
    "a device": instead(lambda file: file.symlink_to("/dev/zero")),
    "one bit": one_bit,
    "another digest": lambda file: file.write_bytes(b"0" * 64 + file.read_bytes()[64:]),
    "another training": archived(about(fingerprint="0" * 64)),
    "too many epochs": archived(epochs(*(epoch(n, 0.5) for n in range(1, 5)))),
    "no epoch": archived(epochs()),
    "another epoch": archived(epochs(epoch(2, 0.5))),
    "words for figures": archived(epochs(epoch(1, 0.5), loss="low")),
    "figures of another kind": archived(epochs(epoch(1, 0.5), usage=[1])),
    "an accuracy of 750 %": archived(epochs(epoch(1, 7.5))),
    "an epoch that ended in no year": archived(epochs(epoch(1, 0.5), ended_at=-(10**18))),
    "an epoch without end": archived(epochs(epoch(1, 0.5), epoch_seconds=float("inf"))),
    "no time": archived(about(fit_seconds=0)),
    "a time in words": archived(about(fit_seconds="long")),
    "another shape": archived(array("variable2", np.zeros((2, 2), np.float32))),
    "another type": archived(array("best0", WEIGHTS[0].astype(np.float64))),
    "one array too many": archived(array("variable25", WEIGHTS[0])),
    "one array too few": archived(lambda arrays: arrays.pop("variable24")),
    "other predictions": archived(array("predicted", np.zeros(4, np.uint8))),
    "a class that is none": archived(array("predicted", np.full(3, 10, np.uint8))),
    "compressed": archived(
        array("variable0", np.zeros(10**7, np.float32)), save=np.savez_compressed
    ),
    "a shape of a terabyte": shape_of_a_terabyte,
    "entries that share their bytes": sharing_entries,
}


@pytest.mark.parametrize("lie", LYING.values(), ids=LYING)
def test_a_checkpoint_that_lies_does_not_count(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, lie: Callable[[Path], object]
) -> None:
    checkpoints.save(CHECKPOINT, tmp_path)
    file = the_file(tmp_path)
    archived(lambda _: None)(file)
    assert_same(load(tmp_path), CHECKPOINT)
    lie(file)
    tracemalloc.start()
    try:
        with caplog.at_level(logging.WARNING, "fmnist_tracking"):
            assert load(tmp_path) is None
        assert tracemalloc.get_traced_memory()[1] < 10**7
    finally:
        tracemalloc.stop()
    (said,) = caplog.messages
    assert said.startswith(f"The checkpoint in {tmp_path} is not used: ")
    assert "\n" not in said


def test_what_others_could_read_or_change_is_made_private(tmp_path: Path) -> None:
    folder = tmp_path / "search"
    folder.mkdir()
    folder.chmod(0o777)
    mask = os.umask(0)
    try:
        checkpoints.save(CHECKPOINT, folder)
    finally:
        os.umask(mask)
    assert [p.stat().st_mode & 0o777 for p in (folder, the_file(folder))] == [0o700, 0o600]


def test_pickled_objects_are_not_read(tmp_path: Path) -> None:
    checkpoints.save(CHECKPOINT, tmp_path)
    hostile = np.array([Sneaky(tmp_path / "opened")])
    archived(array("variable0", hostile))(the_file(tmp_path))
    assert load(tmp_path) is None
    assert not (tmp_path / "opened").exists()


class Sneaky:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_an_error_while_writing_leaves_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    checkpoints.save(CHECKPOINT, tmp_path)
    owner: Any = os if step == "fsync" else Path
    monkeypatch.setattr(owner, step, full)
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save(dataclasses.replace(CHECKPOINT, fit_seconds=9), tmp_path)
    monkeypatch.undo()
    assert_same(load(tmp_path), CHECKPOINT)
    assert len(list(tmp_path.iterdir())) == 1


def test_nothing_is_there_under_its_name_before_all_of_it_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    real = os.fsync

    def fsync(number: int) -> None:
        seen.append(load(tmp_path) is None)
        real(number)

    monkeypatch.setattr(os, "fsync", fsync)
    checkpoints.save(CHECKPOINT, tmp_path)
    assert seen == [True]
    assert load(tmp_path) is not None


def test_removing_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    checkpoints.save(CHECKPOINT, folder)
    checkpoints.remove(folder)
    assert not folder.exists()
    checkpoints.remove(folder)


def test_the_folder_can_be_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FMNIST_STATE_DIR", str(tmp_path / "here"))
    assert checkpoints.state_dir() == tmp_path / "here"
    for nothing in ("", None):
        if nothing is None:
            monkeypatch.delenv("FMNIST_STATE_DIR")
        else:
            monkeypatch.setenv("FMNIST_STATE_DIR", nothing)
        assert checkpoints.state_dir() == platformdirs.user_state_path("fmnist-tracking")
