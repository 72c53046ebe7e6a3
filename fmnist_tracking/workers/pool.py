"""Hand tasks to workers, one thread for each, and pass on what the workers report."""

import contextlib
import logging
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Protocol, TypeAlias

_JOIN_SECONDS = 5.0

OnReport: TypeAlias = Callable[[int, Any], None]
# A function that is importable by name, or its name as "package.module:function": so the process
# that hands it out need not import what it uses.
Function: TypeAlias = Callable[..., Any] | str
_Task: TypeAlias = tuple[Future[Any], Function, tuple[Any, ...]]

_log = logging.getLogger(__name__)


class WorkerDied(Exception):
    """A worker ended in the middle of its task; the message says how.

    Attributes:
        what: happened, in words.
    """

    what = "the worker process died"


class NoWorker(WorkerDied):
    """No worker could be started for a task; the message says what the system said."""

    what = "no worker process could be started"


class TimedOut(WorkerDied):
    """A worker was ended because its task took too long; the message says how long."""

    what = "the worker process was ended"


class TaskFailed(Exception):
    """What a task raised and could not be sent as it is; the message has its type and text."""


@dataclass(frozen=True, kw_only=True)
class Silence:
    """A second in which a worker that runs a task has reported nothing."""

    process: int  # its id
    is_stopped: bool  # as by SIGSTOP


# Called with a task's arguments; the exception that it returns ends the task, and its worker.
OnSilence: TypeAlias = Callable[[tuple[Any, ...], Silence], TimedOut | None]


class Worker(Protocol):
    """Runs one task after another, somewhere else: in a process of this machine, for instance.

    One thread calls `start` and `run`; any may call `kill`.
    """

    def start(self) -> None:
        """Get ready for a task, in place of a worker that died; do nothing if it is ready.

        Raises:
            NoWorker: it cannot be started.
        """

    def run(self, function: Function, args: tuple[Any, ...]) -> Generator[Any, None, Any]:
        """Run `function(*args, report)`; yield what it reports, and return what it returns.

        A `Silence` is yielded for each second without a report. An exception that is thrown in
        there ends the worker.

        Raises:
            WorkerDied: the worker ended first.
            Exception: what the function raises.
            TaskFailed: it raised what is no `Exception`, or cannot be sent.
        """

    def kill(self) -> None:
        """End the worker at once, whatever it is doing; one that is being started, too."""


class WorkerPool:
    """Workers that each may die alone, as Python's own process pool does not allow.

    Each has a thread here, which waits for what it reports and for its result, so that they arrive
    in the order in which they were sent. Use the pool as a context manager: left normally it waits
    for what was submitted, left by an exception it ends the workers at once.

    Args:
        workers: where tasks run; their starting begins when the pool is entered.
        on_report: called, in a thread of the pool, with a worker's number, 0 for the first, and
            an object that it reports.
        on_silence: called in such a thread too, for each second without a report.
    """

    def __init__(
        self,
        workers: Sequence[Worker],
        on_report: OnReport,
        on_silence: OnSilence = lambda *_: None,
    ) -> None:
        self._workers = workers
        self._on_report: OnReport | None = on_report
        self._on_silence = on_silence
        self._tasks: SimpleQueue[_Task | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._pending: set[Future[Any]] = set()
        self._is_ending = False
        self._threads = [
            threading.Thread(target=self._serve, args=(number, worker), daemon=True)
            for number, worker in enumerate(workers)
        ]

    def __enter__(self) -> "WorkerPool":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.kill()
        with self._lock:
            pending = [] if self._is_ending else list(self._pending)
        wait(pending)
        self.kill()
        for thread in self._threads:
            thread.join(_JOIN_SECONDS)
        # What is reported to and this pool refer to each other: the workers' pipes would stay open
        # until garbage is collected.
        self._on_report, self._on_silence = None, lambda *_: None

    def submit(self, function: Function, *args: Any) -> Future[Any]:
        """Run `function(*args, report)` in a worker; `report` sends an object back here.

        Args:
            function: of a module, or its name, such as "package.module:function".
            args: what it is called with; they must survive pickling.

        Returns:
            The future of what the function returns or raises; `WorkerDied` if its worker ended in
            the middle of it, `NoWorker` if none could be started; cancelled in a pool that ends.
        """
        future: Future[Any] = Future()
        with self._lock:
            if not self._is_ending:
                self._pending.add(future)
                self._tasks.put((future, function, args))
                return future
        future.cancel()
        return future

    def kill(self) -> None:
        """End the workers at once, whatever they are doing; what waits is cancelled."""
        waiting = []
        with self._lock:
            self._is_ending = True
            with contextlib.suppress(Empty):
                while True:
                    waiting.append(self._tasks.get_nowait())
            for _ in self._threads:
                self._tasks.put(None)
        for worker in self._workers:
            worker.kill()
        for task in filter(None, waiting):
            task[0].cancel()

    def _serve(self, number: int, worker: Worker) -> None:
        """Run tasks in one worker until the pool ends."""
        with contextlib.suppress(NoWorker):  # tried again, and told, when there is a task
            worker.start()
        while (task := self._tasks.get()) is not None:
            future, function, args = task
            if future.set_running_or_notify_cancel():
                try:
                    result = self._run(number, worker, function, args)
                except BaseException as error:
                    self._forget(future)
                    future.set_exception(error)
                else:
                    self._forget(future)
                    future.set_result(result)

    def _run(self, number: int, worker: Worker, function: Function, args: tuple[Any, ...]) -> Any:
        worker.start()
        running = worker.run(function, args)
        while True:
            try:
                report = next(running)
            except StopIteration as end:
                return end.value
            if not isinstance(report, Silence):
                self._pass_on(number, report)
            elif (ended := self._ending(worker, args, report)) is not None:
                running.throw(ended)

    def _ending(self, worker: Worker, args: tuple[Any, ...], silence: Silence) -> TimedOut | None:
        try:
            return self._on_silence(args, silence)
        except BaseException:
            worker.kill()  # else what it sends would be taken for the next task's
            raise

    def _pass_on(self, number: int, report: Any) -> None:
        on_report = self._on_report
        if on_report is None:
            return
        try:
            on_report(number, report)
        except (Exception, SystemExit):
            # Reports are read on all the same: a worker whose pipe is full waits.
            _log.exception("Reports of workers are no longer taken in")
            self._on_report = None

    def _forget(self, future: Future[Any]) -> None:
        with self._lock:
            self._pending.discard(future)
