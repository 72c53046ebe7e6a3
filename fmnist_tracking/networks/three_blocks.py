"""An example: a deeper network of three blocks, with a hyperparameter that depends on another.

A block is residual (K. He et al., "Deep Residual Learning for Image Recognition", 2015) or made of
separable convolutions; only the second kind has a depth multiplier. The learning rate falls by a
cosine.
"""

from typing import Any

import keras
import keras_tuner

DECAY_STEPS = 10_000


def build(
    hp: keras_tuner.HyperParameters,
    image_shape: tuple[int, int, int] = (28, 28, 1),
    classes: int = 10,
) -> keras.Model:
    """Build three blocks, each with twice as many filters as the one before; compile them."""
    block = hp.Choice("block", ["residual", "separable"])
    filters = hp.Choice("filters", [8, 16])
    depth_multiplier = hp.Int(
        "depth_multiplier", 1, 2, parent_name="block", parent_values=["separable"]
    )
    pixels = keras.Input(image_shape, dtype="uint8")
    x = keras.layers.Rescaling(1 / 255)(pixels)
    for number in range(3):
        width = filters * 2**number
        x = _residual(x, width) if block == "residual" else _separable(x, width, depth_multiplier)
        x = keras.layers.MaxPool2D(2)(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.Dropout(hp.Float("dropout", 0.0, 0.2, step=0.2))(x)
    model = keras.Model(pixels, keras.layers.Dense(classes, "softmax")(x))
    rate = keras.optimizers.schedules.CosineDecay(hp.Fixed("learning_rate", 0.003), DECAY_STEPS)
    model.compile(
        optimizer=keras.optimizers.Adam(rate),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model


def _residual(x: Any, width: int) -> Any:
    shortcut = keras.layers.Conv2D(width, 1)(x)
    for activation in ("relu", "linear"):
        x = keras.layers.Conv2D(width, 3, padding="same", use_bias=False)(x)
        x = keras.layers.BatchNormalization()(x)
        x = keras.layers.Activation(activation)(x)
    return keras.layers.Activation("relu")(keras.layers.Add()([x, shortcut]))


def _separable(x: Any, width: int, depth_multiplier: int) -> Any:
    x = keras.layers.SeparableConv2D(
        width, 3, padding="same", depth_multiplier=depth_multiplier, use_bias=False
    )(x)
    x = keras.layers.BatchNormalization()(x)
    return keras.layers.Activation("relu")(x)
