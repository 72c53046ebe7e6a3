"""A trial that only waits, in the place of one that trains."""

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fmnist_tracking.config import CLASS_NAMES, TrainingConfig
from fmnist_tracking.grid_search.messages import EpochEnded, Trained, TrialStarted, TrialTask
from fmnist_tracking.metrics import score
from fmnist_tracking.network import weight_shapes
from fmnist_tracking.results import EpochMetrics, TrainingResult

# How long an epoch takes.
SECONDS = 0.5
SHORT_SECONDS = 0.05
LABELS = np.arange(10, dtype=np.uint8)
# As many as a real trial's.
USAGE = {f"system/figure_{number}": 1.0 for number in range(5)}


@contextlib.contextmanager
def instead_of_training(stub: Callable[..., Trained]) -> Iterator[None]:
    """Have searches run one of the functions below, in a new working folder with a new store."""
    from fmnist_tracking.grid_search import scheduler  # not in the workers, which import this

    scheduler.RUN_TRIAL = f"{__name__}:{stub.__name__}"
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ["FMNIST_STATE_DIR"] = str(Path(folder, "state"))
        yield
        os.chdir("/")


def run_trial(task: TrialTask, report: Callable[[Any], None]) -> Trained:
    """Wait, and give a result as a training would."""
    return _wait(task, report, SECONDS)


def run_short_trial(task: TrialTask, report: Callable[[Any], None]) -> Trained:
    """Do the same with short epochs; yet each is logged before the next one has ended."""
    return _wait(task, report, SHORT_SECONDS)


def _wait(task: TrialTask, report: Callable[[Any], None], seconds: float) -> Trained:
    report(TrialStarted(number=task.trial.number))
    epochs = []
    for epoch in range(1, task.trial.config.epochs + 1):
        started = time.time()
        time.sleep(seconds)
        ended_at = int(time.time() * 1000)
        epochs.append(
            EpochMetrics(
                epoch=epoch,
                loss=1 / epoch,
                accuracy=1 - 0.5 / epoch,
                val_loss=1.2 / epoch,
                val_accuracy=0.9 - 0.5 / epoch + task.trial.number / 1e6,
                epoch_seconds=ended_at / 1000 - started,  # so that the start can be told
                ended_at=ended_at,
                usage=USAGE,
            )
        )
        report(EpochEnded(number=task.trial.number, metrics=epochs[-1]))
    result = TrainingResult(
        config=task.trial.config,
        epochs=tuple(epochs),
        model_parameters=1,
        train_seconds=seconds * len(epochs),
        images_per_second=1.0,
        train_images=500,
        validation=score(LABELS, LABELS, 1.0, CLASS_NAMES),
    )
    return Trained(
        result=result,
        weights=_weights(task.trial.config),
        model=_architecture(task.trial.config),
        seconds=result.train_seconds,
    )


def _architecture(config: TrainingConfig) -> str:
    from fmnist_tracking.networks.build import architecture, build_model

    return architecture(build_model(config))


def _weights(config: TrainingConfig) -> tuple[Any, ...]:
    shapes = weight_shapes(config.values, config.network)
    # Drawn, so that a file of them is no smaller than one of trained weights.
    draw = np.random.default_rng(config.seed)
    return tuple(draw.standard_normal(shape, np.float32) for shape in shapes)
