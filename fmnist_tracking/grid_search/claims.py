"""Which search of this machine trains a point that several of them have.

A point is claimed while it is trained, until its result is in the store. Other searches leave it,
and take the result over; if the process that trains it dies, the system lets go of its claim.
"""

import contextlib
import os
import threading
import time
from pathlib import Path
from typing import TextIO

from fmnist_tracking.console import Echo
from fmnist_tracking.files import private_folder
from fmnist_tracking.grid_search.lock import lock_file, open_lock

LOOK_SECONDS = 1.0
# Grows by a byte for each point that was released, by whichever process.
_RELEASED = "released"


class PointClaims:
    """The points that this process trains, by their fingerprints; any thread may ask.

    To be made before the store is asked what has been trained.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: dict[str, TextIO] = {}
        self._lock = threading.Lock()
        self._released = self._all_released()
        self._is_closed = self._others = False

    def claim(self, fingerprint: str) -> bool:
        """Claim a point; return whether this process has it, now or since before.

        Where files cannot be locked it has, as there is nobody to be told of.
        """
        with self._lock:
            if self._is_closed or fingerprint in self._held:
                return not self._is_closed
            path = self._folder / fingerprint
            # Whoever left it, or has it still, may have ended the training.
            self._others |= path.exists()
            try:
                private_folder(self._folder)
                file = open_lock(path)
            except FileNotFoundError:  # another process has just removed the folder
                return False
            except OSError:
                return True
            try:
                if lock_file(file) and os.fstat(file.fileno()).st_nlink:
                    self._held[fingerprint] = file
                    return True
            except OSError:
                file.close()
                return True
            # Another process has it, or has removed the file before it let go of it.
            file.close()
            return False

    def wait(self, fingerprint: str, name: str, echo: Echo) -> None:
        """Claim a point, as soon as no other process has it."""
        if not self.claim(fingerprint):
            echo(waiting_line(name))
            while not self.claim(fingerprint):
                time.sleep(LOOK_SECONDS)

    def others_have_released(self) -> bool:
        """Return whether others may have ended the training of a point since this was made."""
        return self._others or self._all_released() != self._released

    def _all_released(self) -> int:
        try:
            return (self._folder / _RELEASED).stat().st_size
        except OSError:
            return 0

    def release(self, fingerprint: str) -> None:
        """Let other searches have a point, whose result is in the store."""
        with self._lock:
            file = self._held.pop(fingerprint, None)
            if file is not None:
                with contextlib.suppress(OSError):
                    with (self._folder / _RELEASED).open("ab", buffering=0) as released:
                        try:
                            released.write(b".")
                        except OSError:  # a full disk; a hole takes no room
                            released.truncate(released.tell() + 1)
                    self._released += 1
                    (self._folder / fingerprint).unlink(missing_ok=True)
                file.close()

    def close(self) -> None:
        """Let others have every point; remove the folder if nobody else has one."""
        with self._lock:
            self._is_closed = True
        for fingerprint in list(self._held):
            self.release(fingerprint)
        with contextlib.suppress(OSError):
            if [entry.name for entry in self._folder.iterdir()] == [_RELEASED]:
                (self._folder / _RELEASED).unlink()
                self._folder.rmdir()


def waiting_line(name: str) -> str:
    """Return a line that says that a point is waited for."""
    return f"{name} is being trained by another search of this machine; its result is waited for."
