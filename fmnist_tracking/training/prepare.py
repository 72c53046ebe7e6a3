"""Make a network ready to be trained: built, with the functions that train it and classify."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from fmnist_tracking import clock, runtime
from fmnist_tracking.config import TrainingConfig
from fmnist_tracking.errors import ConfigError
from fmnist_tracking.metrics import cross_entropy
from fmnist_tracking.network import Network
from fmnist_tracking.networks.build import build_model, in_code_of, packed
from fmnist_tracking.networks.models import as_input
from fmnist_tracking.training.coursework_settings import CourseworkSettings
from fmnist_tracking.training.coursework_step import CourseworkStep
from fmnist_tracking.training.keras_step import KerasStep
from fmnist_tracking.training.shards import shard_bounds
from fmnist_tracking.training.step import Step

_TIMED_STEPS = 50
_BATCH_SIZE = 1000  # of what is classified
_TRIED, _SHOWN = 8, 5
# By so much may the sum of an image's probabilities differ from 1; in bfloat16 by most.
_ROUNDING = 0.02
_ALIGNMENT = 64  # bytes, as in TensorFlow's own tensors


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A network, and the functions that train it and classify with it; traced on first use."""

    model: keras.Model
    step: Step
    # From images and labels to the mean loss and the probabilities.
    evaluate: Callable[[tf.Tensor, tf.Tensor], tuple[float, NDArray[np.float32]]]


# The coursework's network used last, by what its functions depend on: tracing takes a third of a
# second.
_last: dict[tuple[TrainingConfig, int, bool | None], Prepared] = {}


def prepare(
    config: TrainingConfig, images: tf.Tensor, labels: tf.Tensor, compiled: bool | None
) -> Prepared:
    """Return a network with new initial weights and its functions, traced before if possible.

    Before the first epoch it is not known (None) whether XLA compiles the steps of the coursework's
    network; if need be, both ways are timed on the images.
    """
    keras.backend.clear_session()
    # After clear_session, which resets it.
    keras.config.disable_interactive_logging()
    keras.utils.set_random_seed(config.seed)
    model = build_model(config)
    if config.network.is_coursework:
        return _prepare_coursework(model, config, images, labels, compiled)
    settings = CourseworkSettings.of(model)  # of a copy of it, for example
    if settings is not None:
        faster = _coursework_step(model, config, settings, compiled=False)
        return Prepared(model=model, step=faster, evaluate=_evaluator(model, config))
    step = KerasStep(model, config.batch_size, config.network.classes)
    return Prepared(model=model, step=step, evaluate=step.evaluate)


def require_trainable(model: keras.Model, network: Network, runs: bool) -> None:
    """Raise an error for a model that cannot be trained; try it on noise if it `runs`."""
    with in_code_of(network):
        step = KerasStep(model, _TRIED, network.classes)
        if not runs:
            return
        random = np.random.default_rng(0)
        images = tf.constant(random.integers(0, 256, (_TRIED, *network.image_shape), np.uint8))
        labels = tf.constant(np.arange(_TRIED, dtype=np.uint8) % network.classes)
        step.run_epoch(images, labels, np.arange(_TRIED), epoch=1)
        _, outputs = step.evaluate(images, labels)
    require_probabilities(outputs)
    packed(model, model.get_weights(), network)  # which raises an error if it cannot be


def require_probabilities(outputs: NDArray[np.float32]) -> None:
    """Raise `ConfigError` if a network gives something else; NaN it may give, if it diverged."""
    wrong = (outputs < 0).any(axis=1) | (abs(outputs.sum(axis=1) - 1) > _ROUNDING)
    if wrong.any():
        given = ", ".join(f"{value:.3g}" for value in outputs[wrong][0][:_SHOWN])
        raise ConfigError(
            f"The network gives {given}, … for an image, expected probabilities, which add up to "
            "1. End it with a softmax, in float32, and compile it with a loss that takes "
            "probabilities (from_logits=False)."
        )


