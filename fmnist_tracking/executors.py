"""Where trials run: worker processes that report back while they work."""

import contextlib
import gc
import logging
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures import wait as wait_for_futures
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import forkserver, get_context, parent_process, resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any

from fmnist_tracking import runtime

_JOIN_SECONDS = 5
_POLL_SECONDS = 0.1
_LOOK_SECONDS = 1.0
# What Python gives as the exit status of a process whose fork server is gone.
_UNKNOWN = 255
_METHOD = "forkserver" if sys.platform == "linux" else "spawn"
# The driver decides what becomes of trials. Ctrl-C and the end of a terminal reach every
# process of it, and a service manager's SIGTERM every process of the service.
_LEFT_TO_THE_DRIVER = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}

OnReport = Callable[[int, Any], None]

_log = logging.getLogger(__name__)


class WorkerDied(Exception):
    """A worker process ended in the middle of its task; the message says how."""


class WorkerPool:
    """Processes behind `concurrent.futures`, each of which may die alone.

    Python's own process pool gives up all its processes when one of them dies. So each
    worker here is such a pool of one process, with a pipe of its own for reports, and is
    replaced when its process has died; the others never notice.

    On Linux they are forked from a process that Python starts for it, the fork server, which
    has imported what they need and computed nothing: to fork one that has begun to compute
    with TensorFlow would make them hang. Elsewhere, they are started anew and import it
    themselves. A worker ends by itself when the process that started it, or the fork server,
    is gone. Use the pool as a context manager: left normally it waits for what was submitted,
    left by an exception it ends the workers at once.

    Args:
        workers: number of processes; the cores, and GPUs if there are any, are shared out
            between them.
        on_report: called, in a thread of this process, with a worker's number, 0 for the
            first, and an object that it reports.
        prepare: run in each worker before its first task; importable by name.
        tasks_per_process: after so many tasks a worker's process is replaced by a new one,
            which gives back memory that libraries have kept; None never does.
        preload: modules that the fork server imports, if it does not run yet for an earlier
            pool; they must not begin to compute.
    """

    def __init__(
        self,
        workers: int,
        on_report: OnReport,
        prepare: Callable[[], None],
        tasks_per_process: int | None = None,
        preload: Sequence[str] = (),
    ) -> None:
        self.workers = workers
        self.threads = runtime.threads_of(workers)  # of each worker
        self._on_report: OnReport | None = on_report
        self._prepare = prepare
        self._tasks_per_process = tasks_per_process
        self._lock = threading.RLock()
        self._reading = threading.Lock()
        self._preload = list(preload)
        self._slots = [_Slot(number) for number in range(workers)]
        self._idle: deque[_Slot] = deque()
        self._waiting: deque[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]] = deque()
        self._submitted: set[Future[Any]] = set()
        self._readers: dict[Connection, int] = {}
        self._ending = False
        self._ended = threading.Event()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._starters = [
            threading.Thread(target=self._start_first, args=(slot,), daemon=True)
            for slot in self._slots
        ]

    def __enter__(self) -> "WorkerPool":
        self._listener.start()
        # Python's own helper processes. Killed by the end of a terminal, the tracker would be
        # started again, and complain of all that it knows nothing of.
        with _signals_held_back({signal.SIGHUP}):
            resource_tracker.ensure_running()
        if _METHOD == "forkserver":
            get_context(_METHOD).set_forkserver_preload(self._preload)
            with _signals_held_back(_LEFT_TO_THE_DRIVER):
                _ensure_fork_server()
        for starter in self._starters:  # in the background: the fork server imports first
            starter.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.kill()
        self.close()

    def close(self) -> None:
        """Wait for what was submitted, end the workers, and pass on all that they reported."""
        with self._lock:
            submitted = [] if self._ending else list(self._submitted)
        wait_for_futures(submitted)
        with self._lock:
            self._ending = True
        self._end_fork_server_that_imports()
        for starter in self._starters:
            starter.join(_JOIN_SECONDS)
        for slot in self._slots:
            if slot.executor is not None:
                slot.process.kill()  # it has nothing left to do; by itself it takes a second to end
                slot.executor.shutdown()
        self._ended.set()
        self._listener.join(_JOIN_SECONDS)

    def kill(self) -> None:
        """End the workers at once, whatever they are doing; what waits is cancelled."""
        with self._lock:
            self._ending = True
            waiting = list(self._waiting)
            self._waiting.clear()
            for slot in self._slots:
                if slot.process is not None:
                    slot.process.kill()
        self._end_fork_server_that_imports()
        for outer, _, _ in waiting:
            outer.cancel()

    def _end_fork_server_that_imports(self) -> None:
        """End the fork server if it is not ready yet: it would go on for some seconds."""
        if any(slot.process is None for slot in self._slots):
            server = _fork_server()
            if server is not None:
                # A start that is under way may begin another one: that is ready at once, then.
                get_context(_METHOD).set_forkserver_preload([])
                with contextlib.suppress(ProcessLookupError):
                    os.kill(server, signal.SIGKILL)

    def submit(self, function: Callable[..., Any], *args: Any) -> "Future[Any]":
        """Run `function(*args, report)` in a worker; `report` sends an object back here.

        Args:
            function: importable by name, as a module's function is.
            args: what it is called with; they must survive pickling.

        Returns:
            The future of what the function returns or raises; `WorkerDied` if its process
            ended in the middle of it.
        """
        outer: Future[Any] = Future()
        with self._lock:
            self._submitted.add(outer)
            self._waiting.append((outer, function, args))
        outer.add_done_callback(self._forget)
        self._hand_out()
        return outer

    def _start_first(self, slot: "_Slot") -> None:
        """Start the first process of a slot, and have it take what waits."""
        try:
            self._start(slot)
        except Exception:  # tried again, and reported, when there is a task
            _log.debug("No worker process can be started", exc_info=True)
            slot.is_used_up = True
        with self._lock:
            self._idle.append(slot)
        self._hand_out()

    def _hand_out(self) -> None:
        while True:
            with self._lock:
                if not self._idle or not self._waiting or self._ending:
                    return
                slot, (outer, function, args) = self._idle.popleft(), self._waiting.popleft()
                if not outer.set_running_or_notify_cancel():
                    self._idle.append(slot)
                    continue
            try:
                if slot.is_used_up:
                    self._start(slot)
                # Without the lock: a worker that died while it was idle has ended it already.
                slot.run(function, args, partial(self._done, slot, outer))
            except Exception as error:  # no process can be started, for want of memory, say
                slot.is_used_up = True
                with self._lock:
                    self._idle.append(slot)
                outer.set_exception(WorkerDied(f"no process could be started: {error}"))

    def _forget(self, outer: "Future[Any]") -> None:
        with self._lock:
            self._submitted.discard(outer)

    def _done(self, slot: "_Slot", outer: "Future[Any]", inner: "Future[Any]") -> None:
        """The task of a slot has ended: free the slot, then pass on how it ended."""
        error = None if inner.cancelled() else inner.exception()
        died = inner.cancelled() or isinstance(error, BrokenProcessPool)
        how = slot.how_it_ended() if died else ""
        if slot.reader is not None:  # what was reported before the end comes before the end
            self._read(slot.reader, slot.number)
        with self._lock:
            slot.tasks += 1
            worn = self._tasks_per_process is not None and slot.tasks >= self._tasks_per_process
            if worn and not died and slot.executor is not None:
                slot.executor.shutdown(wait=False)
            slot.is_used_up = died or worn
            self._idle.append(slot)
        self._hand_out()
        if died:
            outer.set_exception(WorkerDied(how))
        elif error is not None:
            outer.set_exception(error)
        else:
            outer.set_result(inner.result())

    def _start(self, slot: "_Slot") -> None:
        reader = slot.start(self.threads, self._prepare)
        with self._lock:
            self._readers[reader] = slot.number
            if self._ending:  # meanwhile, when there was no process to kill
                slot.process.kill()

    def _listen(self) -> None:
        while True:
            ending = self._ended.is_set()
            with self._lock:
                readers = dict(self._readers)
            try:
                ready = wait(list(readers), timeout=_POLL_SECONDS)
            except OSError:  # one was closed meanwhile, by the thread that saw its worker die
                continue
            for reader in ready:
                assert isinstance(reader, Connection)
                self._read(reader, readers[reader])
            if ending and not ready:
                return

    def _read(self, reader: Connection, number: int) -> None:
        """Pass on what a worker has reported so far."""
        with self._reading:
            try:
                while not reader.closed and reader.poll():
                    self._pass_on(number, reader.recv())
            except (EOFError, OSError):  # the worker is gone
                with self._lock:
                    self._readers.pop(reader, None)
                reader.close()

    def _pass_on(self, number: int, report: Any) -> None:
        if self._on_report is None:
            return
        try:
            self._on_report(number, report)
        except (Exception, SystemExit):
            # Reports are read on all the same: a worker whose pipe is full waits.
            _log.exception("Reports of workers are no longer taken in")
            self._on_report = None


