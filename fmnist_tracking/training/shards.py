"""Shards: parts of a batch that are computed apart, and which networks allow it."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import tensorflow as tf

# Layers that compute each image of a batch by itself. What is in none of these lists may look
# across the batch, as BatchNormalization does, or keep something from one call to the next.
_ALONE = {
    *("InputLayer", "Identity", "Rescaling", "Normalization", "Resizing", "CenterCrop"),
    *("Conv1D", "Conv2D", "Conv3D", "Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"),
    *("SeparableConv1D", "SeparableConv2D", "DepthwiseConv1D", "DepthwiseConv2D"),
    *("Dense", "EinsumDense", "MultiHeadAttention", "Attention", "AdditiveAttention"),
    *("MaxPooling1D", "MaxPooling2D", "MaxPooling3D"),
    *("AveragePooling1D", "AveragePooling2D", "AveragePooling3D"),
    *("GlobalMaxPooling1D", "GlobalMaxPooling2D", "GlobalMaxPooling3D"),
    *("GlobalAveragePooling1D", "GlobalAveragePooling2D", "GlobalAveragePooling3D"),
    *("Dropout", "AlphaDropout", "GaussianDropout", "GaussianNoise", "ActivityRegularization"),
    *("SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D"),
    *("RandomFlip", "RandomRotation", "RandomTranslation", "RandomZoom"),
    *("RandomBrightness", "RandomContrast"),
    *("Flatten", "Reshape", "Permute", "RepeatVector"),
    *("ZeroPadding1D", "ZeroPadding2D", "ZeroPadding3D", "Cropping1D", "Cropping2D", "Cropping3D"),
    *("UpSampling1D", "UpSampling2D", "UpSampling3D"),
    *("Activation", "ReLU", "LeakyReLU", "ELU", "PReLU", "Softmax"),
    *("LayerNormalization", "GroupNormalization"),
    *("Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum", "Concatenate"),
}
_LAYERS = {getattr(keras.layers, name) for name in _ALONE}
# Sums over the values of an image, which Keras divides by the images of the batch.
_REGULARIZERS = (type(None), keras.regularizers.L1, keras.regularizers.L2, keras.regularizers.L1L2)
# Keras's losses that compare the images of a batch, or sum over them before they divide.
_ACROSS_IMAGES = ("circle", "ctc", "dice", "tversky")
_MEANS = ("sum_over_batch_size", "mean", "mean_with_sample_weight")


def shard_sizes(count: int, number: int) -> list[int]:
    """Divide `count` images into `number` shards; their sizes differ by 1 at most."""
    bounds = [count * shard // number for shard in range(number + 1)]
    return [end - start for start, end in itertools.pairwise(bounds)]


def treats_images_alone(
    model: keras.Model, but_for: Callable[[keras.layers.Layer], bool] = lambda _: False
) -> bool:
    """Return whether the network treats each image of a batch by itself while it is trained.

    It is False for all that is not known to: layers, activations and operations of others than
    Keras, subclassed models, and layers of Keras such as BatchNormalization. What a layer does is
    not asked where it is one that `but_for` is true of.
    """
    if type(model) is keras.Sequential:
        return all(but_for(layer) or _is_alone(layer, but_for) for layer in model.layers)
    # `keras.Model(inputs, outputs)` makes a model of this class, which has no public name.
    if type(model).__name__ == "Functional" and is_keras_s(type(model)):
        return all(but_for(layer) or _is_alone(layer, but_for) for layer in model.operations)
    return False


def is_mean_over_images(loss: Any) -> bool:
    """Return whether a loss is the mean of the images' losses; False where it is not known.

    Args:
        loss: a loss of Keras or a function, as `keras.losses.get` returns it.
    """
    name = getattr(loss, "__name__", type(loss).__name__).lower()
    is_known = is_keras_s(loss if hasattr(loss, "__name__") else type(loss))
    return (
        is_known and name not in _ACROSS_IMAGES and getattr(loss, "reduction", _MEANS[0]) in _MEANS
    )


def _is_alone(layer: Any, but_for: Callable[[keras.layers.Layer], bool]) -> bool:
    if isinstance(layer, keras.Model):
        return treats_images_alone(layer, but_for)
    activation = getattr(layer, "activation", None)
    shape: Sequence[int | None] = getattr(layer, "noise_shape", None) or (None,)
    return (
        type(layer) in _LAYERS
        and (activation is None or is_keras_s(activation))
        and type(layer.activity_regularizer) in _REGULARIZERS
        and shape[0] is None  # else the images share what dropout drops
        and (not isinstance(layer, _WITH_AXIS) or _is_within_image(layer.axis))
    )


_WITH_AXIS = (keras.layers.Concatenate, keras.layers.Softmax)


def _is_within_image(axis: int | Iterable[int]) -> bool:
    axes = [axis] if isinstance(axis, int) else list(axis)
    return all(one > 0 or one == -1 for one in axes)  # other negative ones may be the first


def is_keras_s(thing: Any) -> bool:
    """Return whether a class or function is one of Keras's."""
    return str(getattr(thing, "__module__", "")).startswith("keras.")


def shard_bounds(count: tf.Tensor, number: int) -> list[tuple[tf.Tensor, tf.Tensor]]:
    """Return start and end of `number` parts of `count` items; sizes differ by 1 at most."""
    bounds = [count * shard // number for shard in range(number + 1)]
    return list(itertools.pairwise(bounds))
