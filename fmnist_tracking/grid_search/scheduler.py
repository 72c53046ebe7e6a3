"""Trials in worker processes: started, retried when a worker dies, and logged."""

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from fmnist_tracking import clock, tracking
from fmnist_tracking.console import Echo
from fmnist_tracking.errors import FmnistTrackingError
from fmnist_tracking.grid_search.claims import LOOK_SECONDS, waiting_line
from fmnist_tracking.grid_search.messages import (
    EpochEnded,
    Event,
    Failed,
    Trained,
    TrialEnded,
    TrialReused,
    TrialStarted,
    TrialTask,
    WorkerLost,
    WorkerSilent,
)
from fmnist_tracking.grid_search.plan import PlannedTrial
from fmnist_tracking.grid_search.recording import Recording
from fmnist_tracking.grid_search.resources import Resources
from fmnist_tracking.grid_search.trial_logger import TrialLogger
from fmnist_tracking.results import TrialResult, TrialScore
from fmnist_tracking.training import checkpoints
from fmnist_tracking.workers import NoWorker, Silence, TimedOut, WorkerDied, WorkerPool

# In the worker, which imports TensorFlow for it.
RUN_TRIAL = "fmnist_tracking.grid_search.worker:run_trial"
# Images kept with each logged model as its input example.
_EXAMPLES = 2
_JOIN_SECONDS = 5.0

_log = logging.getLogger(__name__)


