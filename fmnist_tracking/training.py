"""One configuration -> one result: seeding, the epochs, the best epoch's weights."""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from fmnist_tracking import model as network
from fmnist_tracking.config import SplitConfig, TrainingConfig
from fmnist_tracking.data import DataSplit, split
from fmnist_tracking.results import EpochMetrics, TrainingResult

# Steps that TensorFlow runs before it returns to Python; the arithmetic is the same.
STEPS_PER_EXECUTION = 50
_VALIDATION_BATCH_SIZE = 1000

OnEpoch = Callable[[EpochMetrics], None]


def train(
    config: TrainingConfig, data: DataSplit, on_epoch: OnEpoch = lambda _: None
) -> tuple[TrainingResult, keras.Model]:
    """Train one configuration, deterministically for its seed, processor and threads.

    Each epoch's order of images depends on the seed and the epoch's number alone.

    Args:
        config: what to train.
        data: training and validation images.
        on_epoch: called after each epoch with its figures.

    Returns:
        The result, and an uncompiled model with the weights of the best epoch: the one
        with the highest validation accuracy.
    """
    keras.backend.clear_session()
    # After clear_session, which forgets it: MLflow asks for a prediction of its own.
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
    train_images, train_labels = tf.constant(data.train_images), tf.constant(data.train_labels)
    validation = tf.data.Dataset.from_tensor_slices(
        (data.validation_images, data.validation_labels)
    ).batch(_VALIDATION_BATCH_SIZE)

    epochs: list[EpochMetrics] = []
    best_weights: list[NDArray[np.float32]] = []
    best_epoch = 0
    fit_seconds = 0.0
    for epoch in range(1, config.epochs + 1):
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
        )
        if not epochs or figures.val_accuracy > epochs[best_epoch - 1].val_accuracy:
            best_epoch, best_weights = epoch, model.get_weights()
        epochs.append(figures)
        on_epoch(figures)
        if config.patience and epoch - best_epoch >= config.patience:
            break

    result = TrainingResult(
        config=config,
        epochs=tuple(epochs),
        model_parameters=model.count_params(),
        train_seconds=sum(e.epoch_seconds for e in epochs),
        images_per_second=len(epochs) * len(data.train_labels) / fit_seconds,
    )
    # A fresh model: saved without the optimizer's state, three times the size of the weights.
    best = network.build_model(config)
    best.set_weights(best_weights)
    return result, best


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


def fingerprint(config: TrainingConfig, split_config: SplitConfig, data_digest: str) -> str:
    """SHA-256 of everything that determines a trial's numbers, to within rounding.

    That is the configuration, the images and their split, the code of the network, the
    training and the split, and the versions of the libraries that do the arithmetic. Not the
    processor and the number of threads: they change the order of sums, and so last digits.

    Args:
        config: the point.
        split_config: how the data set is split.
        data_digest: `Dataset.digest`.
    """
    facts: dict[str, Any] = {
        "config": asdict(config),
        "split": asdict(split_config),
        "data": data_digest,
        "code": {
            Path(file).name: hashlib.sha256(Path(file).read_bytes()).hexdigest()
            for file in (__file__, str(network.__file__), str(split.__file__))
        },
        "versions": {
            name: version(name) for name in ("tensorflow", "keras", "numpy", "scikit-learn")
        },
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
