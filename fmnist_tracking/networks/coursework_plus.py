"""An example: the coursework's network with more that can be varied.

It shows hyperparameters that are texts and booleans: `padding`, `activation`, `optimizer`, batch
normalisation, and a second dropout rate.
"""

import keras
import keras_tuner

OPTIMIZERS = {
    "adam": keras.optimizers.Adam,
    "sgd": lambda rate: keras.optimizers.SGD(10 * rate, momentum=0.9, nesterov=True),
    "rmsprop": keras.optimizers.RMSprop,
}


def build(
    hp: keras_tuner.HyperParameters,
    image_shape: tuple[int, int, int] = (28, 28, 1),
    classes: int = 10,
) -> keras.Model:
    """Build two blocks of convolution, pooling and dropout, and two dense layers; compile them."""
    filters = hp.Choice("filters", [12, 36, 48], default=36)
    kernel_size = hp.Fixed("kernel_size", 3)
    strides = hp.Fixed("strides", 1)
    padding = hp.Choice("padding", ["valid", "same"])
    activation = hp.Choice("activation", ["relu", "gelu"])
    optimizer = hp.Choice("optimizer", ["adam", "sgd"])
    batch_normalization = hp.Boolean("batch_normalization")
    dropout = hp.Fixed("dropout", 0.3)
    last_dropout = hp.Fixed("last_dropout", 0.0)
    layers = [keras.Input(image_shape, dtype="uint8"), keras.layers.Rescaling(1 / 255)]
    for _ in range(2):
        layers.append(keras.layers.Conv2D(filters, kernel_size, strides, padding))
        if batch_normalization:
            layers.append(keras.layers.BatchNormalization())
        layers += [
            keras.layers.Activation(activation),
            keras.layers.MaxPool2D(2),
            keras.layers.Dropout(dropout),
        ]
    layers += [
        keras.layers.Flatten(),
        keras.layers.Dense(hp.Fixed("hidden_units", 64), activation),
        keras.layers.Dropout(last_dropout),
        keras.layers.Dense(classes, "softmax"),
    ]
    model = keras.Sequential(layers)
    model.compile(
        optimizer=OPTIMIZERS[optimizer](hp.Fixed("learning_rate", 0.001)),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model
