"""A worker that is a process of this machine."""

import contextlib
import gc
import json
import os
import pickle
import pkgutil
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from multiprocessing import (
    current_process,
    forkserver,
    get_context,
    get_start_method,
    parent_process,
    resource_tracker,
    set_start_method,
    util,
)
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any

import psutil

from fmnist_tracking import machine, runtime
from fmnist_tracking.errors import ConfigError, first_line, named, shortened
from fmnist_tracking.workers.main_guard import WORKER_NAME, require_startable
from fmnist_tracking.workers.pool import (
    Function,
    NoWorker,
    Silence,
    TaskFailed,
    TimedOut,
    WorkerDied,
)

_JOIN_SECONDS = 5.0
_SILENCE_SECONDS = 1.0
# Of an error that is sent as it is, with its traceback, in bytes.
_LARGEST_ERROR = 131_072
# What Python gives as the exit status of a process whose fork server is gone.
_UNKNOWN = 255
# The fork server listens at a socket in the folder for temporary files, and the kernel takes paths
# of up to 107 bytes: this much is left for the folder's own.
_LONGEST_TEMPORARY_FOLDER = 107 - len("/pymp-xxxxxxxx/listener-xxxxxxxx")
# The driver decides what becomes of trials. Ctrl-C, Ctrl-\ and the end of a terminal reach every
# process of it, and a service manager's SIGTERM every process of the service.
_LEFT_TO_THE_DRIVER = {signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP}
# What a worker sends: any number of reports, then one of the others.
_REPORT, _RESULT, _ERROR = "report", "result", "error"
# Or, in place of all that, that the process cannot run tasks.
_UNFIT = "unfit"

# Tells the fork server what the variables that were changed for it had been, as JSON.
_BEFORE = "FMNIST_ENVIRONMENT_BEFORE"
# One process is started at a time: the environment and the mask of signals are changed meanwhile.
_starting = threading.Lock()