class TrialScheduler:
    """Runs trials in a pool of workers, and sees to it that each is logged.

    A trial whose worker dies goes on from its last checkpoint in a new one. Only if that dies again
    before another epoch was trained is the trial given up as FAILED: then it is the trial that
    kills it. So it is with one that ends no epoch for `timeout` seconds; None waits for ever. Use
    it as a context manager: left by an exception, it ends the workers at once.

    Each event is shown, with the number of the worker that it comes from. The parent is the
    search's run, None for a training of its own. Points are shared with other searches unless all
    are to be trained anew; `reused` are the runs of others that are recorded as reused already.
    """

    def __init__(
        self,
        resources: Resources,
        recording: Recording,
        *,
        show: Callable[[Event, int], None],
        echo: Echo,
        parent: str | None,
        timeout: int | None = None,
        is_shared: bool = True,
        reused: Sequence[str] = (),
    ) -> None:
        self._resources = resources
        self._recording = recording
        self._show = show
        self._echo = echo
        self._parent = parent
        self._timeout = timeout
        self._claims = resources.claims if is_shared else None
        self._running: dict[int, _RunningTrial] = {}
        self._waiting: list[_RunningTrial] = []
        self._reused = dict.fromkeys(reused)
        self._is_over = threading.Event()
        self._watcher = threading.Thread(target=self._look_after, daemon=True)
        self._is_stopping = False
        self._pool = WorkerPool(resources.workers, self._on_report, self._on_silence)

    def __enter__(self) -> "TrialScheduler":
        self._pool.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *others: object) -> None:
        self._is_stopping = kind is not None
        self._is_over.set()
        if self._watcher.is_alive():
            self._watcher.join(_JOIN_SECONDS)
        self._pool.__exit__(kind, *others)

    def submit(self, trial: PlannedTrial) -> "Future[TrialScore]":
        """Run a trial, from its checkpoint if it has one, unless it has finished already.

        One that another search of this machine is at is waited for.
        """
        running = _RunningTrial(trial)
        if trial.finished is not None:
            if trial.finished.reused and trial.finished.run_id not in self._reused:
                self._log_reused(trial.finished)
            self._reuse(running, trial.finished)
        elif not self._begin(running):
            self._echo(waiting_line(trial.name))
            self._waiting.append(running)
            if not self._watcher.is_alive():
                self._watcher.start()
        return running.score

    @property
    def waiting(self) -> int:
        """Return how many trials wait for what another search makes of them."""
        return len(self._waiting)

    def _begin(self, running: "_RunningTrial") -> bool:
        """Begin a trial, or reuse what another search has made of it; False if one is at it."""
        trial = running.trial
        if self._claims is not None:
            if self._is_over.is_set() or not self._claims.claim(trial.fingerprint):
                return False
            try:
                found = self._found(trial) if self._claims.others_have_released() else None
            except Exception as error:
                if not tracking.is_passing(error):
                    raise
                self._claims.release(trial.fingerprint)
                return False  # asked again, when the store answers
            if found is not None:
                self._claims.release(trial.fingerprint)
                self._take_over(running, found)
                return True
        running.logger = self._logger(trial)
        self._running[trial.number] = running
        if trial.epochs_done:
            running.logger.log_interruption(
                _line(
                    f"cut off after epoch {trial.epochs_done}; gone on from there with "
                    f"{self._resources.threads} threads"
                )
            )
        else:  # what there is cannot be used, as was said when the search was planned
            checkpoints.remove(trial.checkpoint_dir)
        if trial.epochs_kept:
            running.logger.log_interruption(
                _line(
                    f"begun after epoch {trial.epochs_kept}, from the checkpoint that an earlier "
                    f"training kept, with {self._resources.threads} threads"
                )
            )
        self._attempt(running)
        return True

    def _take_over(self, running: "_RunningTrial", found: TrialResult) -> None:
        """Reuse what another search has made of a point since this one was planned."""
        checkpoints.remove(running.trial.checkpoint_dir)
        self._log_reused(found)
        self._reuse(running, dataclasses.replace(found, reused=True))

    def _log_reused(self, found: TrialResult) -> None:
        recording = self._recording
        self._reused[found.run_id] = None
        reused = list(self._reused)
        recording.writer.submit(
            lambda _: tracking.log_reused(recording.store, recording.run_id, reused)
        )

    def _found(self, trial: PlannedTrial) -> TrialResult | None:
        """Return the trial that has finished since this search was planned, if there is one."""
        return tracking.find_finished(
            self._recording.store, self._recording.experiment_id, trial.fingerprint, trial.config
        )

    def _look_after(self) -> None:
        """Begin the trials that wait as soon as the search that is at them lets go of them."""
        while not self._is_over.wait(LOOK_SECONDS):
            for running in list(self._waiting):
                try:
                    if self._begin(running):
                        self._waiting.remove(running)
                except BaseException as error:  # else the search would wait for ever
                    self._waiting.remove(running)
                    running.score.set_exception(error)

    def _reuse(self, running: "_RunningTrial", trial: TrialResult) -> None:
        score = TrialScore(
            value=trial.score,
            best_epoch=trial.best_epoch,
            diverged=trial.diverged,
        )
        self._tell(TrialReused(number=running.trial.number, run_id=trial.run_id, score=score))
        running.score.set_result(score)

    def _logger(self, trial: PlannedTrial) -> TrialLogger:
        resources = self._resources
        info = tracking.TrialInfo(
            name=trial.name,
            config=trial.config,
            split=resources.split,
            data=resources.data_info,
            origin=resources.provenance,
            fingerprint=trial.fingerprint,
            threads=resources.threads,
            parent=self._parent,
            adopted=resources.adopted if self._parent is None else None,
            final_of=trial.final_of,
        )
        dataset = resources.dataset
        examples = dataset.train_images[:_EXAMPLES].reshape(-1, *dataset.image_shape)
        return TrialLogger(self._recording, info, trial, examples, self._echo)

    def _attempt(self, running: "_RunningTrial") -> None:
        task = TrialTask(trial=running.trial, images=self._resources.images)
        running.heard = None
        future = self._pool.submit(RUN_TRIAL, task)
        future.add_done_callback(partial(self._on_end, running))

    def _on_report(self, worker: int, event: TrialStarted | EpochEnded) -> None:
        running = self._running[event.number]
        running.heard = clock.now()
        if isinstance(event, TrialStarted):
            running.logger.log_data(self._resources.images.parts)
            running.logger.log_epochs(event.epochs)
        else:
            running.reached = event.metrics.epoch
            running.logger.log_epochs([event.metrics])
        self._tell(event, worker)

    def _on_silence(self, args: tuple[Any, ...], silence: Silence) -> TimedOut | None:
        running = self._running[args[0].trial.number]
        if running.heard is None:  # its worker has taken it from the queue a second ago
            running.heard = clock.now() - 1.0
        seconds = clock.now() - running.heard
        if self._timeout is not None and seconds >= self._timeout:
            return TimedOut(f"it had ended no epoch for {self._timeout} seconds")
        self._tell(
            WorkerSilent(
                number=running.trial.number,
                seconds=seconds,
                process=silence.process,
                is_stopped=silence.is_stopped,
            )
        )
        return None

    def _on_end(self, running: "_RunningTrial", future: Future[Any]) -> None:
        if self._is_stopping:
            return
        try:
            self._take_in(running, future)
        except BaseException as error:  # a thread that it ended would leave the search waiting
            running.score.set_exception(error)

    def _take_in(self, running: "_RunningTrial", future: Future[Any]) -> None:
        trial = running.trial
        try:
            ended: Trained | Failed = future.result()
        except WorkerDied as death:
            saved = checkpoints.load(
                trial.checkpoint_dir,
                trial.fingerprint,
                trial.config,
                self._resources.split.validation_images,
            )
            # With a full disk there is no checkpoint of what it got through.
            after = max(len(saved.epochs) if saved else 0, running.reached)
            if after > running.died_after:
                running.died_after = after
                running.logger.log_interruption(_line(f"{death.what} after epoch {after}: {death}"))
                if not isinstance(death, NoWorker):
                    self._tell(WorkerLost(number=trial.number, how=f"{death.what} ({death})"))
                self._attempt(running)
                return
            line = f"{death.what} ({death}), for the second time after epoch {after}"
            ended = Failed(line=line, trace=line)
        except (FmnistTrackingError, CancelledError):
            raise
        except Exception as error:  # what it came to could not be sent
            ended = Failed.by(error)
        del self._running[trial.number]
        if isinstance(ended, Failed):
            running.logger.fail(ended)
            event = TrialEnded(number=trial.number, score=TrialScore(error=ended.line))
        else:
            running.logger.finish(ended)
            best, diverged_in = ended.result.best, ended.result.diverged
            score = TrialScore(
                value=best.value(ended.result.config.compared_by),
                best_epoch=best.epoch,
                diverged=diverged_in is not None,
            )
            event = TrialEnded(
                number=trial.number, score=score, diverged_in=diverged_in, seconds=ended.seconds
            )
        self._tell(event)
        if self._claims is not None:  # once its result is written
            claims, point = self._claims, trial.fingerprint
            self._recording.writer.submit(lambda _: claims.release(point))
        running.score.set_result(event.score)

    def _tell(self, event: Event, worker: int = 0) -> None:
        try:
            self._show(event, worker)
        except Exception:  # the trials matter more than what is shown of them
            _log.debug("Progress cannot be shown", exc_info=True)


@dataclass(eq=False)
class _RunningTrial:
    """A trial that was submitted and has not ended."""

    trial: PlannedTrial
    logger: TrialLogger = field(init=False)  # once it has begun
    score: "Future[TrialScore]" = field(default_factory=Future)
    reached: int = 0  # the last epoch that its worker reported
    heard: float | None = None  # when its worker took it, or last reported
    died_after: int = -1  # the epoch after which its worker died


def _line(text: str) -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {text}"
