"""Live progress on standard error: a display on a terminal, plain lines elsewhere."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import TypeAlias

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fmnist_tracking.config import TrainingConfig, multiply_adds
from fmnist_tracking.results import FINISHED, EpochMetrics, TrialResult

# What a step costs beside its arithmetic, in multiply-adds an image: found by timing
# all 12 points of the coursework's grid at batch size 32 and fitting a line.
_OVERHEAD_MULTIPLY_ADDS = 1_500_000


@dataclass(frozen=True, kw_only=True)
class TrialStarted:
    """A worker has begun the trial of a point; `number` is 1 for the first."""

    number: int
    name: str


@dataclass(frozen=True, kw_only=True)
class EpochDone:
    """A trial has ended an epoch."""

    number: int
    metrics: EpochMetrics


@dataclass(frozen=True, kw_only=True)
class TrialEnded:
    """A trial has ended, well or not."""

    number: int
    result: TrialResult


Event: TypeAlias = TrialStarted | EpochDone | TrialEnded
Report: TypeAlias = Callable[[Event], None]


class _Stderr(Console):
    def on_broken_pipe(self) -> None:
        """Go on in silence: nobody reads any more, but the trials must be finished."""
        self.quiet = True


def stderr_console() -> Console:
    """A console on standard error whose reader may go away."""
    return _Stderr(stderr=True, highlight=False, markup=False)


class Progress:
    """Shows how far a set of trials has come. Call it with each event.

    Args:
        points: what is to be trained; point number 1 is the first.
        workers: how many are trained at once.
        console: to write to; by default standard error.
    """

    def __init__(
        self, points: Sequence[TrainingConfig], workers: int = 1, console: Console | None = None
    ) -> None:
        self._console = console or stderr_console()
        self._points = points
        self._workers = workers
        self._running: dict[int, tuple[str, EpochMetrics | None]] = {}
        self._ended = 0
        self._failed = 0
        self._best: TrialResult | None = None
        self._work_left = float(sum(_work(p) * p.epochs for p in points))
        self._work_of: dict[int, float] = {}
        self._work_done = 0.0
        self._seconds_done = 0.0
        self._start = time.monotonic()
        self._lock = threading.Lock()
        live = self._console.is_terminal
        self._live = Live(get_renderable=self._render, console=self._console) if live else None

    def __enter__(self) -> "Progress":
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live:
            self._live.stop()

    def __call__(self, event: Event) -> None:
        """Take in one event and show it."""
        # The live display draws in a thread of its own, with the console's lock held: so ours is
        # released before anything is printed.
        with self._lock:
            line = self._take_in(event)
        if line:
            self._console.print(line, soft_wrap=True)

    def _take_in(self, event: Event) -> str | None:
        """Update the state; give the line to print, if any."""
        if isinstance(event, TrialStarted):
            config = self._points[event.number - 1]
            self._running[event.number] = (event.name, None)
            self._work_of[event.number] = _work(config) * config.epochs
            return None if self._live else f"{self._place(event.number)} {event.name} started"
        if isinstance(event, EpochDone):
            return self._epoch_done(event)
        return self._trial_ended(event)

    def _epoch_done(self, event: EpochDone) -> str | None:
        name, _ = self._running[event.number]
        self._running[event.number] = (name, event.metrics)
        work = _work(self._points[event.number - 1])
        self._work_of[event.number] -= work
        self._work_left -= work
        self._work_done += work
        self._seconds_done += event.metrics.epoch_seconds
        if self._live:
            return None
        return (
            f"{self._place(event.number)} {name}  {self._scores(event.number)}  "
            f"{self._best_so_far()}, {self._time_left()} left"
        )

    def _trial_ended(self, event: TrialEnded) -> str:
        self._running.pop(event.number, None)
        self._work_left -= self._work_of.pop(event.number, 0.0)  # stopped early, or failed
        self._ended += 1
        result = event.result
        if result.status == FINISHED:
            if self._best is None or (result.val_accuracy or 0) > (self._best.val_accuracy or 0):
                self._best = result
            outcome = f"validation accuracy {result.val_accuracy:.4f}, epoch {result.best_epoch}"
        else:
            self._failed += 1
            outcome = f"{result.status}: {result.error}"
        return f"{self._place(event.number)} {result.name} ended: {outcome}"

    def _place(self, number: int) -> str:
        total = str(len(self._points))
        return f"[{number:>{len(total)}}/{total}]"

    def _scores(self, number: int) -> str:
        metrics = self._running[number][1]
        epochs = self._points[number - 1].epochs
        if metrics is None:
            return f"epoch 1/{epochs}, first step"
        return (
            f"epoch {metrics.epoch}/{epochs}  loss {metrics.loss:.4f}  "
            f"accuracy {metrics.accuracy:.4f}  val_loss {metrics.val_loss:.4f}  "
            f"val_accuracy {metrics.val_accuracy:.4f}"
        )

    def _best_so_far(self) -> str:
        if self._best is None:
            return "no trial ended yet"
        return f"best so far {self._best.val_accuracy:.4f} ({self._best.name})"

    def _time_left(self) -> str:
        if not self._work_done:
            return "?"
        seconds = self._work_left * self._seconds_done / self._work_done / self._workers
        return str(timedelta(seconds=round(seconds)))

    def _render(self) -> Group:
        with self._lock:
            return self._drawn()

    def _drawn(self) -> Group:
        table = Table.grid(padding=(0, 2))
        for number, (name, _) in self._running.items():
            table.add_row(self._place(number), Text(name, style="bold"), self._scores(number))
        done = self._work_done / max(self._work_done + self._work_left, 1.0)
        elapsed = timedelta(seconds=round(time.monotonic() - self._start))
        summary = (
            f"{self._ended} of {len(self._points)} points ended"
            + (f", {self._failed} failed" if self._failed else "")
            + f"  ·  {self._best_so_far()}  ·  {elapsed} gone, {self._time_left()} left"
        )
        return Group(table, ProgressBar(total=1.0, completed=done, width=60), Text(summary))


def _work(config: TrainingConfig) -> float:
    return multiply_adds(config) + _OVERHEAD_MULTIPLY_ADDS
