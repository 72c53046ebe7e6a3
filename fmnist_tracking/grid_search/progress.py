"""Live progress: a table on a terminal and in a notebook, plain lines elsewhere."""

import contextlib
import math
import threading
from collections.abc import Callable, Sequence
from datetime import timedelta

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from fmnist_tracking import clock, runtime
from fmnist_tracking.config import TrainingConfig
from fmnist_tracking.console import notebook, stderr_console
from fmnist_tracking.grid_search.messages import (
    EpochEnded,
    Event,
    TrialEnded,
    TrialReused,
    TrialStarted,
    WorkerLost,
    WorkerSilent,
)
from fmnist_tracking.grid_search.notebook_table import NotebookTable
from fmnist_tracking.grid_search.time_estimate import TimeEstimator, time_left
from fmnist_tracking.objective import VAL_ACCURACY
from fmnist_tracking.redact import LONGEST_LINE, printable
from fmnist_tracking.results import EpochMetrics, TrialScore

_BAR_WIDTH = 40
_HEADINGS = ("worker", "point", "trial", "epoch", "loss", "val_loss", "val_acc", "left")
# With more points to come than this, the time left is not worked out at every event.
_MANY = 500
# Where there is no terminal: between two lines on trials that go on.
INTERVAL_VARIABLE = "FMNIST_PROGRESS_SECONDS"
_INTERVAL_SECONDS = 1.0
# A worker that ends no epoch is told of after so many times as long as one takes, but not before so
# many seconds; and where none was measured, after that many.
_TOO_LONG, _LEAST_SILENCE_SECONDS, _UNKNOWN_SILENCE_SECONDS = 5, 10.0, 600.0


class _Running:
    """A trial that a worker is busy with."""

    def __init__(self, worker: int, epochs: int, now: float) -> None:
        self.worker = worker
        self.before = epochs  # trained before it was cut off
        self.done = epochs
        self.metrics: EpochMetrics | None = None
        self.started = now
        self.last = now