def _prepare_coursework(
    model: keras.Model,
    config: TrainingConfig,
    images: tf.Tensor,
    labels: tf.Tensor,
    compiled: bool | None,
) -> Prepared:
    compiled = runtime.jit_compile() if compiled is None else compiled
    alike = config.replace(seed=0, learning_rate=1.0, epochs=1, patience=0)
    key = alike, runtime.shards(), compiled
    prepared = _last.get(key)
    values: dict[str, Any] = dict(config.hyperparameters)
    if prepared is not None and isinstance(prepared.step, CourseworkStep):
        rate = values["learning_rate"]
        prepared.step.restart(model.get_weights(), seed=config.seed, learning_rate=rate)
        return prepared
    _last.clear()
    names = ("strides", "dropout", "learning_rate")
    settings = CourseworkSettings(**{name: values[name] for name in names})
    if compiled is None:
        compiled = _is_faster_compiled(model, config, settings, images, labels)
    step = _coursework_step(model, config, settings, compiled=compiled)
    prepared = Prepared(model=model, step=step, evaluate=_evaluator(model, config))
    _last[key] = prepared
    return prepared


def _coursework_step(
    model: keras.Model, config: TrainingConfig, settings: CourseworkSettings, *, compiled: bool
) -> CourseworkStep:
    return CourseworkStep(
        [weight.value for weight in model.trainable_variables],
        settings,
        config.batch_size,
        seed=config.seed,
        shards=runtime.shards(),
        compiled=compiled,
    )


def _is_faster_compiled(
    model: keras.Model,
    config: TrainingConfig,
    settings: CourseworkSettings,
    images: tf.Tensor,
    labels: tf.Tensor,
) -> bool:
    """Return whether XLA makes some steps faster, timed with copies of the model's weights."""
    order = np.arange(min(_TIMED_STEPS * config.batch_size, len(labels)))
    seconds = {}
    for compiled in (False, True):
        weights = [tf.Variable(weight.value) for weight in model.trainable_variables]
        shards = runtime.shards()
        step = CourseworkStep(
            weights, settings, config.batch_size, shards=shards, compiled=compiled
        )
        for _ in range(2):  # the first run traces and compiles
            start = clock.now()
            step.run_epoch(images, labels, order, epoch=1)
            seconds[compiled] = clock.now() - start
    return seconds[True] < seconds[False]


def _evaluator(
    model: keras.Model, config: TrainingConfig
) -> Callable[[tf.Tensor, tf.Tensor], tuple[float, NDArray[np.float32]]]:
    """Return a function that classifies images, and computes the mean cross-entropy in nats.

    Keras's `predict` takes longer to trace.
    """
    pixels = tf.TensorSpec((None, *config.network.image_shape), tf.uint8)
    forward = tf.function(
        lambda images: model(as_input(model, images), training=False),
        input_signature=[pixels],
        autograph=False,
    )
    number = runtime.shards()

    def classify(images: tf.Tensor) -> tf.Tensor:
        bounds = shard_bounds(tf.shape(images)[0], number)
        # TensorFlow cannot convolve an empty batch: an empty shard computes one image for nothing.
        parts = [forward(images[a : tf.maximum(b, a + 1)])[: b - a] for a, b in bounds]
        return tf.concat(parts, axis=0)

    traced = tf.function(classify, input_signature=[pixels], autograph=False)

    def evaluate(images: tf.Tensor, labels: tf.Tensor) -> tuple[float, NDArray[np.float32]]:
        starts = range(0, len(images), _BATCH_SIZE)
        found = np.concatenate([traced(images[at : at + _BATCH_SIZE]).numpy() for at in starts])
        return cross_entropy(labels.numpy(), found), found

    return evaluate


def as_tensor(array: NDArray[np.uint8]) -> tf.Tensor:
    """Return an array as a tensor; it shares the memory, also between processes, if possible."""
    if not runtime.has_gpu() and array.flags.writeable and array.ctypes.data % _ALIGNMENT == 0:
        return tf.experimental.dlpack.from_dlpack(array.__dlpack__())
    return tf.constant(array)
