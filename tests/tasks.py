"""Tasks for worker processes, which import them from here; and pools that do them."""

import logging
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import wait
from pathlib import Path
from typing import Any

from fmnist_tracking.workers import LocalWorker, OnReport, WorkerPool
from processes import is_alive, wait_for


def report_twice(number: int, report: Callable[[Any], None]) -> tuple[int, int]:
    report(("begun", number))
    report(("done", number))
    return number, os.getpid()


def take_and_report(megabytes: int, report: Callable[[Any], None]) -> None:
    """Take memory, and report twice, with a second between."""
    taken = bytearray(os.urandom(1024)) * (1024 * megabytes)
    for _ in range(2):
        report(os.getpid())
        time.sleep(1.2)
    time.sleep(600 + len(taken[:0]))


def sleep_long(report: Callable[[Any], None]) -> None:
    report(os.getpid())
    time.sleep(600)


def print_something(report: Callable[[Any], None]) -> None:
    print("from a library")


def warn_and_log(text: str, report: Callable[[Any], None]) -> None:
    warnings.warn(text, stacklevel=1)
    logging.getLogger("a.library").warning(text)


def what_is_loaded(report: Callable[[Any], None]) -> None:
    report("fmnist_tracking.training.loop" in sys.modules)


def own_pid(report: Callable[[Any], None]) -> int:
    return os.getpid()


def wait_for_file(path: Path, report: Callable[[Any], None]) -> int:
    """End when a file is there."""
    report(os.getpid())
    wait_for(path.exists)
    return os.getpid()


def fail(report: Callable[[Any], None]) -> None:
    raise ValueError("of the task")


class WithoutText(Exception):
    def __str__(self) -> str:
        raise RuntimeError


class OfTwo(Exception):
    """Cannot be made again from what pickle keeps of it."""

    def __init__(self, first: object, second: object) -> None:
        super().__init__(f"{first} and {second}")


def fail_with(
    kind: type[BaseException], args: tuple[Any, ...], report: Callable[[Any], None]
) -> None:
    raise kind(*((1, 2) if kind is OfTwo else args))


class ReadableElsewhere:
    """Cannot be made again in one process."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        if os.getpid() == pid:
            raise RuntimeError("not here")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.pid,)


def report_what_only_it_can_read(pid: int, report: Callable[[Any], None]) -> None:
    report(ReadableElsewhere(pid))
    time.sleep(600)


def exit_and_leave_a_child(status: int, report: Callable[[Any], None]) -> None:
    child = os.fork()
    if child == 0:
        time.sleep(600)
    report(child)
    os._exit(status)


def fork_and_go_on(seconds: float, report: Callable[[Any], None]) -> str:
    """Go on in two processes, of which one is a copy that is late."""
    child = os.fork()
    if child == 0:
        time.sleep(seconds)
        report("from the copy")
        return "of the copy"
    report(child)
    return "of the task"


def kill_itself(number: int, report: Callable[[Any], None]) -> None:
    os.kill(os.getpid(), number)
    time.sleep(600)


def exit_with_status(status: int, report: Callable[[Any], None]) -> None:
    report("about to end")
    os._exit(status)


def report_a_lot(report: Callable[[Any], None]) -> None:
    for number in range(2000):  # more than the pipe between the processes holds
        report("x" * 500 + str(number))


def return_a_lock(report: Callable[[Any], None]) -> Any:
    return threading.Lock()


def prepare_nothing() -> None:
    pass


def cannot_be_prepared() -> None:
    raise RuntimeError("can't start new thread")


def pool_of(workers: int, on_report: OnReport, tasks_per_process: int | None = None) -> WorkerPool:
    return WorkerPool(
        [LocalWorker(prepare_nothing, tasks_per_process) for _ in range(workers)], on_report
    )


class Reports:
    """What workers reported: the worker's number and the report."""

    def __init__(self) -> None:
        self.all: list[tuple[int, Any]] = []

    def __call__(self, worker: int, report: Any) -> None:
        self.all.append((worker, report))

    def first(self) -> Any:
        """The first report, once there is one."""
        wait_for(lambda: bool(self.all))
        return self.all[0][1]


def two_die_while_a_report_is_taken_in() -> None:
    taking_in = threading.Event()

    def slowly(worker: int, report: Any) -> None:
        taking_in.set()
        time.sleep(2)

    with pool_of(2, slowly) as pool:
        idle = pool.submit(own_pid).result()
        dying = pool.submit(exit_with_status, 3)
        taking_in.wait()
        os.kill(idle, signal.SIGKILL)
        wait_for(lambda: not is_alive(idle))
        wait([dying, pool.submit(own_pid)])
        print(repr(dying.exception()))
