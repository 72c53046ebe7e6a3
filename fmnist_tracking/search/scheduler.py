"""Trials in worker processes, kept in MLflow: started, retried, resumed, ended."""

import logging
import time
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any

from fmnist_tracking.results import TrialResult, TrialScore
from fmnist_tracking.search.events import (
    EpochEnded,
    Event,
    TrialEnded,
    TrialReused,
    TrialStarted,
    WorkerLost,
)
from fmnist_tracking.search.progress import Progress
from fmnist_tracking.search.trial_logger import TrialLogger
from fmnist_tracking.search.worker import Failed, Trained, TrialTask, run_trial
from fmnist_tracking.training import checkpoints
from fmnist_tracking.workers import NoWorker, WorkerDied, WorkerPool

if TYPE_CHECKING:
    from fmnist_tracking.tracking import TrialInfo, UnfinishedTrial

_log = logging.getLogger(__name__)


class TrialScheduler:
    """Runs trials in a pool of workers, and sees to it that each is recorded.

    A trial whose worker process dies goes on from its last checkpoint in a new one. Only if
    the process dies again before another epoch was trained is the trial given up as FAILED:
    then it is the trial that kills it.

    Args:
        pool: where they run; its reports must reach `on_report`.
        keeper: of their runs.
        progress: shows how far they have come.
    """

    def __init__(self, pool: WorkerPool, keeper: TrialLogger, progress: Progress) -> None:
        self._pool = pool
        self._keeper = keeper
        self._progress = progress
        self._died_after: dict[int, int] = {}
        self._reached: dict[int, int] = {}
        self._recorded: dict[int, Future[None]] = {}
        self.stopping = False

    def on_report(self, worker: int, event: TrialStarted | EpochEnded) -> None:
        """Take in what a worker reports."""
        if isinstance(event, TrialStarted):
            self._keeper.link_data(event.number, event.data)
            self._keeper.log(event.number, event.epochs)
        else:
            self._reached[event.number] = event.metrics.epoch
            self._keeper.log(event.number, [event.metrics])
        self._show(event, worker)

    def submit(
        self, task: TrialTask, facts: "TrialInfo", open_trial: "UnfinishedTrial | None"
    ) -> Future[TrialScore]:
        """Start a trial, or go on with one that was cut off.

        Args:
            task: what to run.
            facts: what its run records.
            open_trial: its run, if it was begun before.
        """
        saved = checkpoints.load(task.folder, task.fingerprint)
        # A run whose epochs would have to be trained again stays as it is: in it, they would be
        # logged twice.
        goes_on = open_trial is not None and (saved is not None or not open_trial.has_steps)
        self._keeper.begin(
            task.number, facts, task.folder, open_trial.run_id if goes_on and open_trial else None
        )
        if saved is not None:
            self._keeper.note(
                task.number,
                _line(
                    f"cut off after epoch {len(saved.epochs)}; gone on from there with "
                    f"{facts.threads} threads"
                ),
            )
        outcome: Future[TrialScore] = Future()
        self._attempt(task, outcome)
        return outcome

    def reuse(self, number: int, trial: TrialResult) -> Future[TrialScore]:
        """A trial that has finished already, as if it had just been run."""
        self._show(
            TrialReused(
                number=number,
                run_id=trial.run_id,
                val_accuracy=trial.val_accuracy,
                diverged=trial.diverged,
            )
        )
        future: Future[TrialScore] = Future()
        future.set_result(
            TrialScore(
                val_accuracy=trial.val_accuracy,
                best_epoch=trial.best_epoch,
                diverged=trial.diverged,
            )
        )
        return future

    def stop(self) -> None:
        """End the workers at once."""
        self.stopping = True
        self._pool.kill()

    def _show(self, event: Event, worker: int = 0) -> None:
        try:
            self._progress(event, worker)
        except Exception:  # the trials matter more than what is shown of them
            _log.debug("Progress cannot be shown", exc_info=True)

    def _attempt(self, task: TrialTask, outcome: Future[TrialScore]) -> None:
        future = self._pool.submit(run_trial, task)
        future.add_done_callback(partial(self._ended, task, outcome))

    def _ended(self, task: TrialTask, outcome: Future[TrialScore], future: Future[Any]) -> None:
        if self.stopping:
            return
        try:
            self._take_in(task, outcome, future)
        except Exception as error:
            outcome.set_exception(error)

    def _take_in(self, task: TrialTask, outcome: Future[TrialScore], future: Future[Any]) -> None:
        try:
            ended: Trained | Failed = future.result()
        except WorkerDied as death:
            saved = checkpoints.load(task.folder, task.fingerprint)
            # With a full disk there is no checkpoint of what it got through.
            after = max(len(saved.epochs) if saved else 0, self._reached.get(task.number, 0))
            if after > self._died_after.get(task.number, -1):
                self._died_after[task.number] = after
                self._keeper.note(task.number, _line(f"{death.what} after epoch {after}: {death}"))
                if not isinstance(death, NoWorker):
                    self._show(WorkerLost(number=task.number, how=str(death)))
                self._attempt(task, outcome)
                return
            line = f"{death.what} ({death}), for the second time after epoch {after}"
            ended = Failed(line=line, trace=line)
        if isinstance(ended, Failed):
            self._recorded[task.number] = self._keeper.fail(task.number, ended)
            self._show(TrialEnded(number=task.number, error=ended.line))
            outcome.set_result(TrialScore(error=ended.line))
            return
        self._recorded[task.number] = self._keeper.finish(task.number, ended)
        best, diverged = ended.result.best, ended.result.diverged
        self._show(
            TrialEnded(
                number=task.number,
                val_accuracy=best.val_accuracy,
                best_epoch=best.epoch,
                diverged=diverged,
                seconds=ended.seconds,
            )
        )
        outcome.set_result(
            TrialScore(
                val_accuracy=best.val_accuracy,
                best_epoch=best.epoch,
                diverged=diverged is not None,
            )
        )


def _line(text: str) -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {text}"
