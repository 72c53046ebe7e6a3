"""A worker that is a process of this machine."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any

import psutil

from fmnist_tracking import clock, machine
from fmnist_tracking.errors import named
from fmnist_tracking.workers import fork_server
from fmnist_tracking.workers.fork_server import end_process, status_of
from fmnist_tracking.workers.main_guard import WORKER_NAME
from fmnist_tracking.workers.pool import Function, NoWorker, Silence, TimedOut, WorkerDied
from fmnist_tracking.workers.serve import ERROR, REPORT, UNFIT, serve

_JOIN_SECONDS = 5.0
_SILENCE_SECONDS = 1.0
# What Python gives as the exit status of a process whose fork server is gone.
_UNKNOWN = 255
# Of a machine's memory: with less than this left, Linux may soon end a process.
_LITTLE = 0.05


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
        self._memory: _Memory | None = None
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
            try:
                process, channel = self._started()
            except ConnectionError:
                fork_server.end_deaf_fork_server()
                process, channel = self._started()
        except Exception as error:
            raise NoWorker(named(error)) from error
        with self._lock:
            self._process, self._channel = process, channel
            if self._is_killed:
                end_process(process.pid)
        self._tasks = 0

    def run(self, function: Function, args: tuple[Any, ...]) -> Generator[Any, None, Any]:
        """Run a task in the process; see `Worker.run`."""
        assert self._channel is not None
        task = ForkingPickler.dumps((function, args))
        self._tasks += 1
        try:
            self._channel.send_bytes(task)
            while True:
                kind, content = yield from self._received(self._channel)
                if kind != REPORT:
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
        if kind == UNFIT:
            self._end()
            raise NoWorker(content)
        if kind == ERROR:
            error, trace = content
            raise error from _InWorker(trace)
        return content

    def _received(self, channel: Connection) -> Generator[Silence, None, Any]:
        """Return what the process sends next; yield a `Silence` for each second without it."""
        self._look_at_memory()
        while not channel.poll(_SILENCE_SECONDS):
            status = status_of(self._process.pid)
            # A process that it has started may have its end of the channel.
            if status in (None, psutil.STATUS_ZOMBIE) and not channel.poll():
                raise EOFError
            stopped = status == psutil.STATUS_STOPPED
            yield Silence(process=self._process.pid, is_stopped=stopped)
            self._look_at_memory()
        return channel.recv()

    def kill(self) -> None:
        """End the process at once, whatever it is doing; one that is being started, too."""
        with self._lock:
            self._is_killed = True
            started = self._process is not None
            if started:
                end_process(self._process.pid)
        # One that is not started yet waits, perhaps, for the fork server, which imports for
        # seconds; and a fork server that is stopped tells nobody that its children have ended.
        fork_server.end_fork_server(only_if_stopped=started)

    def _started(self) -> tuple[Any, Connection]:
        with fork_server.starting() as context:
            ours, theirs = context.Pipe()
            # The process has the other end to itself: when it is gone, reading comes to an end.
            with theirs:
                self._oom_kills, self._memory = machine.oom_kills(), None
                arguments = theirs, self._prepare, dict(os.environ)
                process = context.Process(target=serve, args=arguments, name=WORKER_NAME)
                process.start()
        return process, ours

    def _end(self) -> None:
        """End a process that is of no more use."""
        end_process(self._process.pid)
        self._process.join(_JOIN_SECONDS)
        if self._channel is not None:
            self._channel.close()
        with self._lock:
            self._process = self._channel = None

    def _how_it_ended(self) -> str:
        """Return how a process that no longer answers has ended, in words."""
        self._process.join(_JOIN_SECONDS)
        if self._process.is_alive():  # it lost touch with this process, and is of no use
            end_process(self._process.pid)
            fork_server.end_fork_server(only_if_stopped=True)
            self._process.join(_JOIN_SECONDS)
        code = self._process.exitcode
        if code == _UNKNOWN and fork_server.find_fork_server() is None:
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
        elif code == -signal.SIGKILL and self._memory is not None:
            how += self._memory.if_short()
        return how

    def _look_at_memory(self) -> None:
        """Note, once a second, how much memory the process takes, and how much is left."""
        if self._memory is None or clock.now() - self._memory.at >= _SILENCE_SECONDS:
            with contextlib.suppress(psutil.Error, OSError, ValueError):
                taken = psutil.Process(self._process.pid).memory_info().rss
                self._memory = _Memory(taken=taken, left=machine.memory_left(), at=clock.now())


@dataclass(frozen=True, kw_only=True)
class _Memory:
    """The memory of a worker, and what is left of the machine's or container's, in bytes."""

    taken: int
    left: int
    at: float  # when it was looked at

    def if_short(self) -> str:
        """Return how little memory was left, as the end of a message; "" if it was enough."""
        if self.left > _LITTLE * machine.memory():
            return ""
        return (
            f"; {clock.now() - self.at:.0f} s before, it took {self.taken / 1e9:.1f} GB of memory, "
            f"and {self.left / 1e9:.1f} GB of {machine.memory() / 1e9:.1f} GB were left"
        )


class _InWorker(Exception):
    """The traceback of an error, as text from the process in which it was raised."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def _signal_name(number: int) -> str:
    """Return a signal as `SIGSEGV, Segmentation fault`; those for programs' own use have none."""
    with contextlib.suppress(ValueError):
        return f"{signal.Signals(number).name}, {signal.strsignal(number)}"
    return f"signal {number}"
