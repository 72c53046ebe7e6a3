"""What a worker process does with each trial."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fmnist_tracking import clock
from fmnist_tracking.config import SplitConfig, TrainingConfig
from fmnist_tracking.errors import DataError
from fmnist_tracking.grid_search.images import load_split
from fmnist_tracking.grid_search.messages import (
    EpochEnded,
    Failed,
    Trained,
    TrialStarted,
    TrialTask,
)
from fmnist_tracking.results import EpochMetrics
from fmnist_tracking.training import loop


def run_trial(task: TrialTask, report: Callable[[Any], None]) -> Trained | Failed:
    """Train one point, or go on with one that was cut off.

    A worker writes nothing but the checkpoint: what it reports and returns is for the
    process that started it to record. It reports `TrialStarted`, and `EpochEnded` after each epoch.

    Raises:
        DataError: the data is not what the search began with.
    """
    try:
        return _trained(task, report)
    except DataError:  # no trial can be trained
        raise
    except BaseException as error:  # a network may call sys.exit
        return Failed.by(error)


def _trained(task: TrialTask, report: Callable[[Any], None]) -> Trained:
    start, trial = clock.now(), task.trial
    split, parts = load_split(task.data_dir, task.split, task.data_sha256)

    def on_start(epochs: Sequence[EpochMetrics]) -> None:
        report(TrialStarted(number=trial.number, epochs=tuple(epochs), data=parts))

    result, weights = loop.train(
        trial.config,
        split,
        lambda metrics: report(EpochEnded(number=trial.number, metrics=metrics)),
        place=loop.CheckpointPlace(folder=trial.checkpoint_dir, fingerprint=trial.fingerprint),
        on_start=on_start,
    )
    return Trained(result=result, weights=weights, seconds=clock.now() - start)


def measure(
    config: TrainingConfig,
    split: SplitConfig,
    data_dir: Path | None,
    data_sha256: str,
    images: int,
    _: Callable[[Any], None],
) -> list[float]:
    """Train on so many of the images, and validate on a fifth as many, to see how long it takes.

    For where the data is, see `TrialTask`.

    Returns:
        Seconds of each epoch.

    Raises:
        DataError: the data is another, or cannot be had.
    """
    whole, _parts = load_split(data_dir, split, data_sha256)
    validation = max(1, images // 5)
    part = dataclasses.replace(
        whole,
        train_images=whole.train_images[:images],
        train_labels=whole.train_labels[:images],
        validation_images=whole.validation_images[:validation],
        validation_labels=whole.validation_labels[:validation],
    )
    result, _weights = loop.train(config, part)
    return [epoch.epoch_seconds for epoch in result.epochs]
