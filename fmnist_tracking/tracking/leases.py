"""Which process a run belongs to, and whether that process is still running.

No clock is believed. A process of this machine is told by when it was started, counted from the
start of the machine; one of another machine by whether its heartbeat changes while it is watched.
"""

import json
import math
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path

import psutil

from fmnist_tracking.redact import printable
from fmnist_tracking.tracking import schema

BEAT_SECONDS = 20.0
# A process on another machine cannot be inspected: it counts as dead after it was watched for so
# many seconds without a heartbeat.
SILENCE_SECONDS = 120.0
# Some systems compute a process's start time from a clock that is being adjusted.
_TOLERANCE_SECONDS = 2.0
# The heartbeats seen of processes on other machines, and when each was seen first, by the monotonic
# clock of this one.
_seen: dict[tuple[object, ...], float] = {}


@dataclass(frozen=True, kw_only=True)
class Lease:
    """The process that writes a run.

    Attributes:
        host: name of the machine, for people.
        machine: identifies one boot of one machine, or one container.
        pid: id of the process on that machine.
        started: when that process started, in seconds since 1970, by a clock that may be moved.
        ticks: when it started, in clock ticks since the machine did; None where the system does not
            tell it, and in leases of earlier versions.
        beat: time of its last heartbeat, in seconds since 1970 by its own clock.
    """

    host: str
    machine: str
    pid: int
    started: float
    ticks: int | None = None
    beat: float

    @classmethod
    def of_this_process(cls) -> "Lease":
        """Return a lease of this process, with a heartbeat of now."""
        return cls(
            host=socket.gethostname(),
            machine=_machine(),
            pid=os.getpid(),
            started=psutil.Process().create_time(),
            ticks=_ticks(os.getpid()),
            beat=time.time(),
        )

    @classmethod
    def read(cls, tags: Mapping[str, str]) -> "Lease | None":
        """Read the lease from a run's tags; return None if it is missing or damaged."""
        try:
            content = json.loads(tags[schema.LEASE])
            known = {field.name for field in fields(cls)}
            lease = cls(**{name: value for name, value in content.items() if name in known})
            return lease if lease._is_typed() else None
        except (KeyError, ValueError, TypeError, AttributeError, OverflowError, RecursionError):
            return None

    def _is_typed(self) -> bool:
        """Return whether each field has its type: anyone may have written the tag."""
        times = (self.started, self.beat)
        return (
            isinstance(self.host, str)
            and isinstance(self.machine, str)
            and type(self.pid) is int
            and self.pid > 0
            and (self.ticks is None or type(self.ticks) is int)
            and all(type(time) in (int, float) and math.isfinite(time) for time in times)
        )

    def text(self) -> str:
        """Return the value of the tag."""
        return json.dumps(asdict(self))

    @property
    def holder(self) -> tuple[object, ...]:
        """Return what identifies the process."""
        return self.machine, self.pid, self.ticks or self.started

    def is_here(self) -> bool:
        """Return whether the process is on this machine, so that it can be looked at."""
        # Earlier versions put the name of the machine first, which may be changed.
        return self.machine in (_machine(), f"{socket.gethostname()} {_machine()}")

    def let_go(self, before: "Lease | None") -> bool:
        """Return whether its process has left the folder of its search, as it held it `before`.

        That is believed of a process of this machine's kernel, in whatever container: the locks of
        two machines on a shared disk need not know of each other.
        """
        return (
            before is not None
            and before.holder == self.holder
            and self.machine.split()[:1] == _machine().split()[:1]
        )

    def is_mine(self) -> bool:
        """Return whether this process holds the lease."""
        return self.pid == os.getpid() and self.is_here() and self._is_running()

    def is_live(self) -> bool:
        """Return whether the process is still running.

        One on another machine counts as running when it is first looked at, and until it has been
        watched in vain.
        """
        if self.is_here():
            return self._is_running()
        now = time.monotonic()
        return now - _seen.setdefault((*self.holder, self.beat), now) < SILENCE_SECONDS

    def _is_running(self) -> bool:
        try:
            process = psutil.Process(self.pid)
            return self._has_its_start(process) and process.status() != psutil.STATUS_ZOMBIE
        except (psutil.NoSuchProcess, OverflowError):
            return False

    def _has_its_start(self, process: psutil.Process) -> bool:
        if self.ticks is not None:
            return self.ticks == _ticks(self.pid)
        return abs(self.started - process.create_time()) < _TOLERANCE_SECONDS

    def __str__(self) -> str:
        return f"process {self.pid} on {printable(self.host)}"


def _ticks(pid: int) -> int | None:
    """Return when a process started, in clock ticks since the machine did; None if not on Linux.

    See proc_pid_stat(5): it is the 22nd field; the second, in parentheses, may hold blanks.
    """
    try:
        fields_after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields_after_name[19])
    except (OSError, ValueError, IndexError):
        return None


@lru_cache(maxsize=1)
def _machine() -> str:
    parts = []
    # Linux: after a reboot, or in another container, the same id is another process.
    for path in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        try:
            parts.append(os.readlink(path) if "/ns/" in path else Path(path).read_text().strip())
        except OSError:
            continue
    return " ".join(parts) or socket.gethostname()
