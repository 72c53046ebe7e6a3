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
    """A trial has ended: with a score, or with an error in a line."""

    number: int
    val_accuracy: float | None = None
    best_epoch: int | None = None
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class TrialReused:
    """The point has a finished trial already, in a run of that id."""

    number: int
    run_id: str
    val_accuracy: float | None


@dataclass(frozen=True, kw_only=True)
class WorkerLost:
    """The process that ran a trial has died; the trial goes on in another."""

    number: int
    how: str


Event: TypeAlias = TrialStarted | EpochEnded | TrialEnded | TrialReused | WorkerLost
