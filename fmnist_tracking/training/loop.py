"""Train one configuration: seeds, epochs, checkpoints, the best weights."""

import dataclasses
import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from fmnist_tracking import clock, runtime
from fmnist_tracking.config import TrainingConfig
from fmnist_tracking.data import DataSplit
from fmnist_tracking.metrics import accuracy, cross_entropy, predicted_labels, score
from fmnist_tracking.networks import coursework as network
from fmnist_tracking.results import EpochMetrics, TrainingResult, best_epoch, diverged_in
from fmnist_tracking.training import checkpoints
from fmnist_tracking.training.checkpoints import Checkpoint
from fmnist_tracking.training.coursework_step import TrainingStep, shard_bounds
from fmnist_tracking.training.system_metrics import SystemMeter

_VALIDATION_BATCH_SIZE = 1000
_TIMED_STEPS = 50
_ALIGNMENT = 64  # bytes, as in TensorFlow's own tensors

OnEpoch = Callable[[EpochMetrics], None]
OnStart = Callable[[Sequence[EpochMetrics]], None]
Weights = tuple[NDArray[np.float32], ...]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CheckpointPlace:
    """Where a training saves its checkpoint, and which training it is."""

    folder: Path  # created if it does not exist
    fingerprint: str  # a checkpoint of any other training is ignored


def train(
    config: TrainingConfig,
    data: DataSplit,
    on_epoch: OnEpoch = lambda _: None,
    *,
    place: CheckpointPlace | None = None,
    on_start: OnStart = lambda _: None,
) -> tuple[TrainingResult, Weights]:
    """Train one configuration, deterministically for its seed, processor and threads.

    The order of images and the dropout of an epoch depend only on the seed and the epoch's number,
    and a checkpoint holds the state of the optimizer: so a training that was interrupted and
    resumed gives the same numbers, to the last bit, as one that was not.

    A training whose loss on training or validation images is no longer finite has diverged, and
    ends with that epoch.

    Args:
        config: what to train.
        data: training and validation images.
        on_epoch: called after each epoch with its metrics, once its checkpoint is written, in a
            background thread; an exception in it ends the training, after one more epoch at most.
        place: of the checkpoint, which is written after each epoch, and from which the training is
            resumed if it exists; None saves none. The caller removes it.
        on_start: called before the first step with the metrics of the epochs that the checkpoint
            holds; usually none.

    Returns:
        The result, and the weights of the best epoch; see `results.best_epoch`.
    """
    images, labels = _tensor(data.train_images), _tensor(data.train_labels)
    saved = None
    if place is not None:
        count = len(data.validation_labels)
        saved = checkpoints.load(place.folder, place.fingerprint, config, count)
    prepared = _prepare(config, images, labels, saved.compiled if saved else None)
    step, model = prepared.step, prepared.model
    validate = _validator(prepared, data)
    meter = SystemMeter()

    epochs: list[EpochMetrics] = []
    best_weights: Weights = ()
    best_predicted = np.empty(0, np.uint8)
    best = 0
    fit_seconds = 0.0
    if saved is not None:
        for variable, value in zip(step.variables, saved.variables, strict=True):
            variable.assign(value)
        epochs, fit_seconds = list(saved.epochs), saved.fit_seconds
        best, best_weights = best_epoch(epochs).epoch, saved.best_weights
        best_predicted = saved.best_predicted
    on_start(tuple(epochs))

    def report(figures: EpochMetrics, checkpoint: Checkpoint | None) -> None:
        if checkpoint is not None and place is not None:
            _save(checkpoint, place.folder)
        on_epoch(figures)

    # The next epoch is trained while a checkpoint is written.
    with ThreadPoolExecutor(1) as background:
        reported: Future[None] | None = None
        while not _is_done(config, epochs, best):
            epoch = len(epochs) + 1
            start = clock.now()
            order = np.random.default_rng([config.seed, epoch]).permutation(len(labels))
            loss, right = step.run_epoch(
                images,
                labels,
                order,
                seed=config.seed,
                epoch=epoch,
                learning_rate=config.learning_rate,
            )
            fit_seconds += clock.now() - start
            probabilities = validate()
            predicted = predicted_labels(probabilities)
            figures = EpochMetrics(
                epoch=epoch,
                loss=loss,
                accuracy=right / len(order),
                val_loss=cross_entropy(data.validation_labels, probabilities),
                val_accuracy=accuracy(data.validation_labels, predicted),
                epoch_seconds=clock.now() - start,
                ended_at=int(time.time() * 1000),
                usage=meter.read(),
            )
            epochs.append(figures)
            if best_epoch(epochs) is figures:
                best, best_weights = epoch, tuple(model.get_weights())
                best_predicted = predicted
            checkpoint = None
            if place is not None:
                checkpoint = Checkpoint(
                    fingerprint=place.fingerprint,
                    epochs=tuple(epochs),
                    fit_seconds=fit_seconds,
                    variables=tuple(v.numpy() for v in step.variables),
                    best_weights=best_weights,
                    best_predicted=best_predicted,
                    compiled=step.compiled,
                )
            if reported is not None:
                reported.result()
            reported = background.submit(report, figures, checkpoint)
        if reported is not None:
            reported.result()

    result = TrainingResult(
        config=config,
        epochs=tuple(epochs),
        model_parameters=model.count_params(),
        train_seconds=sum(e.epoch_seconds for e in epochs),
        images_per_second=len(epochs) * len(data.train_labels) / fit_seconds,
        train_images=len(data.train_labels),
        validation=score(
            data.validation_labels, best_predicted, epochs[best - 1].val_loss, data.class_names
        ),
        settings={
            **{name: os.environ.get(name) for name in runtime.DEFAULTS},
            "threads": runtime.threads(),
            "shards": step.shards,
            "jit_compile": step.compiled,
        },
    )
    return result, best_weights


