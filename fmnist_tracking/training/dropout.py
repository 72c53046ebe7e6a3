"""Dropout for training, as `keras.layers.Dropout` computes it, in half of the time.

Keras draws 32 random bits for a value, makes a number of them and compares it with the rate. In the
network of the coursework, that takes as long as a third of its convolutions. Here a value is
dropped if 16 random bits are below a threshold, so a rate is a multiple of 1/65536. The bits are
drawn from the state of the layer's own generator, which is advanced as by Keras.
"""

import contextlib
from collections.abc import Callable, Iterator

import keras
import tensorflow as tf

_LEVELS = 2**16  # the resolution of the rate


@contextlib.contextmanager
def faster_dropout(model: keras.Model) -> Iterator[None]:
    """Have the model's `Dropout` layers compute so, in what is traced within.

    Layers inside of other layers than models stay as they are, as do those with a `noise_shape`.
    """
    layers = set(_dropouts(model))  # a model may be within another twice
    for layer in layers:
        layer.call = _call(layer)  # hides the method of the class
    try:
        yield
    finally:
        for layer in layers:
            del layer.call


def _dropouts(model: keras.Model) -> Iterator[keras.layers.Dropout]:
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _dropouts(layer)
        elif type(layer) is keras.layers.Dropout and not layer.noise_shape and 0 < layer.rate < 1:
            yield layer


def _call(layer: keras.layers.Dropout) -> Callable[..., tf.Tensor]:
    dropped = min(round(layer.rate * _LEVELS), _LEVELS - 1)

    def call(inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        if not training:
            return inputs
        count = tf.size(inputs)
        # Two values for each number that is drawn.
        bits = tf.random.stateless_uniform(
            [(count + 1) // 2], layer.seed_generator.next(), None, None, tf.uint32
        )
        values = tf.reshape(tf.bitcast(bits, tf.uint16), [-1])[:count]
        keep = tf.reshape(values >= tf.constant(dropped, tf.uint16), tf.shape(inputs))
        # A product is faster than `tf.where`, also its gradient.
        return inputs * (tf.cast(keep, inputs.dtype) * (_LEVELS / (_LEVELS - dropped)))

    return call
