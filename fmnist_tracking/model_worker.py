"""What the worker process of a model does: load the model, and have it classify images."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from fmnist_tracking.data import load_dataset, split_dataset, test_set
from fmnist_tracking.errors import ConfigError, DataError, TrackingError, first_line, setting
from fmnist_tracking.inspection import InspectionTask, ModelInspection, StoredModel
from fmnist_tracking.metrics import evaluate
from fmnist_tracking.networks import models

_SAMPLES = 16
_LONGEST_REASON = 200


def inspect_model(task: InspectionTask, report: Callable[[Any], None]) -> ModelInspection:
    """Look at a model and some images.

    Raises:
        DataError: the data is not what the model was trained on, or cannot be had.
        ConfigError: the model has no such layer.
        TrackingError: the model cannot be used, or gives no numbers.
    """
    model = _load(task.model)
    dataset = load_dataset(task.data_dir)
    if dataset.digest != task.data_sha256:
        raise DataError(
            f"The run {task.model.run_id[:8]} was trained on other data than {dataset.source}, "
            f"{dataset.name}, holds (SHA-256 {task.data_sha256[:12]}… against "
            f"{dataset.digest[:12]}…). Name the right folder with {setting('data_dir')}."
        )
    if task.images == "test":
        test = test_set(dataset, task.split)
        images, labels = test.images, test.labels
        everything = classify(task.model, images, report)
        evaluation = evaluate(labels, everything, dataset.class_names)
    else:
        split = split_dataset(dataset, task.split)
        images, labels = split.validation_images, split.validation_labels
        evaluation = None
    count = len(labels)
    chosen = np.random.default_rng(task.seed).choice(count, min(_SAMPLES, count), replace=False)
    layer, maps = _maps(model, task, images[chosen[0]])
    return ModelInspection(
        data=dataset.name,
        summary=dataset.summary,
        is_fashion_mnist=dataset.is_fashion_mnist,
        class_names=dataset.class_names,
        part=task.images,
        available=count,
        chosen=chosen,
        images=images[chosen],
        labels=labels[chosen],
        probabilities=everything[chosen]
        if evaluation
        else classify(task.model, images[chosen], report),
        layer=layer,
        maps=maps,
        evaluation=evaluation,
    )


def _maps(
    model: keras.Model, task: InspectionTask, image: NDArray[np.uint8]
) -> tuple[str | None, NDArray[np.float32]]:
    """Return the name of the convolution that is asked for, and its maps of an image."""
    try:
        layer = models.convolution(model, task.layer)
        if layer is None:
            return None, np.empty((0, 0, 0), np.float32)
        return str(layer.name), models.activations(model, layer, image)
    except ConfigError:
        raise
    except Exception as error:  # of a network that this project did not build
        raise _unusable(task.model.run_id, error) from None


def classify(
    model: StoredModel, images: NDArray[np.uint8], _: Callable[[Any], None]
) -> NDArray[np.float32]:
    """Return the class probabilities of raw images.

    Args:
        model: of a trial.
        images: uint8, shape (n, height, width, channels), 0..255.

    Returns:
        float32, shape (n, classes).

    Raises:
        TrackingError: the model cannot be used, or gives no numbers.
    """
    probabilities = models.predict(_load(model), images)
    if not np.isfinite(probabilities).all():
        raise TrackingError(
            f"The model of trial {model.run_id[:8]} gives no numbers (NaN): its training diverged. "
            "Choose another trial, and train with a smaller learning rate."
        )
    return probabilities


def load_model(model: StoredModel) -> keras.Model:
    """Load a trial's `.keras` file in Keras's safe mode, with its code if there is some.

    Raises:
        TrackingError: it cannot be used; the message names the trial.
    """
    try:
        return models.load_model(model.file, model.network, model.code)
    except (
        Exception,
        SystemExit,
    ) as error:  # Keras raises many kinds of what is damaged or not its own
        raise _unusable(model.run_id, error) from None


@lru_cache(maxsize=1)
def _load(model: StoredModel) -> keras.Model:
    return load_model(model)


def _unusable(run_id: str, error: BaseException) -> TrackingError:
    why = first_line(error)[:_LONGEST_REASON]
    return TrackingError(
        f"The model file of trial {run_id[:8]} cannot be used; it is damaged, or not one of this "
        f"project: {why} Choose another trial, or train this one again with "
        f"{setting('fresh=True')}."
    )
