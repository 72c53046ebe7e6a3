"""The resources of this machine: processor cores, memory, GPUs, threads and files."""

import ctypes.util
import importlib.util
import itertools
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

_CONTROL_GROUPS = Path("/sys/fs/cgroup")
_OWN_GROUP = Path("/proc/self/cgroup")
_SYSTEM = Path("/proc/vmstat")
_NVIDIA = Path("/proc/driver/nvidia/gpus")
# A larger limit of a user's threads is none in practice: they need not be counted.
_MANY_THREADS = 10_000


def cores() -> int:
    """Return the number of processor cores that this process may use, also in a container."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        allowed = len(os.sched_getaffinity(0))
    else:
        allowed = os.cpu_count() or 1
    for limit in _limits("cpu.max"):
        quota, _, period = limit.partition(" ")
        if quota.isdigit() and period.isdigit():
            allowed = min(allowed, max(1, int(quota) // int(period)))
    return allowed


def memory() -> int:
    """Return the memory of this machine, or the container's limit, in bytes."""
    limits = (int(limit) for limit in _limits("memory.max") if limit.isdigit())
    return min([psutil.virtual_memory().total, *limits])


def memory_left() -> int:
    """Return how many bytes of memory are left to this machine, or its container.

    What files take in the cache is left, as the system gives it back.
    """
    groups = zip(*(_limits(f"memory.{name}") for name in ("max", "current", "stat")), strict=False)
    left = [
        int(most) - int(now) + _count(stat, "inactive_file")
        for most, now, stat in groups
        if most.isdigit()
    ]
    return min([psutil.virtual_memory().available, *left])


def spare_files() -> int:
    """Return how many more files this process may open."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = limit == resource.RLIM_INFINITY
    return sys.maxsize if unlimited else limit - psutil.Process().num_fds()


def spare_threads() -> int:
    """Return how many more processes and threads this container, or this user, may start."""
    groups = zip(_limits("pids.max"), _limits("pids.current"), strict=False)
    spare = [int(most) - int(now) for most, now in groups if most.isdigit()]
    limit, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if os.geteuid() != 0 and resource.RLIM_INFINITY != limit <= _MANY_THREADS:
        spare.append(limit - _threads_of(os.getuid()))
    return min(spare, default=sys.maxsize)


def _threads_of(user: int) -> int:
    processes = psutil.process_iter(["uids", "num_threads"])
    return sum(
        p.info["num_threads"] or 1
        for p in processes
        if p.info["uids"] and p.info["uids"].real == user
    )


def oom_kills() -> int:
    """Count the processes that Linux killed for lack of memory: in this container, or in all."""
    for events in _limits("memory.events"):
        return _count(events, "oom_kill")
    try:
        return _count(_SYSTEM.read_text(), "oom_kill")
    except OSError:  # not Linux
        return 0


def _count(lines: str, name: str) -> int:
    counts = dict(line.split(maxsplit=1) for line in lines.splitlines() if " " in line)
    return int(counts.get(name, 0))


def gpus() -> int:
    """Count the NVIDIA GPUs that TensorFlow can use, without loading it.

    GPUs hidden by CUDA_VISIBLE_DEVICES do not count. Without the library cuDNN, which
    `tensorflow[and-cuda]` installs, no GPU can be used.
    """
    try:
        count = len(list(_NVIDIA.iterdir()))
    except OSError:
        return 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        named = [name.strip() for name in visible.split(",")]
        wrong = {"", "-1", *(name for name in named if name.isdigit() and int(name) >= count)}
        # CUDA ignores what follows the first invalid name.
        count = min(count, len(list(itertools.takewhile(lambda name: name not in wrong, named))))
    return count if count and _has_cudnn() else 0


def _has_cudnn() -> bool:
    try:
        if importlib.util.find_spec("nvidia.cudnn") is not None:
            return True
    except ModuleNotFoundError:
        pass
    named = os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)
    folders = [Path(folder) for folder in named if folder] + [Path(sys.prefix, "lib")]
    if any(any(folder.glob("libcudnn.so*")) for folder in folders):
        return True
    return ctypes.util.find_library("cudnn") is not None


def _limits(name: str) -> Iterator[str]:
    """Yield the values of a limit from this process's control group and each group around it."""
    try:
        lines = _OWN_GROUP.read_text().splitlines()
        own = next(line.removeprefix("0::/") for line in lines if line.startswith("0::/"))
    except (OSError, StopIteration):  # not Linux, or version 1 of control groups
        return
    group = _CONTROL_GROUPS / own
    for folder in (group, *group.parents):
        if not folder.is_relative_to(_CONTROL_GROUPS):
            return
        try:
            yield (folder / name).read_text().strip()
        except OSError:  # the outermost group has no limits
            continue