class _Slot:
    """The place of one worker: its process, and the pool of one that the process belongs to."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.executor: ProcessPoolExecutor | None = None
        self.process: Any = None
        self.reader: Connection | None = None
        self.tasks = 0
        self.is_used_up = False  # its process must be replaced before the next task

    def start(self, threads: int, prepare: Callable[[], None]) -> Connection:
        """Start a process, in place of the last one; give the end to read its reports from."""
        context = get_context(_METHOD)
        reader, writer = context.Pipe(duplex=False)
        with _signals_held_back(_LEFT_TO_THE_DRIVER):
            if _METHOD == "forkserver":
                _ensure_fork_server()
            parent = _fork_server() or os.getpid()
            arguments = writer, threads, self.number, prepare, parent, dict(os.environ)
            executor = ProcessPoolExecutor(
                1, context, initializer=_start_worker, initargs=arguments
            )
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
        assert self.executor is not None
        try:
            inner = self.executor.submit(_call, function, args)
        except BrokenProcessPool as error:  # it died while it was idle
            inner = Future()
            inner.set_exception(error)
        inner.add_done_callback(done)

    def how_it_ended(self) -> str:
        self.process.join(_JOIN_SECONDS)
        if self.process.is_alive():  # it lost touch with this process, and is of no use
            self.process.kill()
            self.process.join()
        code = self.process.exitcode
        if code == _UNKNOWN:  # the fork server is gone, and with it who knows how the worker is
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGKILL)
            return "the process that it was forked from is gone"
        if code is not None and code < 0:
            return f"killed by signal {-code}, {signal.strsignal(-code)}"
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
    if _METHOD != "forkserver":
        return None
    server: int | None = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    return server


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
