"""Which process a run belongs to, and whether that process is still running."""

import json
import math
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import psutil

from fmnist_tracking.tracking import schema

BEAT_SECONDS = 20.0
# A process on another machine cannot be inspected: after this many seconds without a heartbeat, it
# counts as dead.
_SILENCE_SECONDS = 120.0
# Some systems compute a process's start time from a clock that is being adjusted.
_TOLERANCE_SECONDS = 2.0


@dataclass(frozen=True, kw_only=True)
class Lease:
    """The process that writes a run.

    Attributes:
        host: name of the machine, for people.
        machine: identifies one boot of one machine, or one container.
        pid: id of the process on that machine.
        started: when that process started, in seconds since 1970.
        beat: time of its last heartbeat, in seconds since 1970.
    """

    host: str
    machine: str
    pid: int
    started: float
    beat: float

    @classmethod
    def of_this_process(cls) -> "Lease":
        """Return a lease of this process, with a heartbeat of now."""
        return cls(
            host=socket.gethostname(),
            machine=_machine(),
            pid=os.getpid(),
            started=_own_start(),
            beat=time.time(),
        )

    @classmethod
    def read(cls, tags: Mapping[str, str]) -> "Lease | None":
        """Read the lease from a run's tags; return None if it is missing or damaged."""
        try:
            lease = cls(**json.loads(tags[schema.LEASE]))
            return lease if lease._is_typed() else None
        except (KeyError, ValueError, TypeError, OverflowError, RecursionError):
            return None

    def _is_typed(self) -> bool:
        """Return whether each field has its type: anyone may have written the tag."""
        times = (self.started, self.beat)
        return (
            isinstance(self.host, str)
            and isinstance(self.machine, str)
            and type(self.pid) is int
            and self.pid > 0
            and all(type(time) in (int, float) and math.isfinite(time) for time in times)
        )

    def text(self) -> str:
        """Return the value of the tag."""
        return json.dumps(asdict(self))

    def is_mine(self) -> bool:
        """Return whether this process holds the lease."""
        return (self.machine, self.pid) == (_machine(), os.getpid()) and self._same_start(
            _own_start()
        )

    def is_live(self) -> bool:
        """Return whether the process is still running."""
        if self.machine != _machine():
            return time.time() - self.beat < _SILENCE_SECONDS
        try:
            process = psutil.Process(self.pid)
            return self._same_start(process.create_time()) and (
                process.status() != psutil.STATUS_ZOMBIE
            )
        except psutil.NoSuchProcess:
            return False

    def _same_start(self, started: float) -> bool:
        return abs(self.started - started) < _TOLERANCE_SECONDS

    def __str__(self) -> str:
        ago = max(0, round(time.time() - self.beat))
        return f"process {self.pid} on {self.host} (last sign of life {ago} s ago)"


@lru_cache(maxsize=1)
def _own_start() -> float:
    return psutil.Process().create_time()


@lru_cache(maxsize=1)
def _machine() -> str:
    parts = [socket.gethostname()]
    # Linux: after a reboot, or in another container, the same id is another process.
    for path in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        try:
            parts.append(os.readlink(path) if "/ns/" in path else Path(path).read_text().strip())
        except OSError:
            continue
    return " ".join(parts)
