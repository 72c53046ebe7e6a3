"""What the driver gives a worker, what comes back, and what is shown meanwhile."""

import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from fmnist_tracking.errors import named, shortened
from fmnist_tracking.grid_search.images import Images
from fmnist_tracking.grid_search.plan import PlannedTrial
from fmnist_tracking.results import EpochMetrics, TrainingResult, TrialScore

if TYPE_CHECKING:
    from fmnist_tracking.networks.build import Packed
    from fmnist_tracking.training.loop import Weights


@dataclass(frozen=True, kw_only=True)
class TrialTask:
    """A trial to run, in terms that can be sent to another process."""

    trial: PlannedTrial
    images: Images


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A trial that came to its end: the result and the best epoch's weights."""

    result: TrainingResult
    weights: "Weights"
    model: "Packed"  # see `networks.build.packed`
    seconds: float  # that the worker took for it, without those in which it was stopped


@dataclass(frozen=True, kw_only=True)
class Failed:
    """A trial that ended by an error of its own: the error in a line, and its traceback."""

    line: str
    trace: str

    @classmethod
    def by(cls, error: BaseException) -> "Failed":
        """Return that an error ended a trial, whatever its author has made of it."""
        trace = "".join(traceback.format_exception(error))
        return cls(line=named(error), trace=shortened(trace))


@dataclass(frozen=True, kw_only=True)
class TrialStarted:
    """A worker has begun the trial of a point, or goes on with one that was cut off."""

    number: int  # of the point, 1 for the first
    epochs: tuple[EpochMetrics, ...] = ()  # that were trained before, usually none


@dataclass(frozen=True, kw_only=True)
class EpochEnded:
    """A trial has ended an epoch."""

    number: int
    metrics: EpochMetrics


@dataclass(frozen=True, kw_only=True)
class TrialEnded:
    """A trial has ended."""

    number: int
    score: TrialScore  # with the error of one that failed
    diverged_in: int | None = None  # the epoch whose loss was no finite number
    seconds: float | None = None  # that it took its worker since it was begun, or gone on with


@dataclass(frozen=True, kw_only=True)
class TrialReused:
    """The point has a finished trial already, in a run of that id."""

    number: int
    run_id: str
    score: TrialScore


@dataclass(frozen=True, kw_only=True)
class WorkerLost:
    """The worker that ran a trial has died; the trial goes on in another process."""

    number: int
    how: str


@dataclass(frozen=True, kw_only=True)
class WorkerSilent:
    """The worker that runs a trial has still not ended an epoch; comes once a second."""

    number: int
    seconds: float  # since it did, or was given the trial
    process: int
    is_stopped: bool  # as by SIGSTOP


Event: TypeAlias = TrialStarted | EpochEnded | TrialEnded | TrialReused | WorkerLost | WorkerSilent
