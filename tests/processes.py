"""Processes to start, to look for and to wait for."""

import contextlib
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

PROGRAM = shlex.join([sys.executable, "-m", "fmnist_tracking"])


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0] != "Z"


def processes_of(group: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[2]) == group and fields[0] != "Z":
                found.append(int(entry.name))
    return found


_MEASURED = """
import resource, sys
{imports}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    {call}
except Exception as error:
    print(type(error).__name__, error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def memory_taken(imports: str, call: str) -> tuple[str, float]:
    """Make a call in a new process; return its output and the megabytes of memory that it took."""
    code = _MEASURED.format(imports=imports, call=call)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=180, check=True
    )
    *said, kilobytes = done.stdout.splitlines()
    return "\n".join(said), int(kilobytes) / 1000


def shell(line: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, **variables}
    return subprocess.run(
        ["bash", "-c", line],
        env=environment,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=180,
    )


def workers_of(process: "subprocess.Popen[str]") -> list[int]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return [worker.pid for server in fork_servers(process) for worker in server.children()]
    return []


def fork_servers(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    """The process that a search has its workers forked from, once there is one."""
    with contextlib.suppress(psutil.NoSuchProcess):
        children = psutil.Process(process.pid).children()
        return [c for c in children if "forkserver" in " ".join(c.cmdline())]
    return []
