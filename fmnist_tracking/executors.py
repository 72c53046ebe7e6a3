"""Where trials run: worker processes that report back while they work."""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import wait as wait_for_futures
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any

from fmnist_tracking import processes, runtime
from fmnist_tracking.processes import JOIN_SECONDS, WorkerProcess

_POLL_SECONDS = 0.1

OnReport = Callable[[int, Any], None]

_log = logging.getLogger(__name__)


class WorkerDied(Exception):
    """A worker process ended in the middle of its task; the message says how.

    Attributes:
        what: happened, in words.
    """

    what = "the worker process died"


class NoWorker(WorkerDied):
    """No process could be started for a task; the message says what the system said."""

    what = "no worker process could be started"


class WorkerPool:
    """Processes behind `concurrent.futures`, each of which may die alone.

    Python's own process pool gives up all its processes when one of them dies. So each
    worker here is such a pool of one process, with a pipe of its own for reports, and is
    replaced when its process has died; the others never notice.

    On Linux they are forked from a process that Python starts for it, the fork server, which
    has imported what they need and computed nothing: to fork one that has begun to compute
    with TensorFlow would make them hang. Elsewhere, and where the folder for temporary files
    has too long a name for the fork server's socket, they are started anew and import it
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
        self._slots = [WorkerProcess(number) for number in range(workers)]
        self._idle: deque[WorkerProcess] = deque()
        self._waiting: deque[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]] = deque()
        self._submitted: set[Future[Any]] = set()
        self._readers: dict[Connection, int] = {}
        self._ending = False
        self._ended = threading.Event()
        self._woken, self._wake = Pipe(duplex=False)  # of the listener
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._starters = [
            threading.Thread(target=self._start_first, args=(slot,), daemon=True)
            for slot in self._slots
        ]

    def __enter__(self) -> "WorkerPool":
        self._listener.start()
        processes.start_helpers(self._preload)
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
            starter.join(JOIN_SECONDS)
        for slot in self._slots:
            if slot.executor is not None:
                slot.process.kill()  # it has nothing left to do; by itself it takes a second to end
                slot.executor.shutdown()
        self._ended.set()
        self._wake.send(None)
        self._listener.join(JOIN_SECONDS)

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
            processes.end_fork_server()

    def submit(self, function: Callable[..., Any], *args: Any) -> "Future[Any]":
        """Run `function(*args, report)` in a worker; `report` sends an object back here.

        Args:
            function: importable by name, as a module's function is.
            args: what it is called with; they must survive pickling.

        Returns:
            The future of what the function returns or raises; `WorkerDied` if its process
            ended in the middle of it, or none could be started.
        """
        outer: Future[Any] = Future()
        with self._lock:
            self._submitted.add(outer)
            self._waiting.append((outer, function, args))
        outer.add_done_callback(self._forget)
        self._hand_out()
        return outer

    def _start_first(self, slot: "WorkerProcess") -> None:
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
            except Exception as error:
                slot.is_used_up = True
                with self._lock:
                    self._idle.append(slot)
                outer.set_exception(NoWorker(processes.why_not_started(error)))

    def _forget(self, outer: "Future[Any]") -> None:
        with self._lock:
            self._submitted.discard(outer)

    def _done(self, slot: "WorkerProcess", outer: "Future[Any]", inner: "Future[Any]") -> None:
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

    def _start(self, slot: "WorkerProcess") -> None:
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
                ready = wait([*readers, self._woken], timeout=_POLL_SECONDS)
            except OSError:  # one was closed meanwhile, by the thread that saw its worker die
                continue
            told = [reader for reader in readers if reader in ready]
            for reader in told:
                self._read(reader, readers[reader])
            if ending and not told:
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
