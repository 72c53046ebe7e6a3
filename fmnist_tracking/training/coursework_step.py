"""The training step of the coursework's network, written by hand: as `keras_step`, but faster.

It computes the same: Adam on the mean cross-entropy of a batch, with dropout; only the order of
summation differs, and the random numbers. Any model that is that network is trained by it; see
`coursework_settings`. `docs/speed.md` has the measurements for each of these techniques:

- An epoch is one TensorFlow function: no Python, no callbacks and no queue between two batches.
- A batch is split into as many shards as there are threads. Each thread runs the whole network on
  one shard, instead of all threads sharing each operation.
- Max pooling and ReLU commute. So the gradient of ReLU is computed on the pooled values, a quarter
  as many; there, the same comparison gives the gradient of dropout: a value that is not above 0
  after both passes no gradient.
- A value is dropped if 16 random bits are below a threshold. The factor that compensates for
  dropped values is multiplied into the weights of the next layer, which are fewer.
- Adam is one operation for each weight tensor.

Which values of an image are dropped depends only on the seed, the epoch and the position of the
image in the epoch, not on the shards or on what was trained before. So no state of a random number
generator has to be saved.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from fmnist_tracking.network import POOL_SIZE
from fmnist_tracking.training.coursework_settings import CourseworkSettings
from fmnist_tracking.training.shards import shard_bounds

# Adam's constants, as in Keras; Kingma and Ba, 2015, https://arxiv.org/abs/1412.6980.
_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-7
_PHILOX = 1  # TensorFlow's number for the counter-based generator of Salmon et al.
_VALUES_PER_COUNT = 8  # 16-bit values that Philox draws for one value of its counter
# The resolution of the dropout rate.
LEVELS = 2**16
# With fewer images in a shard, starting its operations takes longer than computing them.
_SMALLEST_SHARD = 4
_POOL = {
    "ksize": [1, POOL_SIZE, POOL_SIZE, 1],
    "strides": [1, POOL_SIZE, POOL_SIZE, 1],
    "padding": "VALID",
}

Tensors = Sequence[tf.Tensor]


class CourseworkStep:
    """The trained weights, the state of Adam, and the function that trains one epoch.

    Args:
        weights: kernel and bias of the two convolutions and the two dense layers, in the order of
            the `trainable_variables` of the model; they are trained in place.
        settings: of the network.
        batch_size: images in a step.
        seed: of dropout.
        shards: parts of a batch that are computed at once; fewer where a batch is small.
        compiled: whether XLA compiles the arithmetic.
    """

    def __init__(
        self,
        weights: Sequence[tf.Variable],
        settings: CourseworkSettings,
        batch_size: int,
        *,
        seed: int = 0,
        shards: int = 1,
        compiled: bool = False,
    ) -> None:
        self.weights = tuple(weights)
        self.moments = tuple(tf.Variable(tf.zeros_like(w)) for w in self.weights for _ in range(2))
        self.steps = tf.Variable(0, dtype=tf.int64)
        self.compiled = compiled
        self._batch_size = batch_size
        self._strides = settings.strides
        self._seed, self._learning_rate = seed, settings.learning_rate
        self.shards = max(1, min(shards, batch_size // _SMALLEST_SHARD))
        self._dropped = min(round(settings.dropout * LEVELS), LEVELS - 1)
        scale = LEVELS / (LEVELS - self._dropped)
        # Only the second convolution and the hidden layer follow a dropout.
        self._scales = (1.0, 1.0, scale, 1.0, scale, 1.0, 1.0, 1.0)
        self._gradients = tf.function(
            self._gradients_of_shard, autograph=False, jit_compile=compiled
        )
        self._epoch = tf.function(self._epoch_of, autograph=False)

    @property
    def variables(self) -> tuple[tf.Variable, ...]:
        """Return all variables that training changes: weights, moments, step count."""
        return (*self.weights, *self.moments, self.steps)

    def restart(
        self, weights: Sequence[NDArray[np.float32]], *, seed: int, learning_rate: float
    ) -> None:
        """Start a new training from the given weights."""
        self._seed, self._learning_rate = seed, learning_rate
        for variable, value in zip(self.weights, weights, strict=True):
            variable.assign(value)
        for variable in (*self.moments, self.steps):
            variable.assign(tf.zeros_like(variable))

    def run_epoch(
        self,
        images: tf.Tensor,
        labels: tf.Tensor,
        order: NDArray[np.integer[Any]],
        *,
        epoch: int,
    ) -> tuple[float, int]:
        """Train one epoch.

        Args:
            images: uint8, shape (n, height, width, channels), 0..255.
            labels: uint8, shape (n,).
            order: indices of images; each `batch_size` of them are a batch, the rest is a smaller
                one.
            epoch: the epoch's number, which dropout depends on.

        Returns:
            The mean cross-entropy of the images in nats, and how many were classified correctly;
            both measured during training, with dropout.
        """
        key = np.random.SeedSequence(self._seed).generate_state(1, np.uint64)
        loss, right = self._epoch(
            images,
            labels,
            tf.constant(order, tf.int32),
            tf.constant(key),
            tf.constant(epoch, tf.uint64),
            tf.constant(self._learning_rate, tf.float32),
        )
        return float(loss) / len(order), int(right)

    def _epoch_of(
        self,
        images: tf.Tensor,
        labels: tf.Tensor,
        order: tf.Tensor,
        key: tf.Tensor,
        epoch: tf.Tensor,
        learning_rate: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        count = tf.shape(order)[0]

        def step(first: tf.Tensor, loss: tf.Tensor, right: tf.Tensor) -> Tensors:
            batch = tf.minimum(self._batch_size, count - first)
            weights = [
                w if scale == 1.0 else w * scale
                for w, scale in zip(self.weights, self._scales, strict=True)
            ]
            sums: Tensors = []
            for start, end in shard_bounds(batch, self.shards):
                # TensorFlow cannot convolve an empty batch: an empty shard computes one image for
                # nothing.
                chosen = order[first + start : first + tf.maximum(end, start + 1)]
                of_shard = self._gradients(
                    tf.gather(images, chosen),
                    tf.gather(labels, chosen),
                    end - start,
                    first + start,
                    key,
                    epoch,
                    *weights,
                )
                sums = [a + b for a, b in zip(sums, of_shard, strict=True)] if sums else of_shard
            *gradients, shard_loss, shard_right = sums
            self._update(gradients, 1 / tf.cast(batch, tf.float32), learning_rate)
            return first + batch, loss + tf.cast(shard_loss, tf.float64), right + shard_right

        start = (0, tf.constant(0.0, tf.float64), 0)
        _, loss, right = tf.while_loop(
            lambda first, *_: first < count, step, start, parallel_iterations=1
        )
        return loss, right

    def _gradients_of_shard(
        self,
        images: tf.Tensor,
        labels: tf.Tensor,
        count: tf.Tensor,
        first: tf.Tensor,
        key: tf.Tensor,
        epoch: tf.Tensor,
        *weights: tf.Tensor,
    ) -> Tensors:
        """Compute a shard's gradients, its loss and the number of correct predictions.

        Only the first `count` images count.

        Returns:
            The gradient of the summed loss by each weight, the summed loss, the number of correct
            predictions.
        """
        labels = tf.cast(labels, tf.int32)
        with tf.GradientTape() as tape:
            tape.watch(weights)
            logits = self._logits(images, first, key, epoch, weights)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
            loss = tf.reduce_sum(losses[:count])
        right = tf.equal(tf.argmax(logits, axis=1, output_type=tf.int32), labels)[:count]
        return [*tape.gradient(loss, weights), loss, tf.reduce_sum(tf.cast(right, tf.int32))]

    def _logits(
        self,
        images: tf.Tensor,
        first: tf.Tensor,
        key: tf.Tensor,
        epoch: tf.Tensor,
        weights: Tensors,
    ) -> tf.Tensor:
        kernel_1, bias_1, kernel_2, bias_2, kernel_3, bias_3, kernel_4, bias_4 = weights
        pixels = tf.cast(images, tf.float32) * (1 / 255)
        pooled_1 = self._pooled_shape(pixels.shape[1:], kernel_1.shape)
        pooled_2 = self._pooled_shape(pooled_1, kernel_2.shape)
        sizes = [math.prod(pooled_1), math.prod(pooled_2)]
        kept_1, kept_2 = (
            kept(self._dropped, tf.shape(images)[0], sizes, first, key, epoch)
            if self._dropped
            else (None, None)
        )
        features = _convolution_block(pixels, kernel_1, bias_1, self._strides, kept_1)
        features = _convolution_block(features, kernel_2, bias_2, self._strides, kept_2)
        flat = tf.reshape(features, [-1, sizes[1]])
        hidden = tf.nn.relu(tf.nn.bias_add(tf.matmul(flat, kernel_3), bias_3))
        return tf.nn.bias_add(tf.matmul(hidden, kernel_4), bias_4)

    def _pooled_shape(self, shape: Sequence[int], kernel: Sequence[int]) -> tuple[int, int, int]:
        """Compute height, width and channels of the output of a convolution block."""
        height, width = (
            ((size - k) // self._strides + 1) // POOL_SIZE
            for size, k in zip(shape[:2], kernel[:2], strict=True)
        )
        return height, width, kernel[3]

    def _update(self, gradients: Tensors, share: tf.Tensor, learning_rate: tf.Tensor) -> None:
        steps = tf.cast(self.steps.assign_add(1), tf.float32)
        powers = tf.pow(_BETA_1, steps), tf.pow(_BETA_2, steps)
        first, second = self.moments[::2], self.moments[1::2]
        for w, m, v, g, scale in zip(
            self.weights, first, second, gradients, self._scales, strict=True
        ):
            tf.raw_ops.ResourceApplyAdam(
                var=w.handle,
                m=m.handle,
                v=v.handle,
                beta1_power=powers[0],
                beta2_power=powers[1],
                lr=learning_rate,
                beta1=_BETA_1,
                beta2=_BETA_2,
                epsilon=_EPSILON,
                grad=g * (share * scale),
            )


def kept(
    dropped: int,
    count: tf.Tensor,
    sizes: Sequence[int],
    first: tf.Tensor,
    key: tf.Tensor,
    epoch: tf.Tensor,
) -> list[tf.Tensor]:
    """Draw which values dropout keeps, for consecutive images of an epoch.

    Args:
        dropped: how many of `LEVELS` values are dropped on average.
        count: number of images.
        sizes: for each dropout layer, the number of its values for one image.
        first: position of the first image in the epoch.
        key: uint64, shape (1,); made from the seed.
        epoch: uint64; the epoch's number.

    Returns:
        For each layer, bool, shape (count, size): True where a value is kept.
    """
    counts = -(-sum(sizes) // _VALUES_PER_COUNT)  # for each image
    bits = tf.raw_ops.StatelessRandomUniformFullIntV2(
        shape=[count, counts, _VALUES_PER_COUNT // 2],
        key=key,
        counter=tf.stack([tf.cast(first, tf.uint64) * counts, epoch]),
        alg=_PHILOX,
        dtype=tf.uint32,
    )
    values = tf.reshape(tf.bitcast(bits, tf.uint16), [count, counts * _VALUES_PER_COUNT])
    keep = values >= tf.constant(dropped, tf.uint16)
    ends = list(itertools.accumulate(sizes))
    return [keep[:, end - size : end] for size, end in zip(sizes, ends, strict=True)]


def _convolution_block(
    inputs: tf.Tensor,
    kernel: tf.Tensor,
    bias: tf.Tensor,
    strides: int,
    kept: tf.Tensor | None,
) -> tf.Tensor:
    """Apply convolution, ReLU, max pooling and dropout without its compensating factor."""
    steps = [1, strides, strides, 1]

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def block(
        inputs: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor
    ) -> tuple[tf.Tensor, Callable[[tf.Tensor], Tensors]]:
        convolved = tf.nn.conv2d(inputs, kernel, steps, "VALID")
        rectified = tf.nn.relu(tf.nn.bias_add(convolved, bias))
        pooled = tf.raw_ops.MaxPool(input=rectified, **_POOL)
        outputs = pooled
        if kept is not None:
            outputs = tf.where(tf.reshape(kept, tf.shape(pooled)), pooled, 0.0)

        def gradient(of_outputs: tf.Tensor) -> Tensors:
            of_pooled = tf.raw_ops.ReluGrad(gradients=of_outputs, features=outputs)
            of_convolved = tf.raw_ops.MaxPoolGrad(
                orig_input=rectified, orig_output=pooled, grad=of_pooled, **_POOL
            )
            of_inputs = tf.raw_ops.Conv2DBackpropInput(
                input_sizes=tf.shape(inputs),
                filter=kernel,
                out_backprop=of_convolved,
                strides=steps,
                padding="VALID",
            )
            of_kernel = tf.raw_ops.Conv2DBackpropFilter(
                input=inputs,
                filter_sizes=kernel.shape,
                out_backprop=of_convolved,
                strides=steps,
                padding="VALID",
            )
            return [of_inputs, of_kernel, tf.reduce_sum(of_pooled, [0, 1, 2])]

        return outputs, gradient

    outputs: tf.Tensor = block(inputs, kernel, bias)
    return outputs
