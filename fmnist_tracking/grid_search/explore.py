"""Have every point of a grid tried, so many at once, in the grid's order."""

import math
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

from fmnist_tracking.grid_search.plan import PlannedTrial
from fmnist_tracking.results import TrialScore


class TimeIsUp(Exception):
    """The time that a search was given is over, and trials are left."""


def explore(
    trials: Iterable[PlannedTrial | None],
    submit: "Callable[[PlannedTrial], Future[TrialScore]]",
    slots: Callable[[], int],
    stop: "Future[None]",
    seconds: float = math.inf,
) -> None:
    """Submit every trial, and wait until all have ended.

    The order is that of KerasTuner's grid search; see `networks.space`.

    Args:
        trials: of the grid; None stands where the next is not known before one has ended.
        submit: starts a trial; the future ends with how it came out. One that was trained already
            ends at once, and holds no slot.
        slots: returns how many trials may run at once.
        stop: ends the search when it ends with an exception, whatever is running.
        seconds: after its first trial that has not finished before, when its time is over.

    Raises:
        TimeIsUp: trials are running then, or have not begun.
    """
    running: set[Future[TrialScore]] = set()
    until = math.inf
    for trial in trials:
        if trial is None:
            running = _wait(running, stop, until)
            continue
        while len(running) >= slots():
            running = _wait(running, stop, until)
        if time.monotonic() >= until and trial.finished is None:
            raise TimeIsUp
        if trial.finished is None and until == math.inf:
            until = time.monotonic() + seconds
        future = submit(trial)
        if not future.done():
            running.add(future)
        else:
            future.result()
    while running:
        running = _wait(running, stop, until)


def _wait(
    running: "set[Future[TrialScore]]", stop: "Future[None]", until: float
) -> "set[Future[TrialScore]]":
    """Wait until a trial ends, and return those that have not."""
    watched: list[Future[Any]] = [*running, stop]
    left = None if until == math.inf else max(0.0, until - time.monotonic())
    done, _ = wait(watched, timeout=left, return_when=FIRST_COMPLETED)
    if not done:
        raise TimeIsUp
    if stop in done:
        stop.result()
    for future in running & done:
        future.result()  # raises what was no trial's own error
    return running - done
