"""The coursework's network: a small CNN. Copy this file to begin a network of your own."""

import keras
import keras_tuner


def build(
    hp: keras_tuner.HyperParameters,
    image_shape: tuple[int, int, int] = (28, 28, 1),
    classes: int = 10,
) -> keras.Model:
    """Build two blocks of convolution, pooling and dropout, and two dense layers; compile them."""
    filters = hp.Choice("filters", [12, 36, 48])
    strides = hp.Choice("strides", [1, 2])
    kernel_size = hp.Choice("kernel_size", [3, 4])
    dropout = hp.Fixed("dropout", 0.3)
    # Raw pixels go in, 0 to 255: so training, serving and prediction cannot disagree.
    layers = [
        keras.Input(image_shape, dtype="uint8", name="pixels"),
        keras.layers.Rescaling(1 / 255, name="scale"),
    ]
    for block in (1, 2):
        layers += [
            keras.layers.Conv2D(
                filters, kernel_size, strides=strides, activation="relu", name=f"conv{block}"
            ),
            keras.layers.MaxPool2D(2, name=f"pool{block}"),
            keras.layers.Dropout(dropout, name=f"dropout{block}"),
        ]
    layers += [
        keras.layers.Flatten(name="flatten"),
        keras.layers.Dense(hp.Fixed("hidden_units", 64), activation="relu", name="hidden"),
        keras.layers.Dense(classes, activation="softmax", name="probabilities"),
    ]
    model = keras.Sequential(layers, name="fashion_mnist_cnn")
    model.compile(
        optimizer=keras.optimizers.Adam(hp.Fixed("learning_rate", 0.001)),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model