class Progress:
    """Shows how far a set of trials has come. Call it with each event.

    Without a terminal, it prints a line when a trial ends, and on trials that go on at most one a
    second, or as FMNIST_PROGRESS_SECONDS says.

    Args:
        points: what is to be trained; point number 1 is the first.
        names: of the points, for people.
        workers: how many are trained at once.
        total: how many points there will be, where `points` are only the first; None for these.
        console: to write to; by default standard error.
        clock: gives seconds.
        quiet: show nothing.

    Raises:
        ConfigError: the environment names no number of seconds.
    """

    def __init__(
        self,
        points: Sequence[TrainingConfig],
        names: Sequence[str],
        workers: int = 1,
        console: Console | None = None,
        clock: Callable[[], float] = clock.now,
        *,
        total: int | None = None,
        quiet: bool = False,
    ) -> None:
        self._console = Console(quiet=True) if quiet else console or stderr_console()
        self._points = list(points)
        self._total = len(points) if total is None else total
        self._objective = points[0].compared_by if points else VAL_ACCURACY
        self._names = list(names)
        self._workers = workers
        self._clock = clock
        self._running: dict[int, _Running] = {}
        self._waiting = dict.fromkeys(range(1, len(points) + 1))
        self._told_silent: dict[int, float] = {}  # seconds, by the point's number
        self._ended = self._failed = self._reused = self._diverged = 0
        self._best: tuple[float, str] | None = None
        self._pace = TimeEstimator()
        self._seconds_left: float | None = None
        self._estimated_at = self._start = clock()
        self._over = False
        self._lock = threading.Lock()
        self._interval = runtime.seconds_of(INTERVAL_VARIABLE, _INTERVAL_SECONDS)
        self._next_line = -math.inf  # when a trial that goes on may have one
        self._live: Live | NotebookTable | None = None
        if notebook() and not quiet and console is None:
            self._live = NotebookTable(self._render)
        elif self._console.is_terminal and not self._console.is_dumb_terminal:
            self._live = Live(get_renderable=self._render, console=self._console)

    def __enter__(self) -> "Progress":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._over = True
        is_interrupted = kind is not None and issubclass(kind, KeyboardInterrupt)
        if is_interrupted and isinstance(self._live, NotebookTable):
            self._live.add("Interrupted. Run the cell again, without fresh=True, to go on.")
        if self._live:
            with contextlib.suppress(OSError):
                self._live.refresh()
                self._live.stop()

    def __call__(self, event: Event, worker: int = 0) -> None:
        """Take in one event, of a worker where it comes from one, and show it."""
        # The live display draws in a thread of its own, with the console's lock held: so ours is
        # released before anything is printed.
        with self._lock:
            line = self._take_in(event, worker)
            self._estimate()
            if line and "{left}" in line:
                line = line.replace("{left}", self._time_left())
        if line:
            self.echo(line)

    def echo(self, line: str) -> None:
        """Print a line for a person, above the table; in a notebook below it."""
        line = printable(line, LONGEST_LINE)
        if isinstance(self._live, NotebookTable):
            self._live.add(line)
            return
        with contextlib.suppress(OSError):  # a terminal that is gone
            self._console.print(line, soft_wrap=True)

    def expect(self, config: TrainingConfig, name: str) -> None:
        """Add a point, which was not known at the beginning."""
        with self._lock:
            self._points.append(config)
            self._names.append(name)
            self._waiting[len(self._points)] = None
            self._objective = config.compared_by

    def expect_fewer(self) -> None:
        """Take in that there will be one point less."""
        with self._lock:
            self._total -= 1

    def _take_in(self, event: Event, worker: int) -> str | None:
        """Update the state; give the line to print, if any."""
        place = f"{self._place(event.number)} {self._names[event.number - 1]}"
        if isinstance(event, TrialStarted):
            self._waiting.pop(event.number, None)
            self._running[event.number] = _Running(worker, len(event.epochs), self._clock())
            done, epochs = len(event.epochs), self._points[event.number - 1].epochs
            if done >= epochs:
                return f"{place} was trained to epoch {done} before; its result is recorded now"
            if done:
                return f"{place} goes on after epoch {done}"
            return f"{place} started" if self._may_tell() else None
        if isinstance(event, EpochEnded):
            return self._epoch_ended(event, place)
        if isinstance(event, TrialReused):
            self._waiting.pop(event.number, None)
            self._ended += 1
            self._reused += 1
            if event.score.diverged:
                self._diverged += 1
                return f"{place} is trained already: it diverged, run {event.run_id[:8]}"
            self._compare(event.score, event.number)
            scored = "" if event.score.value is None else f"{event.score.value:.4f}"
            label, run = self._objective.label, event.run_id[:8]
            return f"{place} is trained already: {label} {scored}, run {run}"
        if isinstance(event, WorkerLost):
            self._running.pop(event.number, None)
            return f"{place}: {event.how}; it goes on in a new one"
        if isinstance(event, WorkerSilent):
            return self._silent(event, place)
        return self._trial_ended(event, place)

    def _silent(self, event: WorkerSilent, place: str) -> str | None:
        """Return a line on a worker that takes far too long; later ones each after twice as long.

        A trial's first epoch may be expected to take as long as all that it takes beside its work.
        """
        usual = math.inf
        running, config = self._running.get(event.number), self._points[event.number - 1]
        if self._pace.is_known:
            begun = running is not None and running.done > running.before
            usual = self._pace.seconds(config, 1, begun=begun)
        told = self._told_silent.get(event.number, 0.0)
        patience = min(max(_TOO_LONG * usual, _LEAST_SILENCE_SECONDS), _UNKNOWN_SILENCE_SECONDS)
        if event.seconds < max(patience, 2 * told if told <= event.seconds else 0.0):
            return None
        self._told_silent[event.number] = event.seconds
        expected = "" if usual == math.inf else f", where {_span(math.ceil(usual))} is usual"
        state, process = (" stopped (SIGSTOP)" if event.is_stopped else ""), event.process
        lets_on = f"`kill -CONT {process}` lets it go on; " if event.is_stopped else ""
        return (
            f"{place} has ended no epoch for {_span(event.seconds)}{expected}: its worker is the"
            f"{state} process {process}. {lets_on}`kill -9 {process}` has the trial go on in a new "
            "one, as a trial timeout does by itself."
        )

    def _epoch_ended(self, event: EpochEnded, place: str) -> str | None:
        running, config = self._running[event.number], self._points[event.number - 1]
        running.metrics, running.done = event.metrics, event.metrics.epoch
        running.last = self._clock()
        first_here = 1 if event.metrics.epoch == running.before + 1 else event.metrics.epoch
        self._pace.epoch(config, first_here, event.metrics.epoch_seconds)
        if not self._may_tell():
            return None
        metrics = event.metrics
        validated = ""
        if metrics.val_loss is not None:
            validated = (
                f"val_loss {metrics.val_loss:.4f}  val_accuracy {metrics.val_accuracy:.4f}  "
                f"{self._best_so_far()}, "
            )
        return (
            f"{place}  epoch {metrics.epoch}/{config.epochs}  loss {metrics.loss:.4f}  "
            f"accuracy {metrics.accuracy:.4f}  {validated}{{left}} left"
        )

    def _may_tell(self) -> bool:
        """Return whether it is time for a line on a trial that goes on."""
        now = self._clock()
        if self._live or now < self._next_line:
            return False
        self._next_line = now + self._interval
        return True

    def _trial_ended(self, event: TrialEnded, place: str) -> str:
        running = self._running.pop(event.number, None)
        self._waiting.pop(event.number, None)
        self._ended += 1
        score = event.score
        if running is not None and score.error is None and running.done > running.before:
            self._pace.trial(
                self._points[event.number - 1],
                running.done - running.before,
                # By its worker's clock: that one may have been stopped.
                event.seconds or self._clock() - running.started,
            )
        if score.error is not None:
            self._failed += 1
            return f"{place} ended: FAILED: {score.error}"
        if score.diverged:
            self._diverged += 1
            return f"{place} ended: diverged: the loss of epoch {event.diverged_in} is not finite"
        if score.value is None:  # a final training
            return f"{place} ended, epoch {score.best_epoch}"
        self._compare(score, event.number)
        scored = f"{self._objective.label} {score.value:.4f}"
        return f"{place} ended: {scored}, epoch {score.best_epoch}"

    def _compare(self, score: TrialScore, number: int) -> None:
        if score.value is None:
            return
        goodness = self._objective.goodness
        if self._best is None or goodness(score.value) > goodness(self._best[0]):
            self._best = (score.value, self._names[number - 1])

    def _place(self, number: int) -> str:
        total = str(self._total)
        return f"[{number:>{len(total)}}/{total}]"

    def _best_so_far(self) -> str:
        if self._best is None:
            is_final = self._ended > self._failed + self._diverged
            return "no validation images" if is_final else "no trial ended yet"
        usual = self._objective == VAL_ACCURACY
        what = "" if usual else f"{self._objective.label} "
        return f"best so far {what}{self._best[0]:.4f} ({self._best[1]})"

    def _estimate(self) -> None:
        """Estimate anew how long it will take."""
        now = self._clock()
        often = len(self._waiting) > _MANY and now - self._estimated_at < 1.0
        if not self._pace.is_known or (often and self._seconds_left is not None):
            return
        self._estimated_at = now
        running = [
            max(0.0, self._trial_left(number) - (self._estimated_at - trial.last))
            for number, trial in self._running.items()
        ]
        waiting = [
            self._pace.seconds(config, config.epochs)
            for config in (self._points[number - 1] for number in self._waiting)
        ]
        waiting += [self._usual_seconds()] * (self._total - len(self._points))
        self._seconds_left = time_left(running, waiting, self._workers)

    def _usual_seconds(self) -> float:
        """Estimate the seconds of a trial of which nothing is known."""
        known = [self._pace.seconds(config, config.epochs) for config in self._points]
        return sum(known) / max(1, len(known))

    def _trial_left(self, number: int) -> float:
        trial, config = self._running[number], self._points[number - 1]
        return self._pace.seconds(
            config, config.epochs - trial.done, begun=trial.done > trial.before
        )

    @property
    def seconds_left(self) -> float | None:
        """Return the seconds until all trials have ended, None while nothing was measured."""
        if self._seconds_left is None:
            return None
        return max(0.0, self._seconds_left - (self._clock() - self._estimated_at))

    def _time_left(self) -> str:
        seconds = self.seconds_left
        return "?" if seconds is None else _span(seconds)

    def _render(self) -> Group:
        with self._lock:
            elapsed = _span(self._clock() - self._start)
            counts = [f"{self._ended} of {self._total} points ended"]
            counts += [f"{self._reused} reused"] if self._reused else []
            counts += [f"{self._failed} failed"] if self._failed else []
            counts += [f"{self._diverged} diverged"] if self._diverged else []
            running = self._running.items()
            shares = (trial.done / self._points[number - 1].epochs for number, trial in running)
            completed = self._ended + sum(shares)
            bar = ProgressBar(total=max(1, self._total), completed=completed, width=_BAR_WIDTH)
            clock = Table.grid(padding=(0, 2))
            left = "" if self._over else f", {self._time_left()} left"
            clock.add_row(bar, f"{elapsed} gone{left}")
            workers = [] if self._over else [self._worker_table()]
            return Group(*workers, clock, f"{', '.join(counts)}  ·  {self._best_so_far()}")

    def _worker_table(self) -> Table:
        table = Table(box=None, pad_edge=False, header_style="dim")
        for heading in _HEADINGS:
            table.add_column(heading, no_wrap=True)
        busy = {trial.worker: number for number, trial in self._running.items()}
        for worker in range(self._workers):
            table.add_row(str(worker + 1), *self._cells(busy.get(worker)))
        return table

    def _cells(self, number: int | None) -> list[str]:
        if number is None:
            return ["", "waiting" if self._waiting else "idle"]
        trial, config = self._running[number], self._points[number - 1]
        cells = [
            self._place(number),
            self._names[number - 1],
            f"{trial.done}/{config.epochs}",
        ]
        if trial.metrics is not None:
            left = max(0.0, self._trial_left(number) - (self._clock() - trial.last))
            cells += [
                *(
                    "" if value is None else f"{value:.4f}"
                    for value in (
                        trial.metrics.loss,
                        trial.metrics.val_loss,
                        trial.metrics.val_accuracy,
                    )
                ),
                _span(left),
            ]
        return cells


def _span(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