def _is_done(config: TrainingConfig, epochs: Sequence[EpochMetrics], best: int) -> bool:
    done = len(epochs)
    if diverged_in(epochs):  # weights that diverged do not recover
        return True
    return done >= config.epochs or bool(config.patience and done - best >= config.patience)


@dataclass(frozen=True, kw_only=True)
class _Prepared:
    """A network, and the functions that train it and classify with it; traced on first use."""

    model: keras.Model
    step: TrainingStep
    classify: Callable[[tf.Tensor], tf.Tensor]


# The network used last, by what its functions depend on: tracing takes a third of a second.
_last: dict[tuple[TrainingConfig, int, bool | None], _Prepared] = {}


def _prepare(
    config: TrainingConfig, images: tf.Tensor, labels: tf.Tensor, compiled: bool | None
) -> _Prepared:
    """Return a network with new initial weights and its functions, traced before if possible.

    Before the first epoch it is not known (None) whether XLA compiles the steps; if need be, both
    ways are timed on the images.
    """
    keras.backend.clear_session()
    # After clear_session, which resets it.
    keras.config.disable_interactive_logging()
    keras.utils.set_random_seed(config.seed)
    model = network.build_model(config)
    compiled = runtime.jit_compile() if compiled is None else compiled
    alike = dataclasses.replace(config, seed=0, learning_rate=1.0, epochs=1, patience=0)
    key = alike, runtime.shards(), compiled
    prepared = _last.get(key)
    if prepared is None:
        _last.clear()
        if compiled is None:
            compiled = _is_faster_compiled(model, config, images, labels)
        weights = [weight.value for weight in model.trainable_variables]
        step = TrainingStep(weights, config, runtime.shards(), compiled=compiled)
        prepared = _last[key] = _Prepared(model=model, step=step, classify=_classifier(model))
    else:
        prepared.step.restart(model.get_weights())
    return prepared


def _is_faster_compiled(
    model: keras.Model, config: TrainingConfig, images: tf.Tensor, labels: tf.Tensor
) -> bool:
    """Return whether XLA makes some steps faster, timed with copies of the model's weights."""
    order = np.arange(min(_TIMED_STEPS * config.batch_size, len(labels)))
    seconds = {}
    for compiled in (False, True):
        weights = [tf.Variable(weight.value) for weight in model.trainable_variables]
        step = TrainingStep(weights, config, runtime.shards(), compiled=compiled)
        for _ in range(2):  # the first run traces and compiles
            start = clock.now()
            step.run_epoch(
                images, labels, order, seed=0, epoch=1, learning_rate=config.learning_rate
            )
            seconds[compiled] = clock.now() - start
    return seconds[True] < seconds[False]


def _classifier(model: keras.Model) -> Callable[[tf.Tensor], tf.Tensor]:
    """Return a function from images to probabilities; Keras's `predict` takes longer to trace."""
    pixels = tf.TensorSpec((None, *network.INPUT_SHAPE), tf.uint8)
    forward = tf.function(
        lambda images: model(images, training=False), input_signature=[pixels], autograph=False
    )
    number = runtime.shards()

    def classify(images: tf.Tensor) -> tf.Tensor:
        bounds = shard_bounds(tf.shape(images)[0], number)
        # TensorFlow cannot convolve an empty batch: an empty shard computes one image for nothing.
        parts = [forward(images[a : tf.maximum(b, a + 1)])[: b - a] for a, b in bounds]
        return tf.concat(parts, axis=0)

    return tf.function(classify, input_signature=[pixels], autograph=False)  # type: ignore[no-any-return]


def _tensor(array: NDArray[np.uint8]) -> tf.Tensor:
    """Return an array as a tensor; it shares the memory, also between processes, if possible."""
    if not runtime.has_gpu() and array.flags.writeable and array.ctypes.data % _ALIGNMENT == 0:
        return tf.experimental.dlpack.from_dlpack(array.__dlpack__())
    return tf.constant(array)


def _validator(prepared: _Prepared, data: DataSplit) -> Callable[[], NDArray[np.float32]]:
    """Return a function that computes the validation images' class probabilities, in order."""
    batches = [
        _tensor(data.validation_images[start : start + _VALIDATION_BATCH_SIZE])
        for start in range(0, len(data.validation_images), _VALIDATION_BATCH_SIZE)
    ]
    return lambda: np.concatenate([prepared.classify(batch).numpy() for batch in batches])


def _save(checkpoint: Checkpoint, folder: Path) -> None:
    try:
        checkpoints.save(checkpoint, folder)
    except OSError as error:  # a full disk must not stop the training
        _log.warning(
            "The checkpoint in %s was not written (%s). Training goes on; if it is cut off "
            "now, it repeats from the last one that was.",
            folder,
            error.strerror,
        )
