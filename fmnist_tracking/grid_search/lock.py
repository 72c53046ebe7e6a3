"""The folder of an unfinished search or training, held by one process at a time."""

import contextlib
import errno
import fcntl
import hashlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from fmnist_tracking.errors import OutputError, SearchError
from fmnist_tracking.runtime import STATE_VARIABLE
from fmnist_tracking.tracking import Store
from fmnist_tracking.training import checkpoints
from fmnist_tracking.training.checkpoints import state_dir

_LOCK = "held_by"
# What flock says of a file that another process has locked.
_HELD = (errno.EWOULDBLOCK, errno.EACCES)


def checkpoint_folder(store: Store, experiment_id: str, fingerprint: str) -> Path:
    """Return the folder of a search or training: the same for the same command."""
    identity = "\n".join((store.identity(experiment_id), experiment_id, fingerprint))
    return state_dir() / hashlib.sha256(identity.encode()).hexdigest()[:16]


@contextlib.contextmanager
def locked_folder(folder: Path, *, fresh: bool = False) -> Iterator[Path]:
    """Hold the folder for the checkpoints of a search or training, while no one else uses it.

    The system lets go of it when this process ends, in whatever way. Left without an error,
    it is removed if it holds no checkpoint. For a fresh search, those that are there are removed.

    Raises:
        OutputError: it cannot be made, or not be locked.
        SearchError: another process holds it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / _LOCK).open("a+", errors="replace")
    except OSError as error:
        raise OutputError(
            f"The folder {folder}, for checkpoints, cannot be written ({error.strerror}). Name "
            f"another with {STATE_VARIABLE}."
        ) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _HELD:
                raise OutputError(
                    f"The folder {folder}, for checkpoints, cannot be locked ({error.strerror}), "
                    "which keeps two processes from doing the same search at once. Name a folder "
                    f"on another file system with {STATE_VARIABLE}."
                ) from None
            lock.seek(0)
            raise SearchError(
                f"This very search is running already: {lock.read() or 'another process'} holds "
                "it. Wait for it to end, or stop that process and give this command again."
            ) from None
        with contextlib.suppress(OSError):  # a full disk: then the name is not told
            lock.truncate(0)
            lock.write(f"process {os.getpid()} on {socket.gethostname()}")
            lock.flush()
        if fresh:
            for entry in folder.iterdir():
                if entry.is_dir():
                    checkpoints.remove(entry)
        yield folder
        with contextlib.suppress(OSError):
            if [entry.name for entry in folder.iterdir()] == [_LOCK]:
                (folder / _LOCK).unlink()
                folder.rmdir()
