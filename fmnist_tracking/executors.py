"""Where trials run: worker processes that report back while they work."""

import logging
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from multiprocessing.queues import Queue
from typing import Any

from fmnist_tracking import runtime

_JOIN_SECONDS = 5
_POLL_SECONDS = 0.1

Report = Callable[[Any], None]

_log = logging.getLogger(__name__)


class WorkerPool:
    """A `concurrent.futures` pool of spawned processes with a way to report progress.

    Spawned, because a process forked from one that has loaded TensorFlow hangs. A worker
    ends by itself when the process that started it is gone. Use it as a context manager:
    left normally it waits for what was submitted, left by an exception it ends the workers
    at once.

    Args:
        workers: number of processes; the cores are shared out between them.
        on_report: called, in a thread of this process, with each object that a worker
            reports.
        prepare: run in each worker before its first task; importable by name.
    """

    def __init__(self, workers: int, on_report: Report, prepare: Callable[[], None]) -> None:
        context = get_context("spawn")
        self.workers = workers
        self._on_report = on_report
        self._reports: Queue[Any] = context.Queue()
        threads = None if workers == 1 else max(1, (os.cpu_count() or 1) // workers)
        self._pool = ProcessPoolExecutor(
            workers, context, initializer=_start_worker, initargs=(self._reports, threads, prepare)
        )
        self._ended = threading.Event()
        self._listener = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> "WorkerPool":
        self._listener.start()
        # Ctrl-C reaches every process of a terminal, and the driver decides what becomes of trials:
        # so the workers start, and stay, with that signal blocked.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            for _ in range(self.workers):  # the pool starts a process only when it has a task
                self._pool.submit(_ready)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.kill()
        self.close()

    def close(self) -> None:
        """Wait for what was submitted, end the workers, and pass on all that they reported."""
        self._pool.shutdown()
        self._ended.set()
        self._listener.join(_JOIN_SECONDS)

    def kill(self) -> None:
        """End the workers at once, whatever they are doing."""
        # Python 3.14 has kill_workers() for this.
        for process in list((self._pool._processes or {}).values()):
            process.kill()
        self._pool.shutdown(cancel_futures=True)

    def submit(self, function: Callable[..., Any], *args: Any) -> "Future[Any]":
        """Run `function(*args, report)` in a worker; `report` sends an object back here.

        Args:
            function: importable by name, as a module's function is.
            args: what it is called with; they must survive pickling.

        Returns:
            The future of what the function returns or raises.
        """
        return self._pool.submit(_call, function, args)

    def _listen(self) -> None:
        # Ended by an event of this process, not by a word in the queue: a worker that was killed
        # while it wrote holds the queue's lock for ever.
        on_report: Report | None = self._on_report
        while True:
            try:
                report = self._reports.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                if self._ended.is_set():
                    return
                continue
            if on_report is not None:
                try:
                    on_report(report)
                except (Exception, SystemExit):
                    # Reports are read on all the same: a worker whose queue is full cannot end.
                    _log.exception("Progress is no longer shown")
                    on_report = None


_reports: "Queue[Any] | queue.Queue[Any]" = queue.Queue()


def _ready() -> None:
    """Nothing: a first task, for which the pool starts a process."""


def _start_worker(reports: "Queue[Any]", threads: int | None, prepare: Callable[[], None]) -> None:
    global _reports
    _reports = reports
    # Standard output belongs to the driver's results, whatever a library prints here.
    sys.stdout.flush()
    os.dup2(2, 1)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    runtime.load_tensorflow(threads)
    prepare()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _call(function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    return function(*args, _reports.put)
