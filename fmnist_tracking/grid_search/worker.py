"""What a worker process runs for each trial."""

import json
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmnist_tracking import clock, fingerprint
from fmnist_tracking.config import SplitConfig
from fmnist_tracking.errors import DataError, first_line
from fmnist_tracking.grid_search.events import EpochEnded, TrialStarted
from fmnist_tracking.grid_search.plan import PlannedTrial
from fmnist_tracking.results import DatasetPart, EpochMetrics, TrainingResult

if TYPE_CHECKING:
    from fmnist_tracking.data import Dataset, DataSplit
    from fmnist_tracking.training.loop import Weights


@dataclass(frozen=True, kw_only=True)
class TrialTask:
    """A trial to run, in terms that can be sent to another process.

    Attributes:
        trial: what to train, from where it has come to.
        split: how the data is split.
        data_dir: where the data is, None for the usual places.
        data_sha256: `Dataset.digest` of the data that must be found there.
    """

    trial: PlannedTrial
    split: SplitConfig
    data_dir: Path | None
    data_sha256: str


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A trial that came to its end: the result and the best epoch's weights.

    Attributes:
        result: of all its epochs.
        weights: of the best one.
        seconds: that this process took for it, without those in which it was stopped.
    """

    result: TrainingResult
    weights: "Weights"
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Failed:
    """A trial that ended by an error of its own: the error in a line, and its traceback."""

    line: str
    trace: str


def run_trial(task: TrialTask, report: Callable[[Any], None]) -> Trained | Failed:
    """Train one point, or go on with one that was cut off.

    A worker writes nothing but the checkpoint: what it reports and returns is for the
    process that started it to record.

    Args:
        task: what to run.
        report: called with `TrialStarted`, and with `EpochEnded` after each epoch.

    Raises:
        DataError: the data is not what the search began with.
    """
    from fmnist_tracking.training import loop

    start, trial = clock.now(), task.trial
    split, parts = _load(task.data_dir, task.split, task.data_sha256)

    def on_start(epochs: Sequence[EpochMetrics]) -> None:
        report(TrialStarted(number=trial.number, epochs=tuple(epochs), data=parts))

    try:
        result, weights = loop.train(
            trial.config,
            split,
            lambda metrics: report(EpochEnded(number=trial.number, metrics=metrics)),
            place=loop.CheckpointPlace(folder=trial.checkpoint_dir, fingerprint=trial.fingerprint),
            on_start=on_start,
        )
    except Exception as error:
        line = f"{type(error).__name__}: {first_line(error)}"
        return Failed(line=line, trace="".join(traceback.format_exception(error)))
    return Trained(result=result, weights=weights, seconds=clock.now() - start)


@lru_cache(maxsize=1)  # a worker runs many trials on the same images
def _load(
    data_dir: Path | None, split: SplitConfig, data_sha256: str
) -> "tuple[DataSplit, tuple[DatasetPart, DatasetPart]]":
    from fmnist_tracking.data import load_dataset

    def load() -> "Dataset":
        dataset = load_dataset(data_dir)
        if dataset.digest != data_sha256:
            raise DataError(f"The data in {dataset.source} changed while the search was running.")
        return dataset

    return _split(load, split, data_sha256)


def cache_split(dataset: "Dataset", split: SplitConfig) -> None:
    """Put the split into the cache, so that not each worker must make it."""
    _split(lambda: dataset, split, dataset.digest)


def _split(
    load: "Callable[[], Dataset]", split: SplitConfig, data_sha256: str
) -> "tuple[DataSplit, tuple[DatasetPart, DatasetPart]]":
    from fmnist_tracking.data import shared_split, split_dataset

    key = json.dumps([fingerprint.of_program(), data_sha256, asdict(split)])
    return shared_split(key, lambda: split_dataset(load(), split))
