"""The folder of an unfinished search or training, held by one process at a time."""

import contextlib
import errno
import fcntl
import hashlib
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from fmnist_tracking.errors import OutputError, SearchError
from fmnist_tracking.files import PRIVATE_FILE, is_own_folder, private_folder
from fmnist_tracking.runtime import STATE_VARIABLE
from fmnist_tracking.tracking import Lease, Store, schema
from fmnist_tracking.training import checkpoints
from fmnist_tracking.training.checkpoints import state_dir

_LOCK = "lock"
# The lock of earlier releases, which other users could open, and keep.
_LOCK_BEFORE = "held_by"
# What flock says of a file that another process has locked.
_HELD = (errno.EWOULDBLOCK, errno.EACCES)


def checkpoint_folder(store: Store, experiment_id: str, fingerprint: str) -> Path:
    """Return the folder of a search or training: the same for the same command."""
    identity = "\n".join((store.identity(experiment_id), experiment_id, fingerprint))
    return _own(state_dir() / hashlib.sha256(identity.encode()).hexdigest()[:16])


def points_folder(store: Store, experiment_id: str) -> Path:
    """Return the folder for the points of an experiment that are being trained."""
    return checkpoint_folder(store, experiment_id, "points")


def _own(folder: Path) -> Path:
    """Return the first folder of that name, or with a number, that no other user has taken."""
    for number in itertools.count(2):
        try:
            if is_own_folder(folder):
                break
        except OSError:  # it can be made, or why not is told when it is
            break
        folder = folder.with_name(f"{folder.name.partition('-')[0]}-{number}")
    return folder


def open_lock(path: Path) -> TextIO:
    """Open the lock's file, which is not a link, for its owner alone."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, PRIVATE_FILE), "r+", errors="replace")


def lock_file(file: TextIO) -> bool:
    """Lock a file for this process; return False if another process has locked it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD:
            return False
        raise
    return True


def _locked(folder: Path) -> tuple[TextIO, bool]:
    """Make a folder, open its lock, and say whether this process has locked it.

    Raises:
        OutputError: the folder cannot be made, or its lock not be opened or locked.
    """
    while True:
        lock = _opened(folder)
        try:
            is_ours = lock_file(lock)
        except OSError as error:
            lock.close()
            raise OutputError(
                f"The folder {folder}, for checkpoints, cannot be locked ({error.strerror}), "
                "which keeps two processes from doing the same search at once. Name a folder "
                f"on another file system with {STATE_VARIABLE}."
            ) from None
        if os.fstat(lock.fileno()).st_nlink:
            return lock, is_ours
        lock.close()  # whoever held it has ended meanwhile, and removed it


def _opened(folder: Path, *, again: bool = True) -> TextIO:
    try:
        private_folder(folder.parent, STATE_VARIABLE)
        private_folder(folder)
        return open_lock(folder / _LOCK)
    except OSError as error:
        if again and isinstance(error, FileNotFoundError):  # removed between two of these lines
            return _opened(folder, again=False)
        raise OutputError(
            f"The folder {folder}, for checkpoints, cannot be written ({error.strerror}). Name "
            f"another with {STATE_VARIABLE}."
        ) from None


@dataclass(frozen=True, kw_only=True)
class HeldFolder:
    """A folder that this process holds, and the process that held it before, if one is known."""

    path: Path
    before: Lease | None


@contextlib.contextmanager
def locked_folder(folder: Path, *, fresh: bool = False) -> Iterator[HeldFolder]:
    """Hold the folder for the checkpoints of a search or training, while no one else uses it.

    The system lets go of it when this process ends, in whatever way. Left without an error,
    it is removed if it holds no checkpoint. For a fresh search, those that are there are removed.

    Raises:
        OutputError: it cannot be made, or not be locked.
        SearchError: another process holds it.
    """
    lock, is_ours = _locked(folder)
    with lock:
        holder = Lease.read({schema.LEASE: lock.read()})
        if not is_ours:
            raise SearchError(
                f"This very search is running already: {holder or 'another process'} holds "
                "it. Wait for it to end, or stop that process and give this command again."
            )
        with contextlib.suppress(OSError):  # a full disk: then the name is not told
            lock.seek(0)
            lock.truncate()
            lock.write(Lease.of_this_process().text())
            lock.flush()
        if fresh:
            for entry in folder.iterdir():
                if entry.is_dir():
                    checkpoints.remove(entry)
        yield HeldFolder(path=folder, before=holder)
        with contextlib.suppress(OSError):
            (folder / _LOCK_BEFORE).unlink(missing_ok=True)
            if [entry.name for entry in folder.iterdir()] == [_LOCK]:
                (folder / _LOCK).unlink()
                folder.rmdir()
