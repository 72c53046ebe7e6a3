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
from typing import BinaryIO, TextIO

from fmnist_tracking.errors import OutputError, SearchError
from fmnist_tracking.files import PRIVATE_FILE, is_own_folder, open_untrusted, private_folder
from fmnist_tracking.grid_search.plan import Keeping
from fmnist_tracking.runtime import STATE_VARIABLE
from fmnist_tracking.tracking import Lease, Store, schema
from fmnist_tracking.training import checkpoints
from fmnist_tracking.training.checkpoints import state_dir

_LOCK = "lock"
# The lock of earlier releases, which other users could open, and keep.
_LOCK_BEFORE = "held_by"
# How often a folder is made that other processes may be removing.
_ATTEMPTS = 20
_LONGEST_LEASE = 10_000  # bytes
# What flock says of a file that another process has locked.
_HELD = (errno.EWOULDBLOCK, errno.EACCES)


def checkpoint_folder(
    store: Store, experiment_id: str, fingerprint: str, *, prefix: str = ""
) -> Path:
    """Return the folder of a search or training: the same for the same command."""
    identity = "\n".join((store.identity(experiment_id), experiment_id, fingerprint))
    return _own(state_dir() / f"{prefix}{hashlib.sha256(identity.encode()).hexdigest()[:16]}")


def points_folder(store: Store, experiment_id: str) -> Path:
    """Return the folder for the points of an experiment that are being trained."""
    return checkpoint_folder(store, experiment_id, "points")


def keeping_for(
    store: Store, experiment_id: str, data_digest: str, *, fresh: bool, keeps: bool
) -> Keeping:
    """Return what is kept of the checkpoints of an experiment's finished trials.

    No search removes them. Those that are there are not for a fresh one.
    """
    folder = checkpoint_folder(store, experiment_id, "kept", prefix="kept_")
    uses = not fresh and folder.is_dir()
    return Keeping(folder=folder, data_digest=data_digest, uses=uses, keeps=keeps)


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


def lock_file(file: TextIO | BinaryIO) -> bool:
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
    attempts = _ATTEMPTS
    while True:
        try:
            private_folder(folder.parent, STATE_VARIABLE)
            private_folder(folder)
            lock = open_lock(folder / _LOCK)
        except OSError as error:
            attempts -= 1
            if attempts and isinstance(error, FileNotFoundError):
                continue  # another process removes it between two of these lines
            raise OutputError(
                f"The folder {folder}, for checkpoints, cannot be written ({error.strerror}). "
                f"Name another with {STATE_VARIABLE}."
            ) from None
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


def _holder_before(folder: Path) -> tuple[Lease | None, bool]:
    """Return who held the lock of an earlier release, if there is one, and whether it is held.

    That another user holds it does not count.
    """
    try:
        with open_untrusted(folder / _LOCK_BEFORE) as old:
            lease = Lease.read({schema.LEASE: old.read(_LONGEST_LEASE).decode(errors="replace")})
            is_held = lease is not None and lease.is_here() and lease.is_live()
            return lease, is_held and not lock_file(old)
    except OSError:
        return None, False


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
        before, is_held = _holder_before(folder)
        holder = Lease.read({schema.LEASE: lock.read(_LONGEST_LEASE)}) or before
        if is_held or not is_ours:
            raise SearchError(
                f"This very search is running already: {holder or 'another process'} holds "
                "it. Wait for it to end, or stop that process and give this command again."
            )
        with contextlib.suppress(OSError):  # a full disk: then the name is not told
            os.truncate(lock.fileno(), 0)
            os.pwrite(lock.fileno(), Lease.of_this_process().text().encode(), 0)
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