class LocalWorker:
    """A process, replaced when it has died or grown old, and the channel to it.

    On Linux it is forked from a process that Python starts for it, the fork server, which has
    imported what is needed and computed nothing: to fork one that has begun to compute with
    TensorFlow would make it hang. Elsewhere, and where the folder for temporary files has too long
    a name for the fork server's socket, it is started anew and imports by itself. It ends by itself
    when the process that started it is gone.

    Args:
        prepare: run in the process before its first task; it must survive pickling.
        tasks_per_process: after so many tasks a new process takes over, which gives back memory
            that libraries have kept; None never does.
    """

    def __init__(self, prepare: Callable[[], None], tasks_per_process: int | None = None) -> None:
        self._prepare = prepare
        self._tasks_per_process = tasks_per_process
        self._tasks = 0
        self._oom_kills = 0
        self._channel: Connection | None = None
        self._process: Any = None  # multiprocessing's, of the start method
        self._lock = threading.Lock()  # of the two above, and of:
        self._is_killed = False

    def start(self) -> None:
        """Start the process, unless one is fit for another task; see `Worker.start`."""
        worn = self._tasks_per_process is not None and self._tasks >= self._tasks_per_process
        if self._process is not None:
            if self._process.is_alive() and not worn:
                return
            self._end()
        try:
            process, channel = self._started()
        except Exception as error:
            raise NoWorker(named(error)) from error
        with self._lock:
            self._process, self._channel = process, channel
            if self._is_killed:
                _kill(process.pid)
        self._tasks = 0

    def run(self, function: Function, args: tuple[Any, ...]) -> Generator[Any, None, Any]:
        """Run a task in the process; see `Worker.run`."""
        assert self._channel is not None
        self._tasks += 1
        try:
            self._channel.send((function, args))
            while True:
                kind, content = yield from self._received(self._channel)
                if kind != _REPORT:
                    break
                yield content
        except (EOFError, ConnectionError):
            raise WorkerDied(self._how_it_ended()) from None
        except TimedOut:
            self._end()
            raise
        except Exception as unread:  # of a module that this process does not find, for example
            self._end()
            raise WorkerDied(f"what it sent cannot be read: {named(unread)}") from None
        if kind == _UNFIT:
            self._end()
            raise NoWorker(content)
        if kind == _ERROR:
            error, trace = content
            raise error from _InWorker(trace)
        return content

    def _received(self, channel: Connection) -> Generator[Silence, None, Any]:
        """Return what the process sends next; yield a `Silence` for each second without it."""
        while not channel.poll(_SILENCE_SECONDS):
            status = _status(self._process.pid)
            # A process that it has started may have its end of the channel.
            if status in (None, psutil.STATUS_ZOMBIE) and not channel.poll():
                raise EOFError
            stopped = status == psutil.STATUS_STOPPED
            yield Silence(process=self._process.pid, is_stopped=stopped)
        return channel.recv()

    def kill(self) -> None:
        """End the process at once, whatever it is doing; one that is being started, too."""
        with self._lock:
            self._is_killed = True
            started = self._process is not None
            if started:
                _kill(self._process.pid)
        # One that is not started yet waits, perhaps, for the fork server, which imports for
        # seconds; and a fork server that is stopped tells nobody that its children have ended.
        end_helpers(only_if_stopped=started)

    def _started(self) -> tuple[Any, Connection]:
        method = _start_method()
        context: Any = get_context(method)
        ours, theirs = context.Pipe()
        _ensure_tracker()
        # The process has the other end to itself: when it is gone, reading comes to an end.
        with theirs, _starting, _signals_held_back(_LEFT_TO_THE_DRIVER), _method_left_open():
            if method == "forkserver":
                _ensure_fork_server()
            self._oom_kills = machine.oom_kills()
            arguments = theirs, self._prepare, dict(os.environ)
            process = context.Process(target=_serve, args=arguments, name=WORKER_NAME)
            process.start()
        return process, ours

    def _end(self) -> None:
        """End a process that is of no more use."""
        _kill(self._process.pid)
        self._process.join(_JOIN_SECONDS)
        if self._channel is not None:
            self._channel.close()
        with self._lock:
            self._process = self._channel = None

    def _how_it_ended(self) -> str:
        """Return how a process that no longer answers has ended, in words."""
        self._process.join(_JOIN_SECONDS)
        if self._process.is_alive():  # it lost touch with this process, and is of no use
            _kill(self._process.pid)
            end_helpers(only_if_stopped=True)
            self._process.join(_JOIN_SECONDS)
        code = self._process.exitcode
        if code == _UNKNOWN and _fork_server() is None:
            return "the process that it was forked from, which would know how, is gone"
        if code is None or code >= 0:
            return f"exit status {code}"
        how = f"killed by {_signal_name(-code)}"
        kills = machine.oom_kills() - self._oom_kills
        if code == -signal.SIGKILL and kills > 0:
            how += (
                f"; since it was started, the system has killed {kills} "
                f"process{'es' if kills > 1 else ''} for want of memory"
            )
        return how


