"""What a worker's process does: it runs the tasks that come through a channel."""

import contextlib
import os
import pickle
import pkgutil
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any

from fmnist_tracking.errors import first_line, named, shortened
from fmnist_tracking.workers.fork_server import LEFT_TO_THE_DRIVER
from fmnist_tracking.workers.pool import Function, TaskFailed

# What a worker sends: any number of reports, then one of the others.
REPORT, RESULT, ERROR = "report", "result", "error"
# Or, in place of all that, that the process cannot run tasks.
UNFIT = "unfit"
# Of an error that is sent as it is, with its traceback, in bytes.
_LARGEST_ERROR = 131_072


def serve(channel: Connection, prepare: Callable[[], None], environment: dict[str, str]) -> None:
    """Run the tasks that come through a channel, in a worker's process."""
    # Those of a fork server that the program itself has started are not blocked.
    signal.pthread_sigmask(signal.SIG_BLOCK, LEFT_TO_THE_DRIVER)
    # Standard output belongs to the driver's results, whatever a library prints here.
    sys.stdout.flush()
    os.dup2(2, 1)
    # The fork server has that of its start; what TensorFlow read at its import stays.
    os.environ.clear()
    os.environ.update(environment)
    try:
        threading.Thread(target=_end_with_the_driver, daemon=True).start()
        with contextlib.suppress(OSError):  # closed
            os.dup2(2, 1)  # what a task prints is no result of the driver's
        prepare()
    except BaseException as error:
        channel.send((UNFIT, named(error)))
        os._exit(1)
    with contextlib.suppress(EOFError, ConnectionError):  # the driver is gone
        while True:
            function, args = channel.recv()
            _send_outcome(channel, function, args)
    os._exit(1)


def _send_outcome(channel: Connection, function: Function, args: tuple[Any, ...]) -> None:
    process = os.getpid()

    def send(content: memoryview) -> None:
        if os.getpid() != process:  # a copy that the task has made of this process, by os.fork
            os._exit(1)
        channel.send_bytes(content)

    try:
        called = pkgutil.resolve_name(function) if isinstance(function, str) else function
        result = called(*args, lambda content: send(ForkingPickler.dumps((REPORT, content))))
        content = _pickled(RESULT, result)
    except BaseException as error:
        content = _pickled_error(error)
    send(content)


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
            content = ForkingPickler.dumps((ERROR, (error, trace)))
            if len(content) <= _LARGEST_ERROR:
                str(pickle.loads(content)[1][0])
                return content
    return ForkingPickler.dumps((ERROR, (TaskFailed(named(error)), trace)))


def _end_with_the_driver() -> None:
    driver = parent_process()
    assert driver is not None
    driver.join()
    os._exit(1)
