"""The process of a worker: started, given tasks, and how it ended."""

import contextlib
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver, get_context, parent_process, resource_tracker
from multiprocessing.connection import Connection
from typing import Any

import psutil

from fmnist_tracking import machine, runtime

JOIN_SECONDS = 5
_LOOK_SECONDS = 1.0
_ENDING_SECONDS = 0.5
# What Python gives as the exit status of a process whose fork server is gone.
_UNKNOWN = 255
# The fork server listens at a socket in the folder for temporary files, and the kernel takes paths
# of up to 107 bytes: this much is left for the folder's own.
_LONGEST_TEMPORARY_FOLDER = 107 - len("/pymp-xxxxxxxx/listener-xxxxxxxx")
# The driver decides what becomes of trials. Ctrl-C and the end of a terminal reach every
# process of it, and a service manager's SIGTERM every process of the service.
_LEFT_TO_THE_DRIVER = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}

_SEMAPHORES = "/dev/shm"

_starting = threading.Lock()


def start_method() -> str:
    """How `multiprocessing` starts workers: forked ready to work, where that can be.

    Raises:
        OutputError: there is no folder for temporary files.
    """
    folder = os.fsencode(runtime.temporary_folder())
    can_fork = sys.platform == "linux" and len(folder) <= _LONGEST_TEMPORARY_FOLDER
    return "forkserver" if can_fork else "spawn"


def start_helpers(preload: Sequence[str]) -> None:
    """Start Python's own helper processes, out of reach of the signals that are for the driver.

    Args:
        preload: modules for the fork server to import.
    """
    # Killed by the end of a terminal, the tracker would be started again, and complain of all that
    # it knows nothing of.
    with _signals_held_back({signal.SIGHUP}):
        resource_tracker.ensure_running()
    if start_method() == "forkserver":
        get_context("forkserver").set_forkserver_preload(list(preload))
        with _signals_held_back(_LEFT_TO_THE_DRIVER), _starting:
            _ensure_fork_server()


def why_not_started(error: Exception) -> str:
    """What there is to say of a process that could not be started, in words."""
    seen = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if sys.platform == "linux" and not os.access(_SEMAPHORES, os.W_OK):
        seen += f"; {_SEMAPHORES}, where Python keeps what processes share, cannot be written"
    return seen


def end_fork_server() -> None:
    """End the fork server at once, whatever it imports."""
    server = _fork_server()
    if server is not None:
        # A start that is under way may begin another one: that is ready at once, then.
        get_context("forkserver").set_forkserver_preload([])
        with contextlib.suppress(ProcessLookupError):
            os.kill(server, signal.SIGKILL)


class WorkerProcess:
    """One worker: its process, which may be replaced, and the pool of one that it belongs to.

    Args:
        number: of the worker, 0 for the first.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.executor: ProcessPoolExecutor | None = None
        self.process: Any = None
        self.reader: Connection | None = None
        self.tasks = 0
        self._parent = 0
        self._oom_kills = 0
        self.is_used_up = False  # its process must be replaced before the next task

    def start(self, threads: int, prepare: Callable[[], None]) -> Connection:
        """Start a process, in place of the last one; give the end to read its reports from."""
        method = start_method()
        context = get_context(method)
        reader, writer = context.Pipe(duplex=False)
        with _signals_held_back(_LEFT_TO_THE_DRIVER):
            with _starting:  # the environment is changed for a moment
                if method == "forkserver":
                    _ensure_fork_server()
                environment = dict(os.environ)
            server = _fork_server() if method == "forkserver" else None
            self._parent = server or os.getpid()
            arguments = writer, threads, self.number, prepare, self._parent, environment
            executor = ProcessPoolExecutor(
                1, context, initializer=_start_worker, initargs=arguments
            )
            self._oom_kills = machine.oom_kills()
            executor.submit(_ready)  # the pool starts its process only when it has a task
        writer.close()  # the worker has its own: when that is gone, reading comes to an end
        (self.process,) = executor._processes.values()
        self.executor, self.reader = executor, reader
        self.tasks, self.is_used_up = 0, False
        return reader

    def run(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        done: Callable[["Future[Any]"], None],
    ) -> None:
        """Run a function in the process; `done` is called when it has ended, or the process has."""
        assert self.executor is not None
        try:
            inner = self.executor.submit(_call, function, args)
        except BrokenProcessPool as error:  # it died while it was idle
            inner = Future()
            inner.set_exception(error)
        inner.add_done_callback(done)

    def how_it_ended(self) -> str:
        """How a process that is of no more use has ended, in words."""
        self.process.join(JOIN_SECONDS)
        if self.process.is_alive():  # it lost touch with this process, and is of no use
            self.process.kill()
            self.process.join()
        code = self.process.exitcode
        if code == _UNKNOWN and _ends(self._parent):  # which alone knows how the worker is
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGKILL)
            return "the process that it was forked from is gone"
        if code is not None and code < 0:
            how = f"killed by signal {-code}, {signal.strsignal(-code)}"
            kills = machine.oom_kills() - self._oom_kills
            if code == -signal.SIGKILL and kills > 0:
                how += (
                    f"; since it was started, the system has killed {kills} "
                    f"process{'es' if kills > 1 else ''} for want of memory"
                )
            return how
        return f"exit status {code}"


@contextlib.contextmanager
def _signals_held_back(signals: set[signal.Signals]) -> Iterator[None]:
    """What is started meanwhile never gets them: a process inherits which are blocked."""
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


_report: Callable[[Any], None] = print


def _ready() -> None:
    """Nothing: a first task, for which the pool starts a process."""


def _ensure_fork_server() -> None:
    """Start the fork server, unless it runs; it imports from where this process does.

    Python starts it as `python -c`, which would look in the working folder first.
    """
    server = _fork_server()
    if server is not None and _is_alive(server):
        return  # without changing the environment, which another thread may be reading
    path = [os.path.abspath(folder) for folder in sys.path]
    changes = {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(path)}
    kept = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        forkserver.ensure_running()
    finally:
        for name, value in kept.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _fork_server() -> int | None:
    """The process that workers are forked from, if there is one."""
    server: int | None = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    return server


def _is_alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _ends(pid: int) -> bool:
    """Whether a process has ended; one whose files are closed already is waited for."""
    end = time.monotonic() + _ENDING_SECONDS
    while _is_alive(pid):
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def _start_worker(
    writer: Connection,
    threads: int,
    number: int,
    prepare: Callable[[], None],
    parent: int,
    environment: dict[str, str],
) -> None:
    global _report
    _report = writer.send
    gc.disable()  # until all is imported: none of it is garbage
    # Standard output belongs to the driver's results, whatever a library prints here.
    sys.stdout.flush()
    os.dup2(2, 1)
    # The fork server has that of its start; what TensorFlow read at its import stays.
    os.environ.clear()
    os.environ.update(environment)
    threading.Thread(target=_end_with_parents, args=(parent,), daemon=True).start()
    runtime.load_tensorflow(threads, number)
    prepare()
    # What is loaded by now stays; looking for garbage in it would take a third of a second a trial.
    gc.freeze()
    gc.enable()


def _end_with_parents(parent: int) -> None:
    """End this process when the one that it works for, or the one it was forked from, is gone."""
    driver = parent_process()
    assert driver is not None
    while driver.is_alive() and os.getppid() == parent:
        driver.join(_LOOK_SECONDS)
    os._exit(1)


def _call(function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    return function(*args, _report)
