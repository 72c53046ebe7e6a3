"""One configuration -> one result: seeding, the epochs, checkpoints, the best weights."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from fmnist_tracking import checkpoints
from fmnist_tracking import model as network
from fmnist_tracking.checkpoints import Checkpoint
from fmnist_tracking.config import TrainingConfig
from fmnist_tracking.data import DataSplit
from fmnist_tracking.results import EpochMetrics, TrainingResult, best_epoch

# Steps that TensorFlow runs before it returns to Python; the arithmetic is the same.
STEPS_PER_EXECUTION = 50
_VALIDATION_BATCH_SIZE = 1000

OnEpoch = Callable[[EpochMetrics], None]
OnStart = Callable[[Sequence[EpochMetrics]], None]
Weights = tuple[NDArray[np.float32], ...]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CheckpointPlace:
    """Where a training keeps its checkpoint, and which training it is.

    Attributes:
        folder: made if it is not there.
        fingerprint: a checkpoint of any other training is ignored.
    """

    folder: Path
    fingerprint: str


def train(
    config: TrainingConfig,
    data: DataSplit,
    on_epoch: OnEpoch = lambda _: None,
    *,
    place: CheckpointPlace | None = None,
    on_start: OnStart = lambda _: None,
) -> tuple[TrainingResult, Weights]:
    """Train one configuration, deterministically for its seed, processor and threads.

    Each epoch's order of images depends on the seed and the epoch's number alone, and a
    checkpoint holds the states of the optimizer and of the dropout layers: so a training that
    was cut off and goes on gives the same numbers, to the last bit, as one that was not.

    Args:
        config: what to train.
        data: training and validation images.
        on_epoch: called after each epoch with its figures, once its checkpoint is written.
        place: of the checkpoint, written after each epoch and gone on from if there is one;
            None keeps none. It is for the caller to remove.
        on_start: called before the first step with the figures of the epochs that a
            checkpoint spares; usually none.

    Returns:
        The result, and the weights of the best epoch: the one with the highest validation
        accuracy, the earliest of equals.
    """
    model = _compiled(config)
    train_images, train_labels = tf.constant(data.train_images), tf.constant(data.train_labels)
    validation = tf.data.Dataset.from_tensor_slices(
        (data.validation_images, data.validation_labels)
    ).batch(_VALIDATION_BATCH_SIZE)

    epochs: list[EpochMetrics] = []
    best_weights: Weights = ()
    best = 0
    fit_seconds = 0.0
    saved = checkpoints.load(place.folder, place.fingerprint) if place else None
    if saved is not None:
        for variable, value in zip(_variables(model), saved.variables, strict=True):
            variable.assign(value)
        epochs, fit_seconds = list(saved.epochs), saved.fit_seconds
        best, best_weights = best_epoch(epochs).epoch, saved.best_weights
    on_start(tuple(epochs))
    while not _is_done(config, epochs, best):
        epoch = len(epochs) + 1
        start = time.perf_counter()
        batches = _shuffled_batches(train_images, train_labels, config, epoch)
        history = model.fit(batches, shuffle=False, verbose=0).history
        fit_seconds += time.perf_counter() - start
        scores = model.evaluate(validation, verbose=0, return_dict=True)
        figures = EpochMetrics(
            epoch=epoch,
            loss=float(history["loss"][0]),
            accuracy=_exact_share(history["accuracy"][0], len(data.train_labels)),
            val_loss=float(scores["loss"]),
            val_accuracy=_exact_share(scores["accuracy"], len(data.validation_labels)),
            epoch_seconds=time.perf_counter() - start,
            ended_at=int(time.time() * 1000),
        )
        if not epochs or figures.val_accuracy > epochs[best - 1].val_accuracy:
            best, best_weights = epoch, tuple(model.get_weights())
        epochs.append(figures)
        if place is not None:
            _save(place, model, epochs, fit_seconds, best_weights)
        on_epoch(figures)

    result = TrainingResult(
        config=config,
        epochs=tuple(epochs),
        model_parameters=model.count_params(),
        train_seconds=sum(e.epoch_seconds for e in epochs),
        images_per_second=len(epochs) * len(data.train_labels) / fit_seconds,
    )
    return result, best_weights


def _is_done(config: TrainingConfig, epochs: Sequence[EpochMetrics], best: int) -> bool:
    done = len(epochs)
    return done >= config.epochs or bool(config.patience and done - best >= config.patience)


def _compiled(config: TrainingConfig) -> keras.Model:
    keras.backend.clear_session()
    # After clear_session, which forgets it.
    keras.config.disable_interactive_logging()
    keras.utils.set_random_seed(config.seed)
    model = network.build_model(config)
    model.compile(
        optimizer=keras.optimizers.Adam(config.learning_rate),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
        steps_per_execution=STEPS_PER_EXECUTION,
        # XLA's convolutions were ten times as slow on a CPU.
        jit_compile=bool(tf.config.list_physical_devices("GPU")),
    )
    model.optimizer.build(model.trainable_variables)
    return model


def _variables(model: keras.Model) -> list[Any]:
    """All that training changes; the model's own include the dropout layers' random states."""
    return [*model.variables, *model.optimizer.variables]


def _save(
    place: CheckpointPlace,
    model: keras.Model,
    epochs: Sequence[EpochMetrics],
    fit_seconds: float,
    best_weights: Weights,
) -> None:
    checkpoint = Checkpoint(
        fingerprint=place.fingerprint,
        epochs=tuple(epochs),
        fit_seconds=fit_seconds,
        variables=tuple(v.numpy() for v in _variables(model)),
        best_weights=best_weights,
    )
    try:
        checkpoints.save(checkpoint, place.folder)
    except OSError as error:  # a full disk costs the checkpoint, not the training
        _log.warning(
            "The checkpoint in %s was not written (%s). Training goes on; if it is cut off "
            "now, it repeats from the last one that was.",
            place.folder,
            error.strerror,
        )


def _shuffled_batches(
    images: tf.Tensor, labels: tf.Tensor, config: TrainingConfig, epoch: int
) -> tf.data.Dataset:
    """The batches of one epoch; images stay uint8 and are gathered batch by batch."""
    order = np.random.default_rng([config.seed, epoch]).permutation(len(labels))
    return (
        tf.data.Dataset.from_tensor_slices(order)
        .batch(config.batch_size)
        .map(lambda chosen: (tf.gather(images, chosen), tf.gather(labels, chosen)))
        .prefetch(tf.data.AUTOTUNE)
    )


def _exact_share(share: float, count: int) -> float:
    """A share that Keras averaged in float32, as the fraction of whole images it stands for."""
    return round(share * count) / count
