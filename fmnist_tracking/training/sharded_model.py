"""Networks with batch normalisation, computed in shards of a batch that are normalised together.

The shards go through the network side by side, layer by layer; at a batch normalisation they wait
for each other, as mean and variance are those of the whole batch. So nothing changes but rounding.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from fmnist_tracking.training.faster_keras import layers_of
from fmnist_tracking.training.shards import treats_images_alone

Tensor = Any


def is_normalized_in_shards(model: keras.Model) -> bool:
    """Return whether `outputs_of_shards` can train a network, and does more than its layers do."""
    layers = list(layers_of(model))
    return (
        any(map(_is_normalization, layers))
        and treats_images_alone(model, but_for=_is_normalization)
        # Keras collects what they give when the model itself is called.
        and all(layer.activity_regularizer is None for layer in layers)
    )


def outputs_of_shards(model: keras.Model, shards: Sequence[Tensor]) -> list[Tensor]:
    """Compute the outputs of a network in training for each shard, and update its statistics.

    Args:
        model: one that `is_normalized_in_shards`.
        shards: the inputs, each of shape (n, ...), as the model takes them.
    """
    return _run(model, _Shards(shards)).parts


class _Shards:
    """A tensor in parts; to Keras's graph of a network, a tensor like any other."""

    def __init__(self, parts: Sequence[Tensor]) -> None:
        self.parts = list(parts)


def _run(model: keras.Model, inputs: _Shards) -> _Shards:
    graph = model._functional if isinstance(model, keras.Sequential) else model
    parts = [graph._standardize_inputs(part) for part in inputs.parts]
    (together,) = (_Shards(same) for same in zip(*parts, strict=True))
    outputs: _Shards = graph._run_through_graph([together], operation_fn=_of_shards)
    return outputs


def _of_shards(layer: keras.layers.Layer) -> Callable[..., _Shards]:
    """Return what computes a layer, given shards where the layer is given tensors."""
    if isinstance(layer, keras.Model):
        return lambda inputs, **_: _run(layer, inputs)
    if _is_normalization(layer):
        return lambda inputs, **_: _Shards(_normalized(layer, inputs.parts))
    training = {"training": True} if "training" in inspect.signature(layer.call).parameters else {}

    def call(*args: Any, **options: Any) -> _Shards:
        tensors = [one for one in keras.tree.flatten((args, options)) if isinstance(one, _Shards)]
        return _Shards(
            [
                layer(*_part(args, number), **{**_part(options, number), **training})
                for number in range(len(tensors[0].parts))
            ]
        )

    return call


def _part(values: Any, number: int) -> Any:
    """Return arguments with one part of each tensor."""
    return keras.tree.map_structure(
        lambda one: one.parts[number] if isinstance(one, _Shards) else one, values
    )


def _is_normalization(layer: keras.layers.Layer) -> bool:
    return (
        type(layer) is keras.layers.BatchNormalization
        and layer.trainable
        and layer.axis in (-1, len(layer.input.shape) - 1)
        and layer.compute_dtype == "float32"
        and not (layer.synchronized or getattr(layer, "renorm", False))
    )


def _normalized(layer: keras.layers.BatchNormalization, shards: list[Tensor]) -> list[Tensor]:
    """Normalise shards by their common mean and variance, which move the layer's own."""
    channels = shards[0].shape[-1]
    gamma = layer.gamma.value if layer.scale else tf.ones([channels])
    beta = layer.beta.value if layer.center else tf.zeros([channels])
    normalize = _normalizing(layer.epsilon)
    *outputs, mean, variance = normalize(*map(tf.convert_to_tensor, (gamma, beta)), *shards)
    for moving, value in ((layer.moving_mean, mean), (layer.moving_variance, variance)):
        moving.assign(moving * layer.momentum + value * (1 - layer.momentum))
    return outputs


def _normalizing(epsilon: float) -> Callable[..., tuple[Tensor, ...]]:
    """Return a function of scale, offset and shards, which gives these normalised.

    The gradient is that of S. Ioffe and C. Szegedy, "Batch Normalization", 2015, section 3, with
    the sums taken apart, so that it takes fewer passes over the data than TensorFlow's own.
    """

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def normalize(gamma: Tensor, beta: Tensor, *shards: Tensor) -> tuple[Any, Any]:
        axes = list(range(len(shards[0].shape) - 1))
        count = tf.cast(sum(map(tf.size, shards)) // shards[0].shape[-1], tf.float32)

        def total(values: list[Tensor]) -> Tensor:
            return tf.add_n([tf.reduce_sum(one, axes) for one in values])

        mean = total(list(shards)) / count
        squares = [tf.math.squared_difference(shard, mean) for shard in shards]
        variance = total(squares) / count
        inverse = tf.math.rsqrt(variance + epsilon)
        scale = inverse * gamma
        offset = beta - mean * scale
        outputs = [shard * scale + offset for shard in shards]

        def gradient(*upstream: Tensor) -> list[Tensor]:
            of_outputs = upstream[: len(shards)]  # mean and variance are no outputs of the layer
            of_beta = total(list(of_outputs))
            products = [one * shard for one, shard in zip(of_outputs, shards, strict=True)]
            of_gamma = (total(products) - mean * of_beta) * inverse
            slope = -scale * inverse * of_gamma / count
            shift = -scale * of_beta / count - slope * mean
            return [
                of_gamma,
                of_beta,
                *(
                    one * scale + (shard * slope + shift)
                    for one, shard in zip(of_outputs, shards, strict=True)
                ),
            ]

        return (*outputs, tf.stop_gradient(mean), tf.stop_gradient(variance)), gradient

    found: Callable[..., tuple[Tensor, ...]] = normalize
    return found
