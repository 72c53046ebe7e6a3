"""Parts of Keras that compute the same by faster operations of TensorFlow, on a processor.

- `Dropout`: Keras draws 32 random bits for a value, makes a number of them and compares it with the
  rate. In the coursework's network, that takes a third as long as the convolutions. Here a value is
  dropped if 16 random bits are below a threshold, so a rate is a multiple of 1/65536. The bits are
  drawn from the state of the layer's own generator, which is advanced as by Keras.
- `Conv2D`: the gradient of the bias is a sum of its own. As Keras writes it, Intel's library sums
  it along with the gradient of the kernel, which then takes half as long again.
- `Adam` and `AdamW`: one operation for each variable instead of a dozen.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

_LEVELS = 2**16  # the resolution of a rate

Tensor = Any


@contextlib.contextmanager
def faster_keras(model: keras.Model) -> Iterator[None]:
    """Have a model's layers and optimizer compute so, in what is traced within.

    Only what is of exactly these classes is replaced; not what is inside of a layer that is not a
    model, nor what is set to do more (`noise_shape`, `amsgrad`).
    """
    replaced: dict[Any, tuple[str, Callable[..., Tensor]]] = {}
    for layer in layers_of(model):
        if type(layer) is keras.layers.Dropout and not layer.noise_shape and 0 < layer.rate < 1:
            replaced[layer] = "call", _dropout(layer)
        elif type(layer) is keras.layers.Conv2D and layer.data_format == "channels_last":
            replaced[layer] = "call", _convolution(layer)
    optimizer = model.optimizer
    is_adam = type(optimizer) in (keras.optimizers.Adam, keras.optimizers.AdamW)
    if is_adam and not optimizer.amsgrad:
        replaced[optimizer] = "update_step", _adam(optimizer)
    for thing, (method, function) in replaced.items():
        setattr(thing, method, function)  # hides the method of the class
    try:
        yield
    finally:
        for thing, (method, _) in replaced.items():
            delattr(thing, method)


def layers_of(model: keras.Model) -> Iterator[keras.layers.Layer]:
    """Iterate over the layers of a model, and of the models in it."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from layers_of(layer)
        else:
            yield layer


def _dropout(layer: keras.layers.Dropout) -> Callable[..., Tensor]:
    dropped = min(round(layer.rate * _LEVELS), _LEVELS - 1)

    def call(inputs: Tensor, training: bool = False) -> Tensor:
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


def _convolution(layer: keras.layers.Conv2D) -> Callable[[Tensor], Tensor]:
    def call(inputs: Tensor) -> Tensor:
        outputs = layer.convolution_op(inputs, layer.kernel)
        if layer.use_bias:
            outputs = _add_bias(outputs, tf.convert_to_tensor(layer.bias.value))
        return layer.activation(outputs)

    return call


@tf.custom_gradient  # type: ignore[untyped-decorator]
def _add_bias(values: Tensor, bias: Tensor) -> tuple[Tensor, Callable[[Tensor], Any]]:
    return tf.nn.bias_add(values, bias), lambda of_sum: (of_sum, tf.reduce_sum(of_sum, [0, 1, 2]))


def _adam(optimizer: keras.optimizers.Adam) -> Callable[[Tensor, tf.Variable, Tensor], None]:
    by_keras = optimizer.update_step

    def update_step(gradient: Tensor, variable: tf.Variable, learning_rate: Tensor) -> None:
        if isinstance(gradient, tf.IndexedSlices):
            by_keras(gradient, variable, learning_rate)
            return
        index, kind = optimizer._get_variable_index(variable), variable.dtype
        steps = tf.cast(optimizer.iterations + 1, kind)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=optimizer._momentums[index].value.handle,
            v=optimizer._velocities[index].value.handle,
            beta1_power=tf.pow(tf.cast(optimizer.beta_1, kind), steps),
            beta2_power=tf.pow(tf.cast(optimizer.beta_2, kind), steps),
            lr=tf.cast(learning_rate, kind),
            beta1=tf.cast(optimizer.beta_1, kind),
            beta2=tf.cast(optimizer.beta_2, kind),
            epsilon=tf.cast(optimizer.epsilon, kind),
            grad=tf.cast(gradient, kind),
        )

    return update_step
