"""The process that workers are forked from, and Python's tracker of shared resources.

Python starts both, once for a program. This module keeps them out of reach of the signals that are
for the driver, and keeps the program's own processes from knowing of workers.
"""

import contextlib
import gc
import json
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing import (
    current_process,
    forkserver,
    get_context,
    get_start_method,
    resource_tracker,
    set_start_method,
    util,
)
from typing import Any

import psutil

from fmnist_tracking import runtime
from fmnist_tracking.errors import ConfigError
from fmnist_tracking.workers.main_guard import WORKER_NAME, require_startable

# The driver decides what becomes of trials. Ctrl-C, Ctrl-\ and the end of a terminal reach every
# process of it, and a service manager's SIGTERM every process of the service.
LEFT_TO_THE_DRIVER = {signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP}
# The fork server listens at a socket in the folder for temporary files, and the kernel takes paths
# of up to 107 bytes: this much is left for the folder's own.
_LONGEST_TEMPORARY_FOLDER = 107 - len("/pymp-xxxxxxxx/listener-xxxxxxxx")
# Tells the fork server what the variables that were changed for it had been, as JSON.
_BEFORE = "FMNIST_ENVIRONMENT_BEFORE"
# One process is started at a time: the environment and the mask of signals are changed meanwhile.
_starting = threading.Lock()
_preload: list[str] = []  # the modules that the fork server imports


def start_helpers(preload: Sequence[str]) -> None:
    """Start Python's own helper processes, out of reach of the signals that are for the driver.

    Args:
        preload: modules for the fork server to import, if it does not run yet; they must not begin
            to compute.

    Raises:
        ConfigError: workers cannot be started from here; see `main_guard`.
    """
    global _preload
    require_startable()
    _preload = list(preload)
    with starting():
        pass


@contextlib.contextmanager
def starting() -> Iterator[Any]:
    """Give multiprocessing's context for starting a worker, with its helper processes running.

    One worker is started at a time.
    """
    method = _start_method()
    _ensure_tracker()
    with _starting, _signals_held_back(LEFT_TO_THE_DRIVER), _method_left_open():
        if method == "forkserver":
            _ensure_fork_server()
        yield get_context(method)


def _start_method() -> str:
    """Return how workers are started: forked ready to work, where that can be."""
    folder = os.fsencode(runtime.temporary_folder())
    can_fork = sys.platform == "linux" and len(folder) <= _LONGEST_TEMPORARY_FOLDER
    return "forkserver" if can_fork else "spawn"


@contextlib.contextmanager
def _signals_held_back(signals: set[signal.Signals]) -> Iterator[None]:
    """Block signals while child processes are started: a process inherits which are blocked."""
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


@contextlib.contextmanager
def _method_left_open() -> Iterator[None]:
    """Let the program still choose how it starts its own processes: a start settles it.

    What another thread of it chooses at that very moment is lost.
    """
    is_open = get_start_method(allow_none=True) is None
    try:
        yield
    finally:
        if is_open:
            set_start_method(None, force=True)


def _ensure_tracker() -> None:
    """Start Python's tracker of shared resources, unless it runs, before signals are held back.

    Its start lets them through again.
    """
    # Killed by the end of a terminal, it would be started again, and complain of all that it knows
    # nothing of.
    with _signals_held_back({signal.SIGHUP}):
        resource_tracker.ensure_running()


def _ensure_fork_server() -> None:
    """Start the fork server, unless it runs; it imports from where this process does.

    Python starts it as `python -c`, which would look in the working folder first.
    """
    server = find_fork_server()
    if server is not None and status_of(server.pid) == psutil.STATUS_STOPPED:
        _end_and_wait(server)  # a start would wait for it
    elif server is not None:
        return  # without changing the environment, which another thread may be reading
    path = [os.path.abspath(folder) for folder in sys.path]
    changes = {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(path)}
    before = {name: os.environ.get(name) for name in changes}
    get_context("forkserver").set_forkserver_preload(_preload)
    try:
        with _environment({**changes, _BEFORE: json.dumps(before)}):
            forkserver.ensure_running()
    except ChildProcessError:  # the fork server is another process's child
        raise ConfigError(
            "Expected a process that can start workers, got one that was forked from a program "
            "that has trained or reported before. Start it by the method `spawn` or `forkserver`."
        ) from None


@contextlib.contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    """Change the environment while a process is started, which inherits it."""
    kept = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in kept.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def leave_others_alone() -> None:
    """Let processes that the program itself has forked from here start as if without workers.

    A program has one fork server, which is this process. What is inherited from it, other than what
    it imports, is for workers: blocked signals, variables, filters of warnings, and whether garbage
    is collected. It is put back when the main module was imported, before the process's function
    is called.
    """
    environment: dict[str, str | None] = {**os.environ}
    environment.update(json.loads(environment.pop(_BEFORE, None) or "{}"))
    options, filters = sys.warnoptions[:], warnings.filters[:]
    server = os.getpid()

    def restore(_: object) -> None:
        # Processes that those start in turn are not forked from here.
        if os.getppid() == server and current_process().name != WORKER_NAME:
            os.environ.clear()
            os.environ.update({k: v for k, v in environment.items() if v is not None})
            sys.warnoptions[:], warnings.filters[:] = options, filters  # type: ignore[index]
            runtime.another_process()
            gc.enable()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, LEFT_TO_THE_DRIVER)

    util.register_after_fork(leave_others_alone, restore)


def end_fork_server(*, only_if_stopped: bool = False) -> None:
    """End the process that workers are forked from at once, whatever it imports."""
    global _preload
    server = find_fork_server()
    if server is None:
        return
    if not only_if_stopped:
        _preload = []  # a start that is under way may begin another one: that is ready at once
    if not only_if_stopped or status_of(server.pid) == psutil.STATUS_STOPPED:
        _end_and_wait(server)


def end_deaf_fork_server() -> None:
    """End the fork server that has refused to be asked: somebody is killing it."""
    server = find_fork_server()
    if server is not None:
        _end_and_wait(server)


def _end_and_wait(server: psutil.Process) -> None:
    """End the fork server; one that is still ending would be asked for workers, and refuse."""
    end_process(server.pid)
    with contextlib.suppress(ChildProcessError):
        os.waitid(os.P_PID, server.pid, os.WEXITED | os.WNOWAIT)


def find_fork_server() -> psutil.Process | None:
    """Return the process that workers are forked from, if there is one."""
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):  # it has ended meanwhile
            if any("multiprocessing.forkserver" in word for word in child.cmdline()):
                return child
    return None


def status_of(pid: int) -> str | None:
    """Return the status of a process as psutil calls it, None of one that is gone."""
    with contextlib.suppress(psutil.Error):
        return str(psutil.Process(pid).status())
    return None


def end_process(pid: int) -> None:
    """End a process at once, unless it has ended."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
