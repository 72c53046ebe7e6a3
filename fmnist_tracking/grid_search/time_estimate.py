"""How long trials will take, learned from those that ran."""

import heapq
from collections.abc import Iterable

from fmnist_tracking.config import TrainingConfig, size_of

# What a step costs beside its arithmetic, in multiply-adds an image: found by timing
# all 12 points of the coursework's grid at batch size 32 and fitting a line.
_OVERHEAD_MULTIPLY_ADDS = 200_000


# Measured on finished trials: the learning curves, the model's own files beside its weights,
# and the rows of a SQLite store.
_BYTES_A_TRIAL = 235_000
_BYTES_AN_EPOCH = 1_200
_BYTES_A_WEIGHT = 4
# Measured on checkpoints: what they hold beside their numbers.
_CHECKPOINT_BYTES = 10_000
_CHECKPOINT_EPOCH_BYTES = 300
# The weight, its gradient or its best value, and Adam's two moments.
_TENSORS_A_WEIGHT = 4


def disk_bytes(config: TrainingConfig) -> int:
    """Estimate what a finished trial takes on disk, in bytes."""
    return (
        _BYTES_A_TRIAL
        + _BYTES_AN_EPOCH * config.epochs
        + _BYTES_A_WEIGHT * size_of(config).parameters
    )


def checkpoint_bytes(config: TrainingConfig, validation_images: int) -> int:
    """Estimate what a kept checkpoint takes on disk, in bytes, with Adam's two moments."""
    numbers = _BYTES_A_WEIGHT * _TENSORS_A_WEIGHT * size_of(config).parameters
    return numbers + validation_images + _CHECKPOINT_BYTES + _CHECKPOINT_EPOCH_BYTES * config.epochs


def memory_bytes(config: TrainingConfig, images: int) -> int:
    """Compute what a training holds in memory at least, in bytes.

    Counts the weights, their gradients and Adam's two moments, and what the layers give for a
    batch, which the gradients are computed from; not what the process takes beside those. A batch
    has no more than all images for training.
    """
    size, batch = size_of(config), min(config.batch_size, images)
    return _BYTES_A_WEIGHT * (_TENSORS_A_WEIGHT * size.parameters + batch * size.outputs)


def work(config: TrainingConfig) -> float:
    """Compute the cost of an epoch, in multiply-adds an image: proportional to its seconds."""
    return float(size_of(config).multiply_adds + _OVERHEAD_MULTIPLY_ADDS)


class TimeEstimator:
    """Seconds that trials take on one machine, on one set of images.

    A trial is taken to cost something fixed, which is more than nothing because the first
    epoch of each trial builds TensorFlow's graph, and for each epoch its work.
    """

    def __init__(self) -> None:
        self._first = _Sums()
        self._later = _Sums()
        self._trials = _Sums()

    def epoch(self, config: TrainingConfig, number: int, seconds: float) -> None:
        """Take in an epoch that was measured; `number` is 1 for a trial's first."""
        (self._first if number == 1 else self._later).add(work(config), seconds)

    def trial(self, config: TrainingConfig, epochs: int, seconds: float) -> None:
        """Take in a whole trial that was measured, from its start to its end."""
        self._trials.add(work(config) * epochs, seconds)

    @property
    def is_known(self) -> bool:
        """Return whether anything was measured."""
        return bool(self._first.count or self._later.count or self._trials.count)

    def seconds(self, config: TrainingConfig, epochs: int, *, begun: bool = False) -> float:
        """Estimate how long so many further epochs take, in seconds; see `TimeEstimator`.

        A trial has begun when its first epoch is over.
        """
        fixed = 0.0 if begun or epochs == 0 else self._fixed()
        return fixed + epochs * work(config) * self._rate()

    def _rate(self) -> float:
        """Return the seconds for a unit of work."""
        for measured in (self._later, self._first, self._trials):
            if measured.count:
                return measured.seconds / measured.work
        return 0.0

    def _fixed(self) -> float:
        """Return the seconds that a trial takes beside the work of its epochs."""
        measured = self._trials if self._trials.count else self._first
        if not measured.count:
            return 0.0
        return max(0.0, (measured.seconds - measured.work * self._rate()) / measured.count)


class _Sums:
    def __init__(self) -> None:
        self.count = 0
        self.work = 0.0
        self.seconds = 0.0

    def add(self, work: float, seconds: float) -> None:
        self.count += 1
        self.work += work
        self.seconds += seconds


def time_left(running: Iterable[float], waiting: Iterable[float], workers: int) -> float:
    """Estimate the seconds until all trials have ended.

    Args:
        running: seconds that each running trial still takes.
        waiting: seconds that each further trial takes, in the order they will start.
        workers: how many run at once.
    """
    ends = [*running]
    ends += [0.0] * (workers - len(ends))
    heapq.heapify(ends)
    for seconds in waiting:
        heapq.heappush(ends, heapq.heappop(ends) + seconds)
    return max(ends, default=0.0)
