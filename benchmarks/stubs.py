"""A trial that only waits, in the place of one that trains."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from fmnist_tracking.config import CLASS_NAMES, TrainingConfig, feature_map_sizes
from fmnist_tracking.evaluation import score
from fmnist_tracking.events import EpochEnded, TrialStarted
from fmnist_tracking.results import EpochMetrics, TrainingResult
from fmnist_tracking.workflows.trial import Trained, TrialTask

SECONDS = 0.5
LABELS = np.arange(10, dtype=np.uint8)


def prepare() -> None:
    """Nothing to import."""


def run_trial(task: TrialTask, report: Callable[[Any], None]) -> Trained:
    """Wait, and give a result as a training would."""
    started = time.time()
    report(TrialStarted(number=task.number))
    time.sleep(SECONDS)
    figures = EpochMetrics(
        epoch=1,
        loss=1.0,
        accuracy=0.5,
        val_loss=started,  # where the driver finds when it began
        val_accuracy=0.5 + task.number / 1e6,
        epoch_seconds=SECONDS,
        ended_at=int(time.time() * 1000),
    )
    report(EpochEnded(number=task.number, metrics=figures))
    result = TrainingResult(
        config=task.config,
        epochs=(figures,),
        model_parameters=1,
        train_seconds=SECONDS,
        images_per_second=1.0,
        train_images=500,
        validation=score(LABELS, LABELS, 1.0, CLASS_NAMES),
    )
    return Trained(result=result, weights=_weights(task.config))


def _weights(config: TrainingConfig) -> tuple[Any, ...]:
    side, window = feature_map_sizes(config)["pool2"], config.kernel_size
    shapes: list[tuple[int, ...]] = [
        (window, window, 1, config.filters),
        (config.filters,),
        (window, window, config.filters, config.filters),
        (config.filters,),
        (side * side * config.filters, config.hidden_units),
        (config.hidden_units,),
        (config.hidden_units, len(CLASS_NAMES)),
        (len(CLASS_NAMES),),
    ]
    return tuple(np.zeros(shape, np.float32) for shape in shapes)
