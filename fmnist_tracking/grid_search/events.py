"""What is reported while trials run."""

from dataclasses import dataclass
from typing import TypeAlias

from fmnist_tracking.results import DatasetPart, EpochMetrics


@dataclass(frozen=True, kw_only=True)
class TrialStarted:
    """A worker has begun the trial of a point, or goes on with one that was cut off.

    Attributes:
        number: of the point, 1 for the first.
        epochs: figures of the epochs that were trained before, usually none.
        data: which images it was given.
    """

    number: int
    epochs: tuple[EpochMetrics, ...] = ()
    data: tuple[DatasetPart, ...] = ()


@dataclass(frozen=True, kw_only=True)
class EpochEnded:
    """A trial has ended an epoch."""

    number: int
    metrics: EpochMetrics


@dataclass(frozen=True, kw_only=True)
class TrialEnded:
    """A trial has ended: with a score, or with an error in a line.

    Attributes:
        number: of the point, 1 for the first.
        val_accuracy: the best epoch's.
        best_epoch: the epoch it was reached in.
        error: what ended a failed trial, in a line.
        diverged: the epoch whose loss was no finite number, None for one that did not diverge.
        seconds: that it took its worker since it was begun, or gone on with.
    """

    number: int
    val_accuracy: float | None = None
    best_epoch: int | None = None
    error: str | None = None
    diverged: int | None = None
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class TrialReused:
    """The point has a finished trial already, in a run of that id."""

    number: int
    run_id: str
    val_accuracy: float | None
    diverged: bool = False


@dataclass(frozen=True, kw_only=True)
class WorkerLost:
    """The process that ran a trial has died; the trial goes on in another."""

    number: int
    how: str


Event: TypeAlias = TrialStarted | EpochEnded | TrialEnded | TrialReused | WorkerLost
