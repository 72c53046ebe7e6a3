"""The training step of any compiled Keras model: what Keras's `fit` computes, in less time.

- An epoch is one TensorFlow function: no Python, no callbacks and no queue between two batches.
- A batch is computed in two shards, where that changes nothing but rounding. Neither waits for the
  other, but for batch normalisation, so each may have a thread of its own; as there are always two,
  what is computed does not depend on the number of threads.
- Dropout, convolutions and Adam are computed by faster operations; see `faster_keras`.

Which values are dropped, and all else that layers draw, depends on the states of Keras's seed
generators; these are among the variables that have to be saved.
"""

import itertools
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from fmnist_tracking import runtime
from fmnist_tracking.networks.models import as_input
from fmnist_tracking.training.faster_keras import faster_keras
from fmnist_tracking.training.sharded_model import is_normalized_in_shards, outputs_of_shards
from fmnist_tracking.training.shards import (
    is_keras_s,
    is_mean_over_images,
    shard_sizes,
    treats_images_alone,
)

# With fewer images in a shard, starting its operations takes longer than computing them.
_SMALLEST_SHARD = 4
_VALIDATION_BATCH_SIZE = 1000


class KerasStep:
    """The variables that training changes, and functions that train an epoch and validate.

    Args:
        model: compiled and built; it takes images, uint8 of shape (n, height, width, channels), and
            gives one value for each class, shape (n, classes). It is trained in place.
        batch_size: images for each step of the optimizer.
        classes: number of classes.

    Attributes:
        shards: parts of a batch that are computed apart: 2, or 1 on a GPU, and where a layer other
            than batch normalisation, or the loss, may look across the batch.

    Raises:
        ValueError: the model is none of those, or `fit` would train it otherwise: it has a
            `train_step` of its own, a loss without a mean or sum over the batch, or an optimizer
            that averages the weights (`use_ema`) or scales the loss by itself.
    """

    compiled = False

    def __init__(self, model: keras.Model, batch_size: int, classes: int) -> None:
        _require_supported(model)
        loss = _loss(model)
        self._model, self._optimizer = model, model.optimizer
        self._batch_size = batch_size
        self._classes = classes
        self._one_hot = _takes_one_hot(loss, self._classes)
        self._is_mean = is_mean_over_images(loss)
        # A GPU computes a whole batch at once.
        self._is_together = is_normalized_in_shards(model)
        may_split = self._is_together or treats_images_alone(model)
        may_split = self._is_mean and may_split and not runtime.has_gpu()
        self.shards = _number_of_shards(batch_size) if may_split else 1
        if not self._optimizer.built:
            self._optimizer.build(model.trainable_variables)
        self._epoch = tf.function(self._epoch_of, autograph=False)
        self._resumable: tf.Graph | None = None
        self._validate = tf.function(self._validate_batch, autograph=False)

    @property
    def variables(self) -> tuple[tf.Variable, ...]:
        """Return all variables that training changes, in the same order for the same model.

        They are the model's weights, statistics and states of seed generators, and the optimizer's
        moments, step count and learning rate, but no metrics.
        """
        of_both = (*self._model.variables, *self._optimizer.variables)
        return tuple({id(variable): variable.value for variable in of_both}.values())

    def run_epoch(
        self, images: tf.Tensor, labels: tf.Tensor, order: NDArray[np.integer[Any]], *, epoch: int
    ) -> tuple[float, int]:
        """Train one epoch.

        Args:
            images: uint8, shape (n, height, width, channels), 0..255.
            labels: uint8, shape (n,).
            order: indices of images; each `batch_size` of them are a batch, the rest is a smaller
                one.
            epoch: its number, which changes nothing.

        Returns:
            The mean of the batches' losses, weighted by their sizes, and how many images were
            classified correctly; both measured during training, as by Keras.

        Raises:
            ValueError: the model gives outputs of another shape, or a layer has a state that is not
                among the model's variables: the training could not be resumed.
        """
        arguments = images, labels, tf.constant(order, tf.int32)
        traced = self._epoch.get_concrete_function(*arguments)  # traced in the first epoch only
        if traced.graph is not self._resumable:
            self._require_resumable(traced.graph)
            self._resumable = traced.graph
        loss, right = traced(*arguments)
        return float(loss) / len(order), int(right)

    def evaluate(self, images: tf.Tensor, labels: tf.Tensor) -> tuple[float, NDArray[np.float32]]:
        """Compute the loss and the outputs for images that are not trained with.

        Args:
            images: uint8, shape (n, height, width, channels), 0..255.
            labels: uint8, shape (n,).

        Returns:
            The loss with all regularization, as `fit` reports it for validation images, and the
            outputs, float32, shape (n, classes).
        """
        count = len(labels)
        # A loss of another kind depends on which images are in a batch.
        size = _VALIDATION_BATCH_SIZE if self._is_mean else self._batch_size
        batches = [
            self._validate(images[start : start + size], labels[start : start + size])
            for start in range(0, count, size)
        ]
        loss = sum(float(loss) * len(outputs) for loss, outputs in batches) / count
        return loss, np.concatenate([outputs.numpy() for _, outputs in batches])

    def _epoch_of(
        self, images: tf.Tensor, labels: tf.Tensor, order: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        size, count = self._batch_size, order.shape[0]
        full, rest = divmod(count, size)  # shapes that are known make a graph that is faster
        batches = tf.reshape(order[: count - rest], [full, size])

        def train(chosen: tf.Tensor, loss: tf.Tensor, right: tf.Tensor) -> tuple[tf.Tensor, ...]:
            of_batch, right_ones = self._train(tf.gather(images, chosen), tf.gather(labels, chosen))
            return loss + tf.cast(of_batch, tf.float64) * chosen.shape[0], right + right_ones

        sums: tuple[tf.Tensor, ...] = tf.constant(0.0, tf.float64), tf.constant(0)
        if full:
            _, *sums = tf.while_loop(
                lambda batch, *_: batch < full,
                lambda batch, *sums: (batch + 1, *train(batches[batch], *sums)),
                (0, *sums),
                parallel_iterations=1,
            )
        loss, right = train(order[count - rest :], *sums) if rest else sums
        return loss, right

    def _train(self, images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        weights = self._model.trainable_variables
        with faster_keras(self._model):
            with tf.GradientTape() as tape:
                loss, outputs = self._forward(images, labels, training=True)
                scaled = self._optimizer.scale_loss(loss)
            self._optimizer.apply(tape.gradient(scaled, weights), weights)
        is_right = tf.argmax(outputs, axis=1, output_type=tf.int32) == tf.cast(labels, tf.int32)
        return loss, tf.math.count_nonzero(is_right, dtype=tf.int32)

    def _validate_batch(self, images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return self._forward(images, labels, training=False)

    def _forward(
        self, images: tf.Tensor, labels: tf.Tensor, *, training: bool
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Compute the loss of a batch, and its outputs."""
        count = images.shape[0]
        sizes = shard_sizes(count, min(self.shards, _number_of_shards(count)))
        parts = tf.split(images, sizes)
        inputs = [as_input(self._model, pixels) for pixels in parts]
        if training and self._is_together and len(parts) > 1:
            computed = iter(outputs_of_shards(self._model, inputs))
        else:  # one after the other: with each come the losses that its activations add
            computed = (self._model(pixels, training=training) for pixels in inputs)
        losses, outputs = [], []
        for pixels, truth, given in zip(parts, tf.split(labels, sizes), computed, strict=True):
            if not tf.is_tensor(given) or given.shape != (pixels.shape[0], self._classes):
                raise ValueError(
                    f"Expected the model to give one tensor of shape (n, {self._classes}), got "
                    f"{given!r}."
                )
            targets = (
                tf.one_hot(truth, self._classes) if self._one_hot else tf.cast(truth, tf.int32)
            )
            loss = self._model.compute_loss(pixels, targets, given, training=training)
            losses.append(loss * (pixels.shape[0] / count))
            outputs.append(given)
        return tf.add_n(losses), tf.concat(outputs, axis=0)

    def _require_resumable(self, graph: tf.Graph) -> None:
        known = {id(variable) for variable in self.variables}
        known |= {id(metric.value) for metric in self._model.metrics_variables}
        unknown = [variable.name for variable in graph.variables if id(variable) not in known]
        definition = graph.as_graph_def()
        nodes = [definition.node, *(function.node_def for function in definition.library.function)]
        # What TensorFlow draws without a state that one can save has this attribute.
        unknown += [node.name for node in itertools.chain(*nodes) if "seed2" in node.attr]
        if unknown:
            raise ValueError(
                f"Expected layers to keep all their state in variables of the model, got "
                f"{unknown[0]!r}. Make variables with add_weight, and draw random numbers with "
                "keras.random and a keras.random.SeedGenerator that the layer keeps."
            )


def _number_of_shards(count: int) -> int:
    return 2 if count >= 2 * _SMALLEST_SHARD else 1


def _require_supported(model: keras.Model) -> None:
    if not model.compiled or not model.built:
        raise ValueError(
            "Expected a model that is compiled and built, got one that is not. Call its compile(), "
            "and give it an Input or call its build()."
        )
    if type(model).train_step is not keras.Model.train_step:
        raise ValueError(f"Expected Keras's train_step, got that of {type(model).__name__}.")
    if isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer):
        raise ValueError(
            "Expected an optimizer that does not scale the loss by itself, got a "
            "LossScaleOptimizer. Train in float32."
        )
    if model.optimizer.use_ema:
        raise ValueError(
            "Expected an optimizer without use_ema: Keras replaces the weights by their averages "
            "after the last epoch, so that no epoch's figures would be those of the trained model."
        )


def _loss(model: keras.Model) -> Any:
    losses = keras.tree.flatten(model.loss)
    if len(losses) != 1 or losses[0] in (None, "crossentropy", "ce"):
        raise ValueError(f"Expected a model with one loss that is named in full, got {losses}.")
    loss = keras.losses.get(losses[0])
    if getattr(loss, "reduction", "mean") in (None, "none"):
        raise ValueError(
            'Expected a loss that is one number for a batch, got one with reduction="none".'
        )
    return loss


def _takes_one_hot(loss: Any, classes: int) -> bool:
    """Return whether a loss takes labels as rows of 0 and 1; otherwise it takes integers.

    One of Keras's is asked about three images: one that takes integers cannot compute with ten
    times as many. Any other is given integers, as `fit` would be given them.
    """
    if not is_keras_s(loss if hasattr(loss, "__name__") else type(loss)):
        return False
    labels = np.array([0, 1, 0], np.int32)
    outputs = tf.fill([3, classes], 1 / classes)
    for targets in (tf.one_hot(labels, classes), tf.constant(labels)):
        try:
            loss(targets, outputs)
        except (ValueError, TypeError, tf.errors.InvalidArgumentError) as error:
            why = error
        else:
            return len(targets.shape) == 2
    raise ValueError(
        f"Expected a loss of labels, as integers or one-hot, and outputs of shape (n, {classes}), "
        f"got {loss}: {why}"
    )
