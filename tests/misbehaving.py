"""A search some of whose networks misbehave in their second epoch, by their hidden units."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from fmnist_tracking import runtime
from fmnist_tracking.cli import main as command_line
from fmnist_tracking.grid_search.messages import Failed, Trained, TrialTask

# Characters of a message that nobody reads to its end.
LONG = 50_000_000


class WithoutText(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text for you")


class OfTwo(Exception):
    """Cannot be made again from what pickle keeps of it."""

    def __init__(self, first: object, second: object) -> None:
        super().__init__(f"{first} and {second}")
        self.lock = threading.Lock()


def _raise(error: BaseException) -> None:
    raise error


WAYS: dict[int, Callable[[], object]] = {
    10: lambda: sys.exit("the network has had enough"),
    11: lambda: _raise(WithoutText()),
    12: lambda: time.sleep(100_000),
    13: os.abort,
    14: lambda: _raise(OfTwo(1, 2)),
    15: lambda: _raise(ValueError("begin " + "x" * LONG + " end")),
    16: lambda: _raise(KeyboardInterrupt()),
    17: lambda: os.kill(os.getpid(), signal.SIGSEGV),
    18: lambda: os._exit(3),
    19: lambda: _raise(ValueError("a lone \udcff and a \0 and \x1b[2J")),
    20: lambda: os.kill(os.getpid(), signal.SIGSTOP),
}


GOOD = (8, 9)
# What is said of those that fail.
FAILURES = {
    10: "SystemExit: the network has had enough",
    11: "WithoutText: its message cannot be made (RuntimeError)",
    12: "was ended (it had ended no epoch for 20 seconds), for the second time after epoch 1",
    13: "died (killed by SIGABRT, Aborted), for the second time after epoch ",
    14: "OfTwo: 1 and 2",
    15: "ValueError: begin xxx",
    16: "KeyboardInterrupt",
    19: "ValueError: a lone \\udcff and a \\x00 and \\x1b[2J",
}


def run_trial(task: TrialTask, report: Callable[[Any], None]) -> Trained | Failed:
    """Run a trial as a worker does, with a network that may misbehave."""
    from fmnist_tracking.grid_search import worker
    from fmnist_tracking.training.coursework_step import CourseworkStep

    whole, way = CourseworkStep.run_epoch, WAYS.get(int(task.trial.config["hidden_units"]))

    def run_epoch(*args: Any, epoch: int, **others: Any) -> Any:
        if way is not None and epoch == 2:
            way()
        return whole(*args, epoch=epoch, **others)

    CourseworkStep.run_epoch = run_epoch  # type: ignore[method-assign]
    try:
        return worker.run_trial(task, report)
    finally:
        CourseworkStep.run_epoch = whole  # type: ignore[method-assign]


def main() -> None:
    """Run the command line, with these networks in the workers."""
    runtime.own_process()
    runtime.import_tensorflow()
    from fmnist_tracking.grid_search import scheduler

    scheduler.RUN_TRIAL = f"{__name__}:{run_trial.__name__}"
    command_line()
