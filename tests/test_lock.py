import errno
import fcntl
import multiprocessing
import os
from pathlib import Path
from typing import TextIO

import pytest

from fmnist_tracking.errors import OutputError, SearchError
from fmnist_tracking.grid_search import lock
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
    with locked_folder(folder) as again:
        assert folder.is_dir()
        assert again.before is None  # it ended well, and took the file with it
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
    with pytest.raises(OutputError, match=r"\(File exists\)"), locked_folder(file / "search"):
        pass


def rights(path: Path) -> int:
    return path.stat().st_mode & 0o7777


@pytest.mark.parametrize("named", [True, False])
def test_the_folder_and_its_lock_are_for_their_owner_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: bool
) -> None:
    state = tmp_path / "state"
    if not named:
        monkeypatch.delenv("FMNIST_STATE_DIR")
    mask = os.umask(0)
    try:
        with locked_folder(state / "search") as held:
            folder = held.path
            assert [rights(p) for p in (state, folder, folder / "lock")] == [0o700, 0o700, 0o600]
        folder.mkdir()
        for path, mode in ((state, 0o1777), (folder, 0o777)):  # as an earlier release left them
            path.chmod(mode)
        with locked_folder(folder):
            assert rights(state) == (0o1777 if named else 0o700)
            assert [rights(path) for path in (folder, folder / "lock")] == [0o700, 0o600]
    finally:
        os.umask(mask)


def test_the_lock_of_an_earlier_release_that_others_could_open_holds_up_nobody(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "search"
    folder.mkdir()
    (folder / "held_by").touch()
    with (folder / "held_by").open() as theirs:
        fcntl.flock(theirs, fcntl.LOCK_EX)
        with locked_folder(folder):
            pass
    assert not folder.exists()


def test_a_lock_that_its_holder_has_just_removed_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, opened = tmp_path / "search", []
    lock_file = lock.lock_file

    def removed_meanwhile(file: TextIO) -> bool:
        opened.append(os.fstat(file.fileno()).st_ino)
        if len(opened) == 1:  # as by a process that ends between the opening and the locking
            (folder / "lock").unlink()
            folder.rmdir()
        return lock_file(file)

    monkeypatch.setattr(lock, "lock_file", removed_meanwhile)
    with locked_folder(folder):
        assert (folder / "lock").stat().st_ino == opened[1]
        with pytest.raises(SearchError, match="running already"), locked_folder(folder):
            pass


def test_a_lock_is_no_link(tmp_path: Path) -> None:
    folder = tmp_path / "search"
    folder.mkdir()
    (tmp_path / "precious").write_text("mine")
    (folder / "lock").symlink_to(tmp_path / "precious")
    with pytest.raises(OutputError, match="cannot be written"), locked_folder(folder):
        pass
    assert (tmp_path / "precious").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_that_another_user_has_taken_is_left_to_them(tmp_path: Path) -> None:
    wanted = tmp_path / "0123456789abcdef"
    assert lock._own(wanted) == wanted
    wanted.mkdir()
    assert lock._own(wanted) == wanted
    (tmp_path / f"{wanted.name}-2").symlink_to(wanted)
    os.chown(wanted, 65534, 65534)
    assert lock._own(wanted) == tmp_path / f"{wanted.name}-3"
    with pytest.raises(OutputError, match="belongs to another user"), locked_folder(wanted):
        pass
