import errno
import fcntl
import multiprocessing
import os
from pathlib import Path

import pytest

from fmnist_tracking.errors import OutputError, SearchError
from fmnist_tracking.grid_search.lock import locked_folder


def hold(
    folder: Path,
    held: "multiprocessing.synchronize.Event",
    done: "multiprocessing.synchronize.Event",
) -> None:
    with locked_folder(folder):
        held.set()
        done.wait(60)


def test_a_folder_that_another_process_holds_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "search"
    context = multiprocessing.get_context("fork")
    held, done = context.Event(), context.Event()
    other = context.Process(target=hold, args=(folder, held, done))
    other.start()
    assert held.wait(60)
    with (
        pytest.raises(SearchError, match=rf"running already: process {other.pid} on "),
        locked_folder(folder),
    ):
        pass
    done.set()
    other.join(60)
    with locked_folder(folder):
        assert folder.is_dir()
    assert not folder.exists()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EIO])
def test_a_file_system_without_locks_is_not_taken_for_a_search_that_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int
) -> None:
    def flock(*_: object) -> None:  # no file system of Linux itself is without
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OutputError) as caught, locked_folder(tmp_path / "search"):
        pass
    assert f"cannot be locked ({os.strerror(number)})" in str(caught.value)
    assert "FMNIST_STATE_DIR" in str(caught.value)
    assert "running" not in str(caught.value)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(OutputError, match=r"\(Not a directory\)"), locked_folder(file / "search"):
        pass
