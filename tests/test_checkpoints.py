import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmnist_tracking.training import checkpoints
from fmnist_tracking.training.checkpoints import Checkpoint
from records import epoch

PRINT = "f" * 64
CHECKPOINT = Checkpoint(
    fingerprint=PRINT,
    epochs=(epoch(1, 0.1), dataclasses.replace(epoch(2, 0.30000000000000004), ended_at=2**41)),
    fit_seconds=1 / 3,
    variables=(
        # More than ten, so that their order is not that of their names.
        *(np.full((n, 2), n, np.float32) for n in range(11)),
        np.array([1, 2**32 - 1], np.uint32),
        np.array(7, np.int64),
    ),
    best_weights=(np.array([[np.float32(0.1)], [np.nan]]), np.zeros((0,), np.float32)),
    best_predicted=np.array([9, 0, 3], np.uint8),
)


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
    assert checkpoints.load(folder, PRINT) is None
    checkpoints.save(CHECKPOINT, folder)
    assert_same(checkpoints.load(folder, PRINT), CHECKPOINT)


def test_the_last_one_is_replaced(tmp_path: Path) -> None:
    checkpoints.save(CHECKPOINT, tmp_path)
    later = dataclasses.replace(
        CHECKPOINT, epochs=(*CHECKPOINT.epochs, epoch(3, 0.5)), variables=CHECKPOINT.variables[:2]
    )
    checkpoints.save(later, tmp_path)
    assert_same(checkpoints.load(tmp_path, PRINT), later)
    assert len(list(tmp_path.iterdir())) == 1


def test_another_training_s_checkpoint_does_not_count(tmp_path: Path) -> None:
    checkpoints.save(CHECKPOINT, tmp_path)
    assert checkpoints.load(tmp_path, "0" * 64) is None


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
    assert checkpoints.load(folder, PRINT) is None


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04", bytes(1000)])
def test_any_other_file_does_not_count(tmp_path: Path, content: bytes) -> None:
    checkpoints.save(CHECKPOINT, tmp_path)
    the_file(tmp_path).write_bytes(content)
    assert checkpoints.load(tmp_path, PRINT) is None


def test_pickled_objects_are_not_read(tmp_path: Path) -> None:
    checkpoints.save(CHECKPOINT, tmp_path)
    file = the_file(tmp_path)
    with np.load(file) as arrays:
        content: dict[str, Any] = {name: arrays[name] for name in arrays.files}
    np.savez(file, **content)
    assert_same(checkpoints.load(tmp_path, PRINT), CHECKPOINT)
    content["variable0"] = np.array([Sneaky(tmp_path / "opened")])
    np.savez(file, **content)
    assert checkpoints.load(tmp_path, PRINT) is None
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
    assert_same(checkpoints.load(tmp_path, PRINT), CHECKPOINT)
    assert len(list(tmp_path.iterdir())) == 1


def test_nothing_is_there_under_its_name_before_all_of_it_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    real = os.fsync

    def fsync(number: int) -> None:
        seen.append(checkpoints.load(tmp_path, PRINT) is None)
        real(number)

    monkeypatch.setattr(os, "fsync", fsync)
    checkpoints.save(CHECKPOINT, tmp_path)
    assert seen == [True]
    assert checkpoints.load(tmp_path, PRINT) is not None


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