class _InWorker(Exception):
    """The traceback of an error, as text from the process in which it was raised."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def start_helpers(preload: Sequence[str]) -> None:
    """Start Python's own helper processes, out of reach of the signals that are for the driver.

    Args:
        preload: modules for the fork server to import, if it does not run yet; they must not begin
            to compute.

    Raises:
        ConfigError: workers cannot be started from here; see `main_guard`.
    """
    require_startable()
    _ensure_tracker()
    if _start_method() == "forkserver":
        get_context("forkserver").set_forkserver_preload(list(preload))
        with _starting, _signals_held_back(_LEFT_TO_THE_DRIVER), _method_left_open():
            _ensure_fork_server()


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
    server = _fork_server()
    if server is not None and _status(server.pid) == psutil.STATUS_STOPPED:
        _kill(server.pid)  # a start would wait for it
        os.waitid(os.P_PID, server.pid, os.WEXITED | os.WNOWAIT)
    elif server is not None:
        return  # without changing the environment, which another thread may be reading
    path = [os.path.abspath(folder) for folder in sys.path]
    changes = {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(path)}
    before = {name: os.environ.get(name) for name in changes}
    try:
        with _environment({**changes, _BEFORE: json.dumps(before)}):
            forkserver.ensure_running()
    except ChildProcessError:  # the fork server is another process's child
        raise ConfigError(
            "Expected a process that can start workers, got one that was forked from a program "
            "that has trained or reported before. Start it by the method `spawn` or `forkserver`."
        ) from None


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
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _LEFT_TO_THE_DRIVER)

    util.register_after_fork(LocalWorker, restore)


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


def end_helpers(*, only_if_stopped: bool = False) -> None:
    """End the process that workers are forked from at once, whatever it imports."""
    server = _fork_server()
    if server is not None and (not only_if_stopped or _status(server.pid) == psutil.STATUS_STOPPED):
        # A start that is under way may begin another one: that is ready at once, then.
        get_context("forkserver").set_forkserver_preload([])
        _kill(server.pid)


def _status(pid: int) -> str | None:
    """Return the status of a process as psutil calls it, None of one that is gone."""
    with contextlib.suppress(psutil.Error):
        return str(psutil.Process(pid).status())
    return None


def _signal_name(number: int) -> str:
    """Return a signal as `SIGSEGV, Segmentation fault`; those for programs' own use have none."""
    with contextlib.suppress(ValueError):
        return f"{signal.Signals(number).name}, {signal.strsignal(number)}"
    return f"signal {number}"


def _fork_server() -> psutil.Process | None:
    """Return the process that workers are forked from, if there is one."""
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):  # it has ended meanwhile
            if any("multiprocessing.forkserver" in word for word in child.cmdline()):
                return child
    return None


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _serve(channel: Connection, prepare: Callable[[], None], environment: dict[str, str]) -> None:
    """Run the tasks that come through a channel, in a worker's process."""
    # Those of a fork server that the program itself has started are not blocked.
    signal.pthread_sigmask(signal.SIG_BLOCK, _LEFT_TO_THE_DRIVER)
    # Standard output belongs to the driver's results, whatever a library prints here.
    sys.stdout.flush()
    os.dup2(2, 1)
    # The fork server has that of its start; what TensorFlow read at its import stays.
    os.environ.clear()
    os.environ.update(environment)
    try:
        threading.Thread(target=_end_with_the_driver, daemon=True).start()
        prepare()
    except BaseException as error:
        channel.send((_UNFIT, named(error)))
        os._exit(1)
    with contextlib.suppress(EOFError, ConnectionError):  # the driver is gone
        while True:
            function, args = channel.recv()
            _send_outcome(channel, function, args)
    os._exit(1)


def _send_outcome(channel: Connection, function: Function, args: tuple[Any, ...]) -> None:
    try:
        called = pkgutil.resolve_name(function) if isinstance(function, str) else function
        result = called(*args, lambda content: channel.send((_REPORT, content)))
        content = _pickled(_RESULT, result)
    except BaseException as error:
        content = _pickled_error(error)
    channel.send_bytes(content)


def _pickled(kind: str, content: Any) -> memoryview:
    try:
        return ForkingPickler.dumps((kind, content))
    except Exception as error:
        what = f"{type(content).__name__} cannot be sent to the driver"
        raise TypeError(f"{what}: {first_line(error)}") from error


def _pickled_error(error: BaseException) -> memoryview:
    """Return an error to be sent: itself, if it can be made again from what is sent.

    One that would end the driver, `SystemExit` for instance, is sent as a `TaskFailed`, too.
    """
    trace = shortened("".join(traceback.format_exception(error)))
    if isinstance(error, Exception):
        with contextlib.suppress(Exception):
            content = ForkingPickler.dumps((_ERROR, (error, trace)))
            if len(content) <= _LARGEST_ERROR:
                str(pickle.loads(content)[1][0])
                return content
    return ForkingPickler.dumps((_ERROR, (TaskFailed(named(error)), trace)))


def _end_with_the_driver() -> None:
    driver = parent_process()
    assert driver is not None
    driver.join()
    os._exit(1)
